"""Whatever operation fails, or is the last before a kill: the store holds a request wholly or not at all.

The sweeps go through every single operation on files and on the index, in order; nothing here is random.
"""

from __future__ import annotations

import errno
import multiprocessing
import resource
import sqlite3
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest
import torch

from planc.codec import encode, plan_id
from planc.ir.constants import digest
from runtime.cohorts import CohortMember, Filled, KeptOwn, Mean, Own, RowsOf, Sum
from runtime.durable import DurableStore
from runtime.errors import DiskFull, StorageError, StoreFull, to_error
from runtime.messages import (
    Apply,
    Backward,
    Body,
    Cohort,
    Failure,
    Free,
    Get,
    Handle,
    Install,
    Put,
    PutItem,
    Return,
    Run,
    Slot,
    Update,
)
from runtime.worker import Worker
from tests.durable.helpers import Copying, Counting, Home, full, request, state
from tests.runtime.helpers import constant_sum, stepping

CONSTANT = torch.arange(20_000.0)
ADDING, STEPPING = constant_sum(CONSTANT), stepping()
STEPS: list[tuple[Body, list[torch.Tensor]]] = [
    (
        Put((*(PutItem(id, Slot(id - 1)) for id in (1, 2, 3)), PutItem(4, Slot(3), requires_grad=True))),
        [torch.ones(3), torch.ones(3), torch.ones(30_000), torch.ones(1)],
    ),
    (Install(plan_id(ADDING), encode(ADDING), {digest(CONSTANT): Slot(0)}), [CONSTANT]),
    (Install(plan_id(STEPPING), encode(STEPPING)), []),
    (Run(plan_id(STEPPING), (Handle(1), Handle(2), Slot(0)), (Return(),), (Update(),) * 2), [torch.ones(3)]),
    (Apply("aten.add", (Handle(3), 1), {}, (3,), False), []),
    (Backward(4), []),
    (
        Cohort(
            plan_id(STEPPING),
            (Slot(0), Filled(0.5), Own()),
            (Sum(20), Mean(), KeptOwn()),
            (CohortMember(2.0, (Handle(1),), (), (9,)), CohortMember(1.0, (RowsOf(2, 0, 3),), (2,), (2,))),
            2.0**40,
        ),
        [torch.ones(3)],
    ),
    (Get((3,), True), []),
]
"""Into the index and into files, with and without large replies, with files that are no longer needed."""
MANY = 60
"""A sweep of fewer operations than this would prove little."""


def states() -> list[str]:
    """What a worker holds before and after each request."""
    twin = Worker("bob")
    out = [state(twin)]
    for number, (body, tensors) in enumerate(STEPS, 1):
        answer = twin.handle(request(number, body), [t.clone() for t in tensors])[0].body
        assert not isinstance(answer, Failure), answer
        out.append(state(twin))
    assert len(set(out)) == len(out)
    return out


def test_killed_before_any_operation_it_holds_what_was_before_or_after(tmp_path: Path) -> None:
    expected = states()
    files = Copying(tmp_path / "store", tmp_path / "copies")
    home = Home(tmp_path / "store", files)
    ends = [len(files.copies)]
    for number, (body, tensors) in enumerate(STEPS, 1):
        home.handle(number, body, *tensors)
        ends.append(len(files.copies))
    assert len(files.copies) > MANY
    for folder in files.copies[: ends[0]]:  # killed while it was made
        assert len(Home(folder).worker) == 0
    for done, (body, tensors) in enumerate(STEPS):
        found: list[str] = []
        for folder in files.copies[ends[done] : ends[done + 1]]:
            again = Home(folder)
            found.append(state(again.worker))
            again.handle(done + 1, body, *tensors)  # the caller got no reply, and sends it again
            assert state(again.worker) == expected[done + 1], folder.name
            again.worker.close()
        assert set(found) <= {expected[done], expected[done + 1]}
        assert found == sorted(found, key=expected.index)  # what is there once stays


def broken(*_: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_operation_that_fails_is_an_error_and_changes_nothing(tmp_path: Path, when: str) -> None:
    """``after``: it is done, and reported as failed. Only then can a request be done all the same."""
    expected = states()
    files = Counting()
    home = Home(tmp_path, files)
    failed, done_all_the_same = 0, 0
    for done, (body, tensors) in enumerate(STEPS):
        operation = 0
        while True:
            operation += 1
            setattr(files, when, _at(files.steps + operation, full))
            steps = files.steps
            answer = home.handle(done + 1, body, *tensors)[0].body
            over = files.steps < steps + operation
            setattr(files, when, lambda *_: None)
            if not isinstance(answer, Failure):
                done_all_the_same += not over
                break
            failed += 1
            assert isinstance(to_error(answer), DiskFull)
            assert state(home.worker) == expected[done]
        assert state(home.worker) == expected[done + 1]
        home.restart(files)
        assert state(home.worker) == expected[done + 1]
    assert failed > MANY
    # Nothing depends on the removal of a file, and SQLite itself says whether it committed.
    assert done_all_the_same == {"before": 2, "after": 8}[when]


def _at(step: int, fail: Callable[..., None]) -> Callable[[int, str], None]:
    def maybe(number: int, _what: str) -> None:
        if number == step:
            fail()

    return maybe


def test_a_write_that_stops_half_way_is_no_harm(tmp_path: Path) -> None:
    class Half(Counting):
        stop = True

        def write(self, descriptor: int, data: memoryview) -> int:
            if self.stop and data.nbytes > 1000:
                super().write(descriptor, data[: data.nbytes // 2])
                full()
            # Fewer than asked for is allowed.
            return super().write(descriptor, data[: max(1, data.nbytes // 2)])

    files = Half()
    home = Home(tmp_path, files)
    body, tensors = STEPS[0]
    assert isinstance(home.handle(1, body, *tensors)[0].body, Failure)
    assert home.files_there == []
    files.stop = False
    home.handle(1, body, *tensors)
    before = state(home.worker)
    home.restart()
    assert state(home.worker) == before == states()[1]


def test_when_nobody_knows_whether_it_was_written_no_more_is_accepted(tmp_path: Path) -> None:
    files = Counting()
    home = Home(tmp_path, files)
    body, tensors = STEPS[0]
    home.handle(1, body, *tensors)
    before = state(home.worker)
    index = home.worker._keeping.durable._index  # type: ignore[union-attr]
    assert index is not None

    def lose(_number: int, what: str) -> None:
        if what == "COMMIT":
            index._connection.close()  # the file cannot be asked any more
            broken()

    files.before = lose
    for number in (2, 3):
        answer = home.handle(number, Free((1,)))[0].body
        assert isinstance(answer, Failure)
        error = to_error(answer)
        assert isinstance(error, StorageError)
        assert not isinstance(error, StoreFull)
        assert state(home.worker) == before
    assert not isinstance(home.handle(4, Get((1,)))[0].body, Failure)
    home.restart()
    assert state(home.worker) == before
    assert not isinstance(home.handle(3, Free((1,)))[0].body, Failure)


def test_bytes_are_on_the_disk_before_anything_says_so(tmp_path: Path) -> None:
    order: list[str] = []
    files = Counting()
    files.before = lambda _number, what: order.append(what)
    home = Home(tmp_path, files)
    order.clear()
    body, tensors = STEPS[0]
    home.handle(1, body, *tensors)
    steps = ("create", "write", "sync", "rename", "sync folder", "BEGIN", "COMMIT")
    at = [order.index(what) for what in steps]
    assert at == sorted(at)
    connection = home.worker._keeping.durable._index._connection  # type: ignore[union-attr]
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def _limited(folder: str, pipe: Pipe) -> None:
    """A child whose files cannot grow beyond 4 MiB: the system itself refuses to write on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, 4 * 2**20))
    home = Home(Path(folder))
    home.handle(1, Put((PutItem(1, Slot(0)),)), torch.ones(100_000))
    before = state(home.worker)
    two = Put((PutItem(2, Slot(0)), PutItem(3, Slot(1))))
    answer = home.handle(2, two, torch.ones(100_000), torch.ones(2_000_000))[0].body
    assert isinstance(answer, Failure)
    pipe.send_bytes(answer.kind.encode())
    pipe.send_bytes(answer.message.encode())
    assert state(home.worker) == before
    home.handle(3, Put((PutItem(4, Slot(0)),)), torch.ones(100_000))
    pipe.send_bytes(state(home.worker).encode())


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runtime", "runtime.durable"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_limited, args=(str(tmp_path / "store"), theirs), daemon=True)
    child.start()
    theirs.close()
    assert ours.recv_bytes() == b"disk-full"
    assert b"File too large" in ours.recv_bytes()
    held = ours.recv_bytes().decode()
    child.join(60)
    home = Home(tmp_path / "store")
    assert state(home.worker) == held
    assert sorted(home.worker._site.store) == [1, 4]
    assert len(home.files_there) == 2


def test_errors_of_the_disk_have_types(tmp_path: Path) -> None:
    for code, cls in ((errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StorageError)):

        def fail(code: int = code) -> None:
            raise OSError(code, "what the system says")

        files = Counting()
        home = Home(tmp_path / str(code), files)
        files.before = lambda _number, what, fail=fail: fail() if what == "sync" else None
        answer = home.handle(1, Put((PutItem(1, Slot(0)),)), torch.ones(30_000))[0].body
        assert isinstance(answer, Failure)
        assert type(to_error(answer)) is cls
        assert len(home.worker) == 0
    with pytest.raises(StorageError, match="cannot be opened"):
        DurableStore(Path("/proc/nowhere"))
