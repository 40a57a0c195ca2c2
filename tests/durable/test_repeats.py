"""A request that comes again after the worker was started again is applied once, and gets the same reply."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planc.codec import encode as encode_plan
from planc.codec import plan_id
from runtime.channels import InProcessChannel
from runtime.cohorts import CohortMember, Filled, KeptOwn, Mean, Own, RowsOf, Sum
from runtime.errors import ConnectionLost, ReplayError, to_error
from runtime.handlers import HANDLERS
from runtime.limits import WorkerLimits
from runtime.messages import (
    Apply,
    Approve,
    Backward,
    Body,
    Clear,
    Cohort,
    Copy,
    Deny,
    Done,
    Failure,
    FetchPlan,
    Free,
    Get,
    Grad,
    Handle,
    Install,
    Keep,
    List,
    OwnerObjects,
    OwnerPlans,
    Pending,
    Plans,
    Put,
    PutItem,
    RequireGrad,
    Return,
    Run,
    Search,
    Slot,
    Status,
    Step,
    Steps,
    Transfer,
    Uninstall,
    Update,
    ZeroGrad,
)
from runtime.wire import decode, encode
from runtime.worker import Worker
from tests.durable.helpers import Home, request, state
from tests.runtime.helpers import adding, connect, get, stepping

STEPPING = plan_id(stepping())
CHANGING: list[tuple[Body, list[torch.Tensor]]] = [
    (Put((PutItem(9, Slot(0)),)), [torch.ones(2)]),
    (Get((1,), True), []),
    (Copy((1,), (9,)), []),
    (Free((1,)), []),
    (Clear(), []),
    (Transfer((1,), "bob", (9,)), []),
    (Transfer((1,), "alice", (9,)), []),
    (Apply("aten.add", (Handle(1), Handle(1)), {}, (1,), False), []),
    (Backward(4), []),
    (Grad(5, 9), []),
    (ZeroGrad((5,)), []),
    (RequireGrad((1,), True), []),
    (Step("opt.sgd", {"momentum": 0.5}, 0.1, (5,), ((9,), ())), []),
    (Steps((Step("opt.sgd", {}, 0.1, (5,), ((), ())),)), []),
    (Install(plan_id(adding()), encode_plan(adding()), {}, ("#new",)), []),
    (Uninstall((STEPPING,)), []),
    (Run(STEPPING, (Handle(1), Handle(2), Slot(0)), (Return(),), (Update(),) * 2), [torch.ones(3)]),
    (Run(STEPPING, (Handle(1), Handle(2), Slot(0)), (Keep(9),), (Return(), Return())), [torch.ones(3)]),
    (
        Cohort(
            STEPPING,
            (Slot(0), Filled(0.5), Own()),
            (Sum(20), Mean(), KeptOwn()),
            (CohortMember(2.0, (Handle(1),), (), (9,)), CohortMember(1.0, (RowsOf(2, 0, 3),), (3,), (3,))),
            2.0**40,
        ),
        [torch.ones(3)],
    ),
]
READING = {Search, List, FetchPlan, Plans, Status, OwnerObjects, OwnerPlans, Pending}
DECIDING = {Approve, Deny}
"""To decide the same twice is to decide it."""


def furnish(worker: Worker) -> None:
    """What the requests work on. Objects 4 and 5 are leaves; 5 has a gradient."""
    items = tuple(PutItem(id, Slot(id - 1), requires_grad=id > 3) for id in range(1, 6))
    tensors = [torch.ones(3) * 2, torch.ones(3), torch.ones(3), torch.ones(1), torch.ones(1)]
    for number, (body, given) in enumerate(
        [(Put(items), tensors), (Install(STEPPING, encode_plan(stepping())), []), (Backward(5), [])], 1
    ):
        answer = worker.handle(request(number, body, session=7), given)[0].body
        assert answer == Done()


def test_every_message_that_changes_something_is_here() -> None:
    assert {type(body) for body, _ in CHANGING} | READING | DECIDING == HANDLERS.keys()


@pytest.mark.parametrize(("body", "tensors"), CHANGING, ids=lambda x: getattr(type(x), "__name__", ""))
def test_a_repeat_after_a_restart_is_applied_once(
    body: Body, tensors: list[torch.Tensor], tmp_path: Path
) -> None:
    alice = Worker("alice")
    home = Home(tmp_path, peers=lambda _: InProcessChannel(alice))
    furnish(home.worker)
    before = state(home.worker)
    frame = bytes(encode(request(1, body), tensors))
    reply = home.worker.handle_frame(frame)
    assert not isinstance(decode(bytearray(reply))[0].body, Failure)  # type: ignore[union-attr]
    after = state(home.worker)
    assert after != before
    for _ in range(2):
        home.restart()
        assert state(home.worker) == after
        assert home.worker.handle_frame(frame) == reply
        assert state(home.worker) == after
    assert len(alice) == (isinstance(body, Transfer) and body.to == "alice")


def test_a_transfer_whose_end_was_not_written_down_is_made_once(tmp_path: Path) -> None:
    """The worker is gone between its peer's reply and its own: then the caller sends its request again."""
    alice = Worker("alice")

    class Dying(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            super().call(frame)
            home.worker.close()
            raise ConnectionLost("killed")

    home = Home(tmp_path, peers=lambda _: Dying(alice))
    furnish(home.worker)
    moving = Transfer((1,), "alice", (1,))
    assert isinstance(home.handle(1, moving)[0].body, Failure)
    assert len(alice) == 1
    home.options["peers"] = lambda _: InProcessChannel(alice)
    home.restart()
    assert 1 in home.worker._site.store
    assert home.handle(1, moving)[0].body == Done()
    assert 1 not in home.worker._site.store
    assert get(connect(alice), 1)[0].tolist() == [2.0] * 3
    connect(alice).call(Transfer((1,), "alice", (2,)))  # an id that is free again there can be used again
    home.handle(2, Copy((2,), (1,)))
    assert home.handle(3, moving)[0].body == Done()
    assert len(alice) == 2


ADD_ONE = Apply("aten.add", (Handle(3), 1), {}, (3,), False)


def failure(home: Home, number: int, body: Body) -> Exception:
    answer = home.handle(number, body)[0].body
    assert isinstance(answer, Failure)
    return to_error(answer)


def test_what_is_settled_or_older_than_the_window_stays_refused(tmp_path: Path) -> None:
    home = Home(tmp_path, limits=WorkerLimits(replay_window=8))
    furnish(home.worker)
    for number in range(1, 21):
        home.handle(number, ADD_ONE, settled=3 if number == 20 else 0)
    for _ in range(2):
        home.restart()
        assert home.worker._site.store.get(3).value.tolist() == [21.0] * 3  # type: ignore[union-attr]
        for number in (1, 3, 5, 12):
            assert isinstance(failure(home, number, ADD_ONE), ReplayError)
        for number in range(13, 21):
            assert home.handle(number, ADD_ONE)[0].body == Done()
    (rows,) = (rows for (_, session), rows in home.worker._keeping.durable._replies.items() if session == 1)  # type: ignore[union-attr]
    assert len(rows) == 8


def test_replies_are_bounded_in_bytes_on_the_disk_too(tmp_path: Path) -> None:
    home = Home(tmp_path, limits=WorkerLimits(replay_bytes=500_000))
    for id in range(1, 6):
        home.handle(id, Put((PutItem(id, Slot(0)),)), torch.ones(50_000))
    for id in range(1, 6):
        home.handle(id + 5, Get((id,), True))
        assert len([name for name in home.files_there if name.endswith(".frame")]) <= 2
    home.restart()
    assert len(home.files_there) == 2
    for id in range(1, 4):
        error = failure(home, id + 5, Get((id,), True))
        assert isinstance(error, ReplayError)
        assert "no longer kept" in str(error)
    for id in (4, 5):
        assert home.handle(id + 5, Get((id,), True))[1][0].shape == (50_000,)
    home.handle(11, Put((PutItem(1, Slot(0)),)), torch.ones(1), settled=10)
    assert home.files_there == []


def test_sessions_that_are_forgotten_leave_the_disk(tmp_path: Path) -> None:
    home = Home(tmp_path, limits=WorkerLimits(sessions=3))
    furnish(home.worker)
    for session in range(10, 20):
        home.handle(1, ADD_ONE, session=session)
    durable = home.worker._keeping.durable
    assert durable is not None
    index = durable._index
    assert index is not None
    for table in ("sessions", "replies"):
        assert len(list(index.rows(table))) == 3
    home.restart()
    for session in (17, 18, 19):
        assert home.handle(1, ADD_ONE, session=session)[0].body == Done()
    assert home.worker._site.store.get(3).value.tolist() == [11.0] * 3  # type: ignore[union-attr]


def test_after_a_restart_the_session_that_was_used_last_is_forgotten_last(tmp_path: Path) -> None:
    home = Home(tmp_path, limits=WorkerLimits(sessions=3))
    furnish(home.worker)
    for number, session in ((1, 1), (1, 2), (2, 1)):
        home.handle(number, ADD_ONE, session=session)
    home.restart()
    for session in (3, 4):  # the furniture's session goes first, then the one that was quiet for longest
        home.handle(1, ADD_ONE, session=session)
    assert set(home.worker._replays._clients["me"]) == {1, 3, 4}
