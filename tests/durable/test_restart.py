"""What a worker holds is what it held before it was started again, and nothing more lies on its disk."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from runtime.durable import DurableStore
from runtime.errors import InputError, ObjectExists, StorageError, StoreFull, StoreLocked, to_error
from runtime.limits import WorkerLimits
from runtime.messages import (
    Apply,
    Backward,
    Clear,
    Done,
    Failure,
    Free,
    Get,
    Handle,
    Keep,
    Numbers,
    Pointer,
    Put,
    PutItem,
    Return,
    Run,
    Slot,
    Step,
    Update,
    Values,
)
from runtime.worker import Worker
from tests.durable.helpers import Counting, Home, copy, request, state
from tests.runtime.helpers import connect, constant_sum, get, handles, install, put, stepping


def stored(home: Home, id: int) -> torch.Tensor:
    found = home.worker._site.store.get(id)
    assert found is not None
    assert isinstance(found.value, torch.Tensor)
    return found.value


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "store")


def test_objects_of_every_kind_come_back(home: Home) -> None:
    me = connect(home.worker)
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    dtypes += (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = [torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype) for dtype in dtypes]
    tensors += [torch.empty(0, 3), torch.tensor(float("nan")), torch.randn(300_000), torch.randn(50, 500)]
    ids = [put(me, tensor, tags=("#a", f"#{i}"), description="é") for i, tensor in enumerate(tensors)]
    private = put(me, torch.ones(2), private=True, allowed=("ann", "zoe"), requires_grad=True)
    me.call(Put((PutItem(7, Pointer("alice", 9), ("#p",), "there"),)))
    before, nbytes = state(home.worker), home.worker.nbytes
    for _ in range(2):
        home.restart()
        assert (state(home.worker), home.worker.nbytes) == (before, nbytes)
        me = connect(home.worker)
        for tensor, got in zip(tensors, get(me, *ids), strict=True):
            torch.testing.assert_close(got, tensor, rtol=0, atol=0, equal_nan=True)
        assert me.values(Get((7,))) == [Pointer("alice", 9)]
    again = home.worker._site.store.get(private)
    assert again is not None
    assert again.secrecy.allowed == {"ann", "zoe"}
    assert stored(home, private).requires_grad


def test_objects_that_share_memory_share_it_again(home: Home) -> None:
    me = connect(home.worker)
    id = put(me, torch.arange(60_000.0).view(200, 300))
    me.call(Apply("aten.t", (Handle(id),), {}, (1,)))
    me.call(Apply("aten.slice", (Handle(id),), {"dim": 0, "start": 3, "end": 5}, (2,)))
    me.call(Apply("aten.expand", (Handle(put(me, torch.ones(1))),), {"size": Numbers((10**9,))}, (3,)))
    before = {i: stored(home, i).clone() for i in (1, 2)}
    nbytes = home.worker.nbytes
    home.restart()
    assert home.worker.nbytes == nbytes < 10**6
    for i, tensor in before.items():
        assert torch.equal(stored(home, i), tensor)
        assert stored(home, i).untyped_storage().data_ptr() == stored(home, id).untyped_storage().data_ptr()
    assert stored(home, 3).shape == (10**9,)


def test_the_files_are_safetensors_that_others_can_read(home: Home) -> None:
    tensor = torch.randn(400, 1000)
    put(connect(home.worker), tensor)
    (name,) = home.files_there
    ((_, read),) = load_file(home.folder / "tensors" / name).items()
    assert torch.equal(read, tensor)


def test_plans_come_back_with_their_constants_and_who_installed_them(home: Home) -> None:
    constant = torch.arange(30_000.0)
    me = connect(home.worker)
    plan = install(me, constant_sum(constant), constant, tags=("#p",), description="adds")
    install(connect(home.worker, "ann"), constant_sum(constant), constant, tags=("#q",))
    other = install(me, stepping())
    before, nbytes = state(home.worker), home.worker._site.shelf.nbytes
    home.restart()
    assert (state(home.worker), home.worker._site.shelf.nbytes) == (before, nbytes)
    me = connect(home.worker)
    installed = home.worker._site.shelf.get(plan)
    assert (installed.clients, list(installed.tags), installed.description) == (
        {"me", "ann"},
        ["#p", "#q"],
        "adds",
    )
    (sum_,) = me.values(Run(plan, handles(put(me, torch.ones(30_000))), (Return(),)))
    assert torch.equal(sum_, constant + 1)  # type: ignore[arg-type]
    assert home.worker._site.shelf.get(other)


def test_gradients_and_optimizer_state_come_back(home: Home) -> None:
    """Training goes on after a restart exactly as if there had been none."""
    twin = Worker("bob")
    number = 0

    def both(body: object, *tensors: torch.Tensor) -> None:
        nonlocal number
        number += 1
        for answered in (
            home.handle(number, body, *tensors),  # type: ignore[arg-type]
            twin.handle(request(number, body), [t.clone() for t in tensors]),  # type: ignore[arg-type]
        ):
            assert not isinstance(answered[0].body, Failure), answered[0].body

    both(Put((PutItem(1, Slot(0), requires_grad=True),)), torch.arange(3.0))
    for _ in range(4):  # without ZeroGrad: gradients add up
        for body in (
            Apply("aten.mul", (Handle(1), Handle(1)), {}, (2,)),
            Apply("aten.sum", (Handle(2),), {}, (3,)),
            Backward(3),
            Step("opt.sgd", {"momentum": 0.9}, 0.1, (1,), ((10,), ())),
        ):
            both(body)
            if not isinstance(body, Apply):  # a graph is not durable
                home.restart()
                assert stored(home, 1).requires_grad
    theirs = twin._site.store.get(1)
    assert theirs is not None
    for mine, other in ((stored(home, 1), theirs.value), (stored(home, 1).grad, theirs.value.grad)):
        assert torch.equal(mine, other)
    assert torch.equal(stored(home, 10), twin._site.store.get(10).value)


def test_what_was_computed_under_autograd_comes_back_as_a_leaf(home: Home) -> None:
    me = connect(home.worker)
    id = put(me, torch.ones(2), requires_grad=True)
    me.call(Apply("aten.sum", (Handle(id),), {}, (3,)))
    home.restart()
    assert not stored(home, 3).requires_grad
    with pytest.raises(InputError, match="does not require grad"):
        connect(home.worker).call(Backward(3))


def test_a_failed_request_leaves_nothing_but_its_releases(home: Home) -> None:
    me = connect(home.worker)
    first, second = put(me, torch.ones(1)), put(me, torch.ones(1))
    home.handle(1, Free((99,)), session=2, release=(first,))
    assert [first in home.worker._site.store, second in home.worker._site.store] == [False, True]
    home.restart()
    assert list(home.worker._site.store) == [second]


def test_a_run_that_releases_is_durable_though_others_come_in_between(home: Home) -> None:
    me = connect(home.worker)
    ids = [put(me, torch.ones(3)) for _ in range(4)]
    plan = install(me, stepping())
    body = Run(plan, handles(*ids[:3]), (Keep(50),), (Update(), Update()))
    home.handle(1, body, session=2, release=(ids[3],))
    assert ids[3] not in home.worker._site.store
    before = state(home.worker)
    home.restart()
    assert state(home.worker) == before


def test_the_owners_data_is_not_copied_and_keeps_its_id(home: Home) -> None:
    def offer() -> int:
        return home.worker.add(torch.arange(100_000.0), tags=("#data",), private=True, name="rows")

    id = offer()
    with pytest.raises(ObjectExists, match="rows"):
        offer()
    assert home.files_there == []
    me = connect(home.worker)
    me.call(Apply("aten.slice", (Handle(id),), {"start": 5, "end": 9, "step": 3}, (2,)))
    assert home.files_there == []  # a view: only what it shows is written, into the index
    home.restart()
    assert list(home.worker._site.store) == [2]
    assert stored(home, 2).tolist() == [5.0, 8.0]
    assert offer() == id
    assert Worker("alice").add(torch.ones(1), name="rows") != id
    connect(home.worker).call(Clear())
    assert list(home.worker._site.store) == [id]


def test_records_are_kept_with_what_changed_beside_them(home: Home) -> None:
    class Decision(msgspec.Struct):
        plan: str
        until: float | None = None

    durable = home.worker._keeping.durable
    assert durable is not None
    durable.records.put("approval", "p1", Decision("p1", 5.0))
    durable.records.put("denial", "p2", {"why": "no"})
    put(connect(home.worker), torch.ones(1))
    durable.records.put("approval", "p3", Decision("p3"))
    durable.records.delete("denial", "p2")
    durable.commit()
    durable.records.put("approval", "p4", Decision("p4"))  # never committed
    home.restart()
    records = home.worker._keeping.durable.records  # type: ignore[union-attr]
    assert records.items("approval", Decision) == {"p1": Decision("p1", 5.0), "p3": Decision("p3")}
    assert records.get("denial", "p2", dict) is None


def test_disk_space_comes_back(home: Home) -> None:
    """However objects are spread over files, about twice what is held is the most that lies there."""
    me = connect(home.worker)
    sizes = [1000] * 40 + [250_000, 300_000]
    ids = list(range(1, len(sizes) + 1))
    for round in range(3):
        items = tuple(PutItem(id, Slot(i)) for i, id in enumerate(ids))
        me.call(Put(items), [torch.full((size,), float(round)) for size in sizes])
        me.call(Free(tuple(ids[1:])))
        there = sum((home.folder / "tensors" / name).stat().st_size for name in home.files_there)
        assert there <= 2 * home.worker.nbytes + 4096
        home.restart()
        assert stored(home, 1).tolist() == [float(round)] * 1000
        me = connect(home.worker)
        me.call(Free((1,)))
        assert home.files_there == []
        assert home.worker.nbytes == 0


def test_what_a_crash_left_behind_is_removed_at_the_start(home: Home) -> None:
    put(connect(home.worker), torch.randn(50_000))
    (mine,) = home.files_there
    home.worker.close()
    for name in ("99.safetensors", "100.safetensors.tmp", "101.frame", "notes.txt"):
        (home.folder / "tensors" / name).write_bytes(b"x")
    home.start()
    assert home.files_there == sorted([mine, "notes.txt"])


def test_limits_of_bytes_hold_as_before(tmp_path: Path) -> None:
    home = Home(tmp_path, limits=WorkerLimits(store_bytes=400))
    put(connect(home.worker), torch.ones(90))
    home.restart()
    assert home.worker.nbytes == 360
    with pytest.raises(StoreFull):
        put(connect(home.worker), torch.ones(20))
    smaller = Home(copy(tmp_path, tmp_path / "copy"), limits=WorkerLimits(store_bytes=100))
    assert smaller.worker.nbytes == 360  # nothing older is lost; there is only no room for more


def test_two_workers_cannot_have_one_store(home: Home) -> None:
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        DurableStore(home.folder)
    home.restart()  # and the lock goes with the worker


def test_a_worker_that_is_closed_changes_nothing(home: Home) -> None:
    home.handle(1, Put((PutItem(1, Slot(0)),)), torch.ones(1))
    home.worker.close()
    answer = home.handle(2, Free((1,)))[0].body
    assert isinstance(answer, Failure)
    assert isinstance(to_error(answer), StorageError)
    assert isinstance(home.handle(3, Get((1,)))[0].body, Values)  # the memory is still right


def test_a_request_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    files = Counting()
    home = Home(tmp_path, files)
    home.handle(1, Put((PutItem(1, Slot(0)),)), torch.ones(1))
    steps = files.steps
    home.handle(2, Get((1,)))
    home.handle(3, Free((99,)))
    assert files.steps == steps
    assert home.handle(4, Free((1,)))[0].body == Done()
    assert files.steps > steps


def test_an_interrupted_request_leaves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    me = connect(home.worker)
    id = put(me, torch.ones(1), requires_grad=True)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    store = home.worker._site.store
    monkeypatch.setattr("runtime.handlers.autograd.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        home.worker.handle(request(1, Backward(id), session=2))
    assert stored(home, id).grad is None
    assert store.changed == []
    monkeypatch.undo()
    me.call(Backward(id))
    assert stored(home, id).grad.tolist() == [1.0]  # type: ignore[union-attr]


def test_runs_beside_each_other_are_all_durable(home: Home) -> None:
    plan = install(connect(home.worker), stepping())
    errors: list[BaseException] = []

    def train(name: str) -> None:
        try:
            me = connect(home.worker, name)
            ids = [put(me, torch.zeros(3)), put(me, torch.zeros(3)), put(me, torch.ones(3))]
            for _ in range(20):
                me.call(Run(plan, handles(*ids), (Return(),)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(f"c{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    values = sorted(stored(home, id)[0].item() for id in home.worker._site.store)
    assert values == [-20.0] * 3 + [1.0] * 3 + [20.0] * 3
    before = state(home.worker)
    home.restart()
    assert state(home.worker) == before
