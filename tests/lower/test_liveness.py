"""Where values die and which outputs must be copied, on graphs small enough to check by eye."""

from __future__ import annotations

from planc.ir import Graph
from planc.lower.liveness import last_uses, shares_memory
from tests.sketch import Sketch, f32


def test_values_die_where_they_are_read_last() -> None:
    s = Sketch()
    x = s.input("x", f32(2))  # value 0
    a = s.op("aten.exp", x)  # 1
    b = s.op("aten.add", a, x)  # 2
    s.op("aten.neg", b)  # 3: nothing reads it
    c = s.op("aten.mul", a, b)  # 4
    assert last_uses(s.give(c, b)) == {1: [0], 2: [3], 3: [1]}


def test_outputs_are_copied_where_they_are_not_memory_of_their_own() -> None:
    s = Sketch()
    x, c = s.input("x", f32(2, 3)), s.input("c", f32(3))
    made = s.op("aten.add", x, c)
    view = s.op("aten.t", made)
    other = s.op("aten.exp", x)
    turned = s.op("aten.t", s.op("aten.t", other))
    graph = s.give(made, made, view, x, turned, s.op("aten.neg", other))
    assert shares_memory(graph) == [False, True, True, True, True, False]


def test_results_of_a_called_plan_are_copied() -> None:
    inner = Sketch("inner")
    passed: Graph = inner.give(inner.input("x", f32(2)))
    s = Sketch()
    x = s.input("x", f32(2))
    (y,) = s.many("call", (x,), plan=s.subplan(passed))
    assert shares_memory(s.give(y)) == [True]
