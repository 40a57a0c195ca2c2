"""Runs that take the short way end like runs that do not: two workers get the same messages, one forgets.

`Worker`s remember the last run of a plan and put small state into the store late. The other worker of each
test forgets both before every message, so it takes the long way each time. Replies have to be the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import planc
from planc.codec import encode as plan_bytes
from runtime import VirtualWorker
from runtime.limits import WorkerLimits
from runtime.messages import (
    Body,
    Copy,
    Drop,
    Free,
    Get,
    Handle,
    Install,
    Keep,
    List,
    Pointer,
    Put,
    PutItem,
    Request,
    RequireGrad,
    Return,
    Run,
    Slot,
    Update,
)
from runtime.wire import decode, encode
from runtime.worker import Worker
from tests.runtime.gate import Gate

X, Y, WEIGHT, BIAS, OTHER = 1, 2, 3, 4, 5
"""Objects that are there at the beginning; `OTHER` belongs to somebody else."""
FRESH = range(10, 16)
"""Ids for what is kept."""


def _loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((out - target) ** 2).sum()


def _plans() -> dict[str, planc.Plan]:
    """A step, one that reads a parameter and does not replace it, a plan with state, and one without."""
    torch.manual_seed(3)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    module, frozen = nn.Linear(2, 1), nn.Linear(2, 1)
    frozen.bias.requires_grad_(False)
    optimizers = [torch.optim.SGD([module.weight, module.bias], 0.1), torch.optim.SGD([frozen.weight], 0.1)]
    return {
        "step": planc.train_step(module, _loss, optimizers[0], x, y),
        "frozen": planc.train_step(frozen, _loss, optimizers[1], x, y),
        "predict": planc.trace(module, x, dynamic={"input": {0: "b"}}),
        "sum": planc.trace(lambda x, y: (x * y).sum(), x, y, dynamic={"x": {0: "b"}, "y": {0: "b"}}),
    }


PLANS = _plans()
STATE = {
    name: tuple({"weight": WEIGHT, "bias": BIAS}[port.path] for port in plan.graph.state())
    for name, plan in PLANS.items()
}


class Pair:
    """Two workers that get the same messages, of which one takes the long way each time."""

    def __init__(self, limits: WorkerLimits | None = None) -> None:
        self.quick, self.plain = Worker("bob", limits=limits), Worker("bob", limits=limits)
        self._numbers: dict[str, int] = {}
        torch.manual_seed(5)
        for plan in PLANS.values():
            self.send(Install(plan.id, plan_bytes(plan.graph), {}))
        tensors = [torch.randn(4, 2), torch.randn(4, 1), torch.randn(1, 2), torch.randn(1)]
        self.send(Put(tuple(PutItem(id, Slot(i)) for i, id in enumerate((X, Y, WEIGHT, BIAS)))), *tensors)
        self.send(Put((PutItem(OTHER, Slot(0)),)), torch.randn(4, 2), client="eve")

    def send(
        self, body: Body, *tensors: torch.Tensor, client: str = "ann", release: tuple[int, ...] = ()
    ) -> bytes:
        """The reply to a message, which both workers have to give."""
        number = self._numbers[client] = self._numbers.get(client, 0) + 1
        frame = encode(Request(client, 1, number, number - 1, release, body), tensors)
        for _, installed in self.plain._site.shelf:
            installed.repeats.clear()
        assert self.plain.nbytes >= 0  # whoever looks makes it put what it put off
        replies = [bytes(worker.handle_frame(bytearray(frame))) for worker in (self.quick, self.plain)]
        assert replies[0] == replies[1], decode(bytearray(replies[0]))[0]
        return replies[0]

    def check(self) -> None:
        """Both hold the same."""
        self.send(List())
        self.send(List(), client="eve")
        for id in (X, Y, WEIGHT, BIAS, *FRESH):
            self.send(Get((id,)))
        assert self.quick.nbytes == self.plain.nbytes
        assert len(self.quick) == len(self.plain)


def run(name: str, *arguments: Handle | Slot, **how: Any) -> Run:
    plan = PLANS[name]
    state = tuple(Handle(id) for id in how.pop("state", STATE[name]))
    return Run(plan.id, (*arguments, *state), **how)


def _messages() -> st.SearchStrategy[tuple[Body, tuple[torch.Tensor, ...]]]:
    fresh = st.sampled_from(FRESH)
    rows = st.sampled_from([4, 4, 4, 3])
    kept = st.one_of(
        st.just(Return()), fresh.map(Keep), fresh.map(Keep), st.just(Keep(WEIGHT)), st.just(Drop())
    )

    @st.composite
    def runs(draw: Callable[[Any], Any]) -> tuple[Body, tuple[torch.Tensor, ...]]:
        name = draw(st.sampled_from(["step", "step", "frozen", "frozen", "predict", "sum"]))
        tensors: list[torch.Tensor] = []
        arguments: list[Handle | Slot] = []
        size = draw(rows)
        for id, width in ((X, 2), (Y, 1))[: 1 if name == "predict" else 2]:
            if draw(st.integers(0, 3)):
                arguments.append(
                    Handle(id if draw(st.integers(0, 9)) else draw(st.sampled_from([OTHER, *FRESH])))
                )
            else:
                tensors.append(torch.ones(size, width) * draw(st.integers(1, 3)))
                arguments.append(Slot(len(tensors) - 1 + (not draw(st.integers(0, 19)))))
        if not draw(st.integers(0, 19)):
            arguments = arguments[1:]
        state = STATE[name]
        if not draw(st.integers(0, 9)):
            state = state[::-1]
        how: dict[str, Any] = {"results": (draw(kept),), "state": state}
        if name in ("step", "frozen") and not draw(st.integers(0, 4)):
            wishes = st.sampled_from([Update(), Drop(), Keep(15)])
            how["updates"] = tuple(draw(wishes) for _ in PLANS[name].graph.updates())
        return run(name, *arguments, **how), tuple(tensors)

    some = st.lists(st.sampled_from([X, Y, WEIGHT, BIAS, *FRESH]), min_size=1, max_size=2, unique=True)
    others = st.one_of(
        some.map(lambda ids: (Get(tuple(ids), False), ())),
        some.map(lambda ids: (Free(tuple(id for id in ids if id > 5)), ())),
        some.map(lambda ids: (Copy(tuple(ids), tuple(20 + id for id in ids)), ())),
        st.just((Free((20 + WEIGHT, 20 + BIAS)), ())),
        st.booleans().map(lambda on: (RequireGrad((WEIGHT,), on), ())),
        st.just((Put((PutItem(BIAS, Slot(0)),)), (torch.full((1,), 0.5),))),
        st.just((List(), ())),
    )
    return st.one_of(runs(), runs(), runs(), others)


@settings(max_examples=150, deadline=None)
@given(
    messages=st.lists(
        st.tuples(_messages(), st.lists(st.sampled_from(FRESH), max_size=2), st.integers(0, 9)),
        min_size=4,
        max_size=24,
    )
)
def test_the_short_way_ends_like_the_long_one(messages: list[Any]) -> None:
    pair = Pair()
    for (body, tensors), release, who in messages:
        pair.send(body, *tensors, client="ann" if who else "eve", release=tuple(release))
    pair.check()


@pytest.mark.parametrize("name", ["step", "sum"])
def test_a_run_with_too_few_inputs_after_one_that_is_known(name: str) -> None:
    pair = Pair()
    for number in range(3):
        pair.send(run(name, Handle(X), Handle(Y), results=(Keep(FRESH[number]),)))
    for inputs in ((), (Handle(X),), (Handle(X), Handle(Y)), (Handle(X), *[Handle(Y)] * 5)):
        pair.send(Run(PLANS[name].id, inputs, (Keep(FRESH[4]),)))
    pair.check()


@pytest.mark.parametrize("wish", [Keep(FRESH[4]), Return()], ids=["kept", "returned"])
@pytest.mark.parametrize("odd", ["another's", "private", "integers", "other rows", "pointer", "gone"])
def test_another_object_at_an_argument_is_looked_at(odd: str, wish: Keep | Return) -> None:
    pair = Pair()
    items = {
        "another's": PutItem(6, Slot(0)),
        "private": PutItem(6, Slot(0), private=True),
        "integers": PutItem(6, Slot(1)),
        "other rows": PutItem(6, Slot(2)),
        "pointer": PutItem(6, Pointer("alice", 1)),
    }
    tensors = [torch.ones(4, 2), torch.ones(4, 2, dtype=torch.int64), torch.ones(3, 2)]
    if odd in items:
        pair.send(Put((items[odd],)), *tensors, client="eve" if odd == "another's" else "ann")
    for name in ("sum", "step"):
        known = wish if isinstance(wish, Return) else Keep(FRESH[name == "sum"])
        pair.send(run(name, Handle(X), Handle(Y), results=(known,)))
        pair.send(run(name, Handle(6), Handle(Y), results=(wish,)))
        pair.send(run(name, Handle(Y), Handle(X), results=(wish,)))
    pair.check()


def test_state_put_late_is_that_of_the_last_run() -> None:
    pair = Pair()
    for number in range(5):
        pair.send(run("step", Handle(X), Handle(Y), results=(Keep(FRESH[number]),)))
        pair.send(run("predict", Handle(X), results=(Return(),)))
    pair.check()


def test_a_parameter_that_is_replaced_between_runs_is_the_new_one() -> None:
    """Also one that a plan reads and does not replace, while what it does replace is put late."""
    pair = Pair()
    for number in range(3):
        pair.send(run("frozen", Handle(X), Handle(Y), results=(Keep(FRESH[number]),)))
    replaced = run("step", Handle(X), Handle(Y), results=(Drop(),), updates=(Keep(FRESH[4]), Update()))
    pair.send(replaced)
    pair.send(run("frozen", Handle(X), Handle(Y), results=(Keep(FRESH[5]),)))
    pair.check()


def test_a_parameter_that_is_replaced_while_a_run_reads_it_is_the_new_one_for_the_next() -> None:
    gate = Gate()
    bob = VirtualWorker("bob", runner=gate)
    plan = PLANS["frozen"]
    shift = planc.parse(
        'plan shift(param bias: f32[1] "bias") -> (param bias: f32[1] "bias") { return bias + 1.0 }'
    )
    remote = plan.send(bob)
    shifted = bob.receive_plan(shift).with_state({"bias": remote.state["bias"]})
    tx, ty = torch.randn(4, 2), torch.randn(4, 1)
    x, y = bob.send(tx), bob.send(ty)
    remote(x, y)
    remote(x, y)
    gate.during(plan, lambda: remote(x, y), shifted)
    losses = [remote(x, y).get(), remote(x, y).get()]
    local = plan.with_state(dict(plan.state))
    for _ in range(3):
        local(tx, ty)
    local = local.with_state({**local.state, "bias": local.state["bias"] + 1})
    assert [float(loss) for loss in losses] == [float(local(tx, ty)), float(local(tx, ty))]


def test_there_is_no_room_for_a_result_and_the_state_stays() -> None:
    room = 4 * (8 + 4 + 2 + 1 + 8) + 4 * 4
    pair = Pair(WorkerLimits(store_bytes=room))
    for number in range(4):
        pair.send(run("step", Handle(X), Handle(Y), results=(Keep(FRESH[number]),)))
    before = pair.send(Get((WEIGHT, BIAS)))
    full = pair.send(run("step", Handle(X), Handle(Y), results=(Keep(FRESH[5]),)))
    assert b"do not fit" in full
    after = pair.send(Get((WEIGHT, BIAS)))
    (_, old), (_, new) = decode(bytearray(before)), decode(bytearray(after))
    assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    pair.send(run("step", Handle(X), Handle(Y), results=(Keep(FRESH[5]),)), release=(FRESH[0],))
    pair.check()


def test_results_that_are_dropped_unseen_are_never_counted() -> None:
    bob = VirtualWorker("bob")
    remote = PLANS["step"].send(bob)
    x, y = bob.send(torch.randn(4, 2)), bob.send(torch.randn(4, 1))
    before = bob.worker.nbytes
    for _ in range(50):
        loss = remote(x, y)
    # The handle of the loss before died after the last message: it is released with the next one.
    assert bob.worker.nbytes == before + 8
    assert len(bob.worker) == 6
    del loss
    bob.clear_objects()
    assert (bob.worker.nbytes, len(bob.worker)) == (0, 0)


@pytest.mark.parametrize("look", ["get", "copy", "objects", "search", "move"])
def test_whoever_looks_sees_the_state_after_the_last_run(look: str) -> None:
    bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
    plan = PLANS["step"]
    remote = plan.send(bob)
    tx, ty = torch.randn(4, 2), torch.randn(4, 1)
    x, y = bob.send(tx), bob.send(ty)
    local = plan.with_state(dict(plan.state))
    for _ in range(4):
        remote(x, y)
        local(tx, ty)
    weight = remote.state["weight"]
    expected = local.state["weight"]
    if look == "get":
        assert torch.equal(weight.get(), expected)
    elif look == "copy":
        assert torch.equal(weight.copy().get(), expected)
    elif look == "objects":
        assert repr(bob.objects[weight.id]) == repr(expected)
    elif look == "search":
        listed = bob.objects
        assert len(bob.worker) == len(listed)
        assert torch.equal(weight.copy_here(), expected)
    else:
        assert torch.equal(weight.move(alice).get(), expected)
