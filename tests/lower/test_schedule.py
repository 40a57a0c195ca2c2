"""The order of calls: large gradients wait as what they are computed from, where that saves memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import planc
from planc.ir import Graph
from planc.ir.program import Program
from planc.lower import Executable, bind_tensors, schedule
from planc.lower.calls import Call, Calls
from planc.lower.liveness import roots
from planc.lower.schedule import peak, scheduled
from runtime.interpreter import interpret
from tests.sketch import Sketch, f32

CPU = torch.device("cpu")


def sizes(graph: Graph, calls: tuple[Call, ...]) -> dict[int, int]:
    root = roots(graph, calls, {})
    return {
        r.index: 4 * int(torch.Size(r.type.at({})).numel())
        for call in calls
        for r in call.results
        if root[r.index] == r.index
    }


def branching(wide: int) -> Graph:
    """A large product that waits for the end, beside a chain that needs memory of its own."""
    s = Sketch("branching")
    a, b = s.input("a", f32(wide, 2)), s.input("b", f32(2, wide))
    start = s.op("aten.exp", a)
    product = s.op("aten.mm", start, b)  # wide x wide, from 2 x wide
    chain = s.op("aten.mm", a, b)
    for _ in range(2):
        chain = s.op("aten.softmax", chain, dim=1)
    total = s.op("aten.sum", chain)
    return s.give(s.op("aten.add", product, total))


def order(graph: Graph) -> list[str]:
    return [call.op.removeprefix("aten.") for call in Calls(scheduled).of(graph, {})]


def test_a_large_result_is_made_just_before_it_is_read() -> None:
    graph = branching(1024)
    written = Calls().of(graph, {})
    later = Calls(scheduled).of(graph, {})
    assert order(graph) == ["exp", "mm", "softmax", "softmax", "sum", "mm", "add"]
    assert sorted(map(id, scheduled(graph, written, {}))) == sorted(map(id, written))
    root, bytes_of = roots(graph, written, {}), sizes(graph, written)
    mib = 2**20
    assert peak(graph, written, root, bytes_of) == pytest.approx(12 * mib, rel=0.01)
    assert peak(graph, later, root, bytes_of) == pytest.approx(8 * mib, rel=0.01)


def test_small_graphs_keep_their_order() -> None:
    assert order(branching(64)) == ["exp", "mm", "mm", "softmax", "softmax", "sum", "add"]


def test_an_order_that_saves_nothing_is_left_alone() -> None:
    s = Sketch("straight")
    a, b = s.input("a", f32(1024, 2)), s.input("b", f32(2, 1024))
    first = s.op("aten.mm", a, b)
    small = s.op("aten.exp", a)
    large = s.op("aten.softmax", s.op("aten.softmax", first, dim=1), dim=1)
    graph = s.give(s.op("aten.mm", large, small))
    assert order(graph) == ["mm", "exp", "softmax", "softmax", "mm"]


def test_results_are_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = branching(1024)
    values = [torch.randn(1024, 2), torch.randn(2, 1024)]
    (want,) = interpret(graph, values)
    run = Executable(Program(graph), bind_tensors(graph, values), CPU)
    for _ in range(3):
        assert torch.equal(run(values)[0], want)
    monkeypatch.setattr(schedule, "MANY", 0)
    monkeypatch.setattr(schedule, "_LARGE", 0)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(324, 8), nn.Linear(8, 3)
    net, given = nn.Sequential(*layers), (torch.randn(4, 1, 20, 20), torch.randint(3, (4,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    plan = planc.train_step(net, nn.functional.cross_entropy, optimizer, *given)
    arguments = iter(given)
    values = [plan.state[p.path] if p.role.is_state else next(arguments) for p in plan.inputs]
    bindings = bind_tensors(plan.graph, values)
    assert Calls(scheduled).of(plan.graph, bindings) != Calls().of(plan.graph, bindings)
    want_all = interpret(plan.graph, values, plan.constants)
    run = Executable(plan.program, bindings, CPU)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(values), want_all, strict=True))
