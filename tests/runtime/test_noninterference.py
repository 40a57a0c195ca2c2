"""No reply depends on the elements of a private value, by enumeration of messages and ops.

Two workers whose private values differ, as wildly as they can, answer everything with the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
import torch

from planc.codec import encode, plan_id
from planc.errors import PlancError
from planc.ir import DimExpr, Graph
from planc.ir.builder import GraphBuilder
from planc.ir.dims import substitute
from planc.ops import node
from runtime.channels import Connection, InProcessChannel
from runtime.cohorts import CohortMember, Dropped, Each, Filled, KeptOwn, Mean, Own, PickedFrom, RowsOf, Sum
from runtime.errors import PermissionDenied, RemoteExecutionError
from runtime.messages import (
    Apply,
    Approve,
    Backward,
    Body,
    Clear,
    Cohort,
    Copy,
    Deny,
    FetchPlan,
    Free,
    Get,
    Grad,
    Gradient,
    Handle,
    Install,
    Items,
    Keep,
    List,
    OwnerObjects,
    OwnerPlans,
    Pending,
    Plans,
    Pointer,
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
    ZeroGrad,
)
from runtime.remote.resolve import attribute
from runtime.worker import Worker
from tests.ops.cases import Case, Sample
from tests.ops.table import TABLE
from tests.runtime.helpers import (
    adding,
    connect,
    get,
    handles,
    identity,
    install,
    new_id,
    picking,
    put,
    stepping,
)

OUT = 10_000
"""Ids of results, far from those of operands."""


class Pair:
    """Two workers that are sent the same messages; only private tensors differ. Records every reply."""

    def __init__(self) -> None:
        self.replies: list[list[bytes]] = [[], []]
        self.connections: list[Connection] = []
        self.workers: list[Worker] = []
        for seen in self.replies:
            workers = {name: Worker(name) for name in ("bob", "alice")}
            for worker in workers.values():
                worker._peers._open = lambda to, workers=workers: InProcessChannel(workers[to])
            self.workers.append(workers["bob"])
            self.connections.append(Connection(_Listening(workers["bob"], seen), "me"))

    def put(self, id: int, first: torch.Tensor, second: torch.Tensor | None = None, **options: Any) -> None:
        """Put a public tensor, or two private ones, at the same id."""
        body = Put((PutItem(id, Slot(0), private=second is not None, **options),))
        for connection, tensor in zip(
            self.connections, (first, first if second is None else second), strict=True
        ):
            connection.call(body, [tensor])

    def ask(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Send a message to both, and check that nothing in the replies tells them apart."""
        for connection in self.connections:
            with contextlib.suppress(PlancError):  # the reply is recorded
                connection.call(body, tensors)
        first, second = (seen[-1] for seen in self.replies)
        assert first == second, body


class _Listening:
    def __init__(self, worker: Worker, seen: list[bytes]) -> None:
        self._worker, self._seen = worker, seen

    def call(self, frame: Any) -> Any:
        reply = InProcessChannel(self._worker).call(frame)
        self._seen.append(bytes(reply))
        return reply

    def close(self) -> None: ...


@pytest.fixture
def pair(caplog: pytest.LogCaptureFixture) -> Pair:
    caplog.set_level(logging.CRITICAL)  # what fails on private values is in the worker's log, with elements
    torch.set_num_threads(1)
    return Pair()


def wild(tensor: torch.Tensor) -> torch.Tensor:
    """Elements of the same type that no op is meant to take: zeros, huge, negative, not a number."""
    if tensor.dtype is torch.bool:
        return ~tensor
    numbers = (
        [0, -1, 2**31 + 7, -(2**40)] if not tensor.is_floating_point() else [float("nan"), 0, -3e38, 1e38]
    )
    flat = torch.tensor(numbers, dtype=torch.float64 if tensor.is_floating_point() else torch.int64)
    return flat.repeat(tensor.numel() // 4 + 1)[: tensor.numel()].reshape(tensor.shape).to(tensor.dtype)


def of_case(case: Case, as_item: Any) -> list[Any]:
    """The operands of a case, its samples replaced in order."""
    return [
        as_item(o)
        if isinstance(o, Sample)
        else Items(tuple(as_item(x) if isinstance(x, Sample) else None for x in o))
        if isinstance(o, tuple)
        else o
        for o in case.operands
    ]


def samples(case: Case) -> Iterator[Sample]:
    for operand in case.operands:
        if isinstance(operand, Sample):
            yield operand
        elif isinstance(operand, tuple):
            yield from (x for x in operand if isinstance(x, Sample))


def one_op(case: Case) -> Graph:
    builder = GraphBuilder("one_op")
    values = iter([builder.input(f"x{i}", s.type.substitute({"b": 4})) for i, s in enumerate(samples(case))])

    def operand(item: Any) -> Any:
        if isinstance(item, Sample):
            return next(values)
        return tuple(operand(x) for x in item) if isinstance(item, tuple) else _at(item)

    made = node(case.op, tuple(operand(o) for o in case.operands), _attrs(case), builder.next_index)
    for i, result in enumerate(builder.add(made)):
        builder.output(result, f"r{i}")
    return builder.build()


def _at(item: Any) -> Any:
    """A number or an attribute at the size that is used here."""
    return substitute(item, {"b": 4}) if isinstance(item, DimExpr) else _tuple(item)


def _tuple(value: Any) -> Any:
    return tuple(_at(x) for x in value) if isinstance(value, (tuple, list)) else value


def _attrs(case: Case) -> dict[str, Any]:
    return {name: _at(value) for name, value in case.attrs.items()}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_no_op_tells(case: Case, pair: Pair) -> None:
    """As a message and as a plan, eagerly and under autograd, with each operand private alone, and all."""
    types = list(samples(case))
    generator = torch.Generator().manual_seed(0)
    values = [s.make(4, generator) for s in types]
    graph = one_op(case)
    results = len(graph.outputs)
    plan = plan_id(graph)
    pair.ask(Install(plan, encode(graph)))
    choices = [{i} for i in range(len(values))] if len(values) < 5 else [{0}, {len(values) - 1}]
    for number, private in enumerate([*choices, set(range(len(values)))]):
        ids = [1000 * number + i + 1 for i in range(len(values))]
        out = [OUT + 1000 * number + i for i in range(results)]
        for i, (id, value) in enumerate(zip(ids, values, strict=True)):
            floating = value.is_floating_point()
            pair.put(id, value, wild(value) if i in private else None, requires_grad=floating)
        operands = iter(ids)
        named = of_case(case, lambda _, operands=operands: Handle(next(operands)))
        attrs = {name: attribute(value) for name, value in _attrs(case).items()}
        given = tuple(_at(x) if not isinstance(x, (Handle, Items)) else x for x in named)
        for body in (
            Apply(case.op, given, attrs, tuple(out)),
            Run(plan, handles(*ids), tuple(Keep(id) for id in out)),
            Run(plan, handles(*ids), tuple(Keep(id) for id in out), grad=True),
        ):
            pair.ask(body)
            for id in out:
                pair.ask(Get((id,)))
            pair.ask(List())
            for id in out[:1]:
                pair.ask(Backward(id, Slot(0)), [torch.ones(graph.outputs[0].value.type.at({}))])
            for id in ids:
                pair.ask(Grad(id, 9))
                pair.ask(Get((9,)))
                pair.ask(Free((9,)))
        pair.ask(Run(plan, handles(*ids), (Return(),) * results))
        pair.ask(Free(tuple(ids)))


X, INDEX, TAGGED, W, STATE, KEPT, ELSE = 1, 2, 3, 4, 5, OUT, OUT + 1
ORACLE = adding()


def every_message(plans: dict[str, str]) -> Iterator[Body]:
    """Each message in the ways that touch a private value: floats, whole numbers, one that has tags."""
    for plan in plans.values():  # only the worker's owner decides; were it done, runs would release results
        yield from (Approve(plan), Approve(plan, ("me",), {}, 5), Deny(plan))
    yield from (Status(), OwnerObjects(), OwnerPlans(), Pending())
    for id in (X, INDEX, TAGGED):
        yield from (Get((id,)), Get((id,), delete=True), Get((W, id)))
        yield from (Copy((id,), (KEPT,)), Get((KEPT,)), Free((KEPT,)))
        yield Put((PutItem(KEPT, Slot(0)), PutItem(id, Slot(0))))  # the second is taken: neither is put
        yield Put((PutItem(KEPT, Pointer("bob", id)),))
        yield from (
            Get((KEPT,)),
            Copy((KEPT,), (ELSE,)),
            Get((ELSE,)),
            Apply("aten.neg", handles(KEPT), {}, (9,)),
        )
        yield from (Transfer((KEPT,), "alice", (77,)), Free((ELSE,)), Free((KEPT,)))
        for to in ("alice", "bob", "eve"):
            yield Transfer((id,), to, (KEPT,), keep=True)
            yield from (Get((KEPT,)), Free((KEPT,)))
        yield from (Transfer((id,), "bob", (KEPT,)), Get((KEPT,)), Transfer((KEPT,), "bob", (id,)))
        yield from (RequireGrad((id,), value=True), Apply("aten.sum", handles(id), {}, (KEPT,)))
        yield from (Backward(KEPT), Backward(KEPT), Grad(id, ELSE), Get((ELSE,)), Get((KEPT,)))
        yield from (Backward(W, Handle(id)), Grad(W, ELSE), Get((ELSE,)), Free((ELSE,)), ZeroGrad((W, id)))
        for op in (
            "aten.eq",
            "aten.gt",
            "aten.index_select",
            "aten.where",
            "aten.div",
            "aten.item",
            "aten.cat",
        ):
            yield Apply(op, handles(W, id), {"dim": 0} if "select" in op else {}, (KEPT,))
            yield from (Get((KEPT,)), List())
        yield from (Apply("aten.add", (Handle(W), Handle(id)), {}, (W,)), Get((W,)))
        for name, plan in plans.items():
            for given in (handles(id), handles(W, id), handles(W, STATE, id), (Gradient(id),), (Slot(0),)):
                for wish in (Return(), Keep(KEPT)):
                    for grad in (False, True):
                        yield Run(plan, given, (wish,), grad=grad)
                        yield Run(plan, given, (wish, wish if wish == Return() else Keep(ELSE)), grad=grad)
                        yield from (Get((W,)), Get((STATE,)), Get((KEPT,)), Get((ELSE,)))
                yield Steps((Run(plan, given, (Keep(KEPT),)), Step("opt.sgd", {}, 0.1, (W,), ((), ()))))
            for source in (
                Handle(id),
                RowsOf(id, 0, 1),
                PickedFrom(id, INDEX, 0, 1),
                PickedFrom(W, INDEX, 0, 1),
            ):
                for inputs in ((Own(),), (Handle(W), Own()), (Handle(W), Filled(1.0), Own())):
                    for first in (Sum(20, each=True), Each(), Mean(), KeptOwn()):
                        member = CohortMember(1.0, (source,), (), (KEPT,) if first == KeptOwn() else ())
                        yield Cohort(
                            plan, inputs, (first, *(Dropped(),) * (len(inputs) - 1)), (member,) * 2, 9.0
                        )
                yield from (Get((KEPT,)), List())
            yield from (FetchPlan(plan), Plans((name,)))
        yield Step("opt.sgd", {}, 0.1, (W, id), ((), ()))
        yield Step("opt.adam", {}, 0.1, (W,), ((id,), (STATE,), (), (KEPT,)))
        yield from (Get((W,)), Get((STATE,)), Search(("#i",)), List())
    yield from (
        Uninstall(tuple(plans.values())),
        Install(plan_id(ORACLE), encode(ORACLE)),
        Free((X, INDEX)),
        Clear(),
    )
    yield List()


def test_no_message_tells(pair: Pair) -> None:
    plans = {}
    for name, graph in {
        "picking": picking(),
        "identity": identity(),
        "adding": adding(),
        "step": stepping(),
    }.items():
        plans[name] = plan_id(graph)
        pair.ask(Install(plan_id(graph), encode(graph), tags=(name,)))
    pair.put(X, torch.tensor([31337.5, 1, 2]), torch.tensor([float("nan"), -1, 3e38]), requires_grad=True)
    pair.put(INDEX, torch.tensor([1, 0]), torch.tensor([31337, -5]))
    pair.put(TAGGED, torch.tensor([1.5]), torch.tensor([31337.5]), tags=("#i",), description="a row")
    pair.put(W, torch.ones(3), requires_grad=True)
    pair.put(STATE, torch.ones(3))
    asked: set[type] = set()
    for body in every_message(plans):
        asked.add(type(body))
        pair.ask(body, [torch.ones(3)])
    assert asked == set(get_args(Body))
    seen = b"".join(pair.replies[0])
    assert b"31337" not in seen
    assert bytes(torch.tensor([31337.5]).view(torch.uint8).tolist()) not in seen


def test_whether_an_op_fails_is_told_to_whom_may_have_the_value(pair: Pair) -> None:
    """A table lookup that fails or not would tell, asked often enough, every element of its index."""
    bob = pair.workers[0]
    me, ann = pair.connections[0], connect(bob, "ann")
    index = put(me, torch.tensor([31337, 0]), private=True, allowed=("ann",))
    table = put(me, torch.ones(2), tags=("#t",))
    picked, run = new_id(), install(me, picking())
    me.call(Apply("aten.index_select", handles(table, index), {"dim": 0}, (picked,)))
    with pytest.raises(PermissionDenied):
        get(me, picked)
    w = put(me, torch.ones(2))
    for grad in (False, True):
        me.call(Run(run, handles(w, index), (Keep(picked),), grad=grad))
        with pytest.raises(PermissionDenied):
            get(me, w)
    with pytest.raises(RemoteExecutionError) as caught:
        ann.call(Apply("aten.index_select", handles(table, index), {"dim": 0}, (new_id(),)))
    assert "31337" not in str(caught.value)


def test_an_approved_plan_gives_no_gradients(pair: Pair) -> None:
    """The gradient of an approved mean of w * x by w would be x."""
    me = pair.connections[0]
    plan, out = install(me, adding()), [new_id(), new_id()]
    pair.workers[0].approve(plan)
    x, w = put(me, torch.full((3,), 5.0), private=True), put(me, torch.ones(3), requires_grad=True)
    keep = tuple(Keep(id) for id in out)
    with pytest.raises(PermissionDenied, match="gradients"):
        me.call(Run(plan, handles(w, x), keep, grad=True))
    me.call(Run(plan, handles(w, x), keep))
    assert get(me, out[1])[0].tolist() == [5.0] * 3
