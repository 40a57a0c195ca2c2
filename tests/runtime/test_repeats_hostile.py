"""What a hostile client, or two threads of a hurried one, tried with runs that take the short way.

Each was found by somebody who looked for it: a private gradient that left, steps that were lost, memory that
nobody counted.
"""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import planc
from planc.codec import encode as plan_bytes
from runtime.limits import WorkerLimits
from runtime.messages import (
    Answer,
    Backward,
    Body,
    Done,
    Failure,
    Free,
    Get,
    Grad,
    Handle,
    Install,
    Keep,
    List,
    Put,
    PutItem,
    Reply,
    Request,
    Return,
    Run,
    Slot,
    Transfer,
    Uninstall,
    Values,
)
from runtime.wire import decode, encode
from runtime.worker import Worker
from tests.runtime.gate import Gate

STEP = planc.parse('plan step(param w: f32[2] "w") -> (param w: f32[2] "w") { return w + 1.0 }')
PRODUCT = planc.parse("plan product(w: f32[2], x: f32[2]) -> f32[] { return sum(w * x) }")


class Client:
    """Sends messages as frames to a worker of its own; a session each, from any thread."""

    def __init__(self, **options: Any) -> None:
        self.worker = Worker("bob", **options)
        self._lock = threading.Lock()
        self._number = 0
        for plan in (STEP, PRODUCT):
            self.install(plan)

    def install(self, plan: planc.Plan) -> None:
        names = list(plan.constants)
        body = Install(plan.id, plan_bytes(plan.graph), {name: Slot(i) for i, name in enumerate(names)})
        assert self(body, *(plan.constants[name] for name in names)) == Done()

    def send(
        self, body: Body, *tensors: torch.Tensor, session: int = 1, release: tuple[int, ...] = ()
    ) -> tuple[Answer, list[torch.Tensor]]:
        with self._lock:
            self._number += 1
            request = Request("ann", session, self._number, 0, release, body)
        reply, answer = decode(self.worker.handle_frame(encode(request, tensors)))
        assert isinstance(reply, Reply)
        return reply.body, answer

    def __call__(self, body: Body, *tensors: torch.Tensor, **how: Any) -> Answer:
        return self.send(body, *tensors, **how)[0]


@pytest.mark.parametrize("known", [0, 3], ids=["first", "known"])
def test_a_gradient_that_comes_while_a_run_replaces_its_leaf_stays_private(known: int) -> None:
    gate = Gate()
    ann = Client(runner=gate)
    secret = ann.worker.add(torch.tensor([3.14, 2.71]), private=True)
    ann(Put((PutItem(1, Slot(0), requires_grad=True),)), torch.zeros(2))
    for _ in range(known):
        ann(Run(STEP.id, (Handle(1),), ()))
    assert ann(Run(PRODUCT.id, (Handle(1), Handle(secret)), (Keep(2),), grad=True)) == Values(())
    done = gate.during(
        STEP,
        lambda: ann(Run(STEP.id, (Handle(1),), ()), session=2),
        lambda: None if ann(Backward(2)) == Done() else pytest.fail("no backward pass"),
    )
    assert done == Values(())
    assert ann(Grad(1, 50)) == Done()
    answer = ann(Get((50,)))
    assert isinstance(answer, Failure)
    assert answer.kind == "permission-denied"
    value = ann.send(Get((1,)))[1][0]
    assert value.tolist() == [known + 1.0] * 2


def test_steps_are_not_lost_while_others_look_how_much_there_is() -> None:
    ann = Client()
    ann(Put((PutItem(1, Slot(0)),)), torch.zeros(2))
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            assert ann.worker.nbytes >= 8
            assert len(ann.worker) == 1

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(3000):
            assert ann(Run(STEP.id, (Handle(1),), ())) == Values(())
    finally:
        stop.set()
        looking.join()
    assert ann.send(Get((1,)))[1][0].tolist() == [3000.0] * 2


def test_objects_that_are_freed_are_gone_although_a_run_is_remembered() -> None:
    ann = Client()
    ann(Put((PutItem(1, Slot(0)), PutItem(2, Slot(1)))), torch.ones(2), torch.ones(2))
    for _ in range(3):
        ann(Run(PRODUCT.id, (Handle(1), Handle(2)), (Return(),)))
    store = ann.worker._site.store
    objects = [weakref.ref(store.get(id)) for id in (1, 2)]
    tensors = [weakref.ref(store.get(id).value) for id in (1, 2)]
    ann(Free((1, 2)))
    gc.collect()
    assert [ref() for ref in (*objects, *tensors)] == [None] * 4


def test_nothing_is_kept_of_plans_that_are_uninstalled() -> None:
    ann = Client()
    gone: list[weakref.ref[torch.Tensor]] = []
    for number in range(3):
        constant = torch.full((64,), float(number))
        plan = planc.trace(lambda x, c=constant: x * c, torch.ones(64))
        ann.install(plan)
        for _ in range(3):
            assert ann.send(Run(plan.id, (Slot(0),), (Return(),)), torch.ones(64))[1][0].equal(constant)
        installed = ann.worker._site.shelf.get(plan.id)
        gone += [weakref.ref(tensor) for tensor in installed.program.constants.values()]
        ann(Uninstall((plan.id,)))
        del installed, plan
    gc.collect()
    assert len(gone) == 3
    assert [ref() for ref in gone] == [None] * 3


def test_a_run_on_what_a_transfer_takes_changes_nothing() -> None:
    gate = Gate()
    ann = Client(runner=gate)
    began, go = threading.Event(), threading.Event()

    def send(*_: Any) -> None:
        began.set()
        assert go.wait(30)

    ann.worker._site.send = send
    ann(Put((PutItem(1, Slot(0)),)), torch.zeros(2))
    for _ in range(3):
        ann(Run(STEP.id, (Handle(1),), ()))
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(ann, Transfer((1,), "alice", (99,)))
        assert began.wait(30)

        def arrives() -> None:
            go.set()
            assert moving.result() == Done()

        answer = gate.during(STEP, lambda: ann(Run(STEP.id, (Handle(1),), ()), session=2), arrives)
    assert isinstance(answer, Failure)
    assert answer.kind == "object-not-found"
    assert (len(ann.worker), ann.worker.nbytes) == (0, 0)


def test_an_id_may_be_released_twice() -> None:
    ann = Client()
    ann(Put((PutItem(1, Slot(0)), PutItem(2, Slot(1)))), torch.ones(2), torch.ones(2))
    for number in range(3):
        run = Run(PRODUCT.id, (Handle(1), Handle(2)), (Keep(10 + number),))
        assert ann(run) == Values(())
    assert ann(List(), release=(12, 12, 11, 12)) == ann(List())
    assert len(ann.worker) == 3


def test_executables_that_always_fail_are_counted_too() -> None:
    ann = Client(limits=WorkerLimits(executable_bytes=8 * 1024))
    pick = planc.trace(
        lambda x, i: x[i], torch.randn(7), torch.zeros(1, dtype=torch.int64), dynamic={"x": {0: "n"}}
    )
    ann.install(pick)
    for size in range(2, 40):
        answer = ann(Run(pick.id, (Slot(0), Slot(1)), (Return(),)), torch.ones(size), torch.tensor([10**6]))
        assert isinstance(answer, Failure)
    cache = ann.worker._site.executor._cache
    assert 0 < cache.nbytes <= 8 * 1024
    assert len(cache) <= 8
