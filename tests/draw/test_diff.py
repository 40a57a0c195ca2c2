"""What changed between two plans: found, local, and nothing that changes is missed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings

import planc
from planc.diff import Difference, diff
from planc.ir import Graph
from planc.ir.program import Program
from tests.strategies import graphs

BASE = """\
plan f(x: f32[b, 4], y: f32[b], param w: f32[4] "fc.w") -> (r: f32[b], s: f32[]) where b in 1..64 {
  h = relu(x * w)
  g = tanh(h)
  return sum(g, dim=[1]), sum(y)
}
"""


def changed(before: str, after: str) -> Difference:
    assert before in BASE
    return diff(planc.parse(BASE), planc.parse(BASE.replace(before, after)))


def told(found: Difference, *parts: str) -> list[tuple[str | None, str | None]]:
    return [(change.before, change.after) for change in found.of(*parts)]


def test_equal_plans_do_not_differ() -> None:
    found = diff(planc.parse(BASE), planc.parse(BASE.replace("relu(x * w)", "relu(x*w)  # a comment")))
    assert (found.same, found.changes, found.leaves) == (True, (), ())
    assert found.unchanged == 5


def test_an_inserted_node_is_one_change() -> None:
    found = changed("g = tanh(h)", "g = tanh(abs(h))")
    # The node that reads the new one reads another value; those below it are as they were.
    assert told(found, "node") == [
        (None, "v2: f32[b, 4] = aten.abs(v1)"),
        ("v2: f32[b, 4] = aten.tanh(v1)", "v3: f32[b, 4] = aten.tanh(v2)"),
    ]
    assert found.unchanged == 4
    assert [change.part for change in found.changes] == ["node", "node"]
    assert found.leaves == ()


def test_a_changed_attribute() -> None:
    (node,) = told(changed("sum(g, dim=[1])", "sum(g, dim=[-1])"), "node")
    assert node[0] is not None
    assert node[1] is not None
    assert node[0].endswith("dim=[1])")
    assert node[1].endswith("dim=[-1])")


def test_an_attribute_of_another_type_is_another() -> None:
    plans = [planc.parse(f"plan f(x: i64[2]) {{ return x + {number} }}") for number in ("1", "true")]
    assert not diff(*plans).same


def test_a_rewired_output_is_told() -> None:
    found = changed("return sum(g, dim=[1]), sum(y)", "return y, sum(sum(g, dim=[1]))")
    assert ("r: f32[b]", "r: f32[b], which is another value") in told(found, "output")
    assert "result r: is now also computed from y" in found.leaves
    assert "result s: is now also computed from x, fc.w" in found.leaves


def test_what_now_leaves() -> None:
    found = changed("sum(y)\n", "sum(y) + sum(x)\n")
    assert found.leaves == ("result s: is now also computed from x",)
    more = diff(
        planc.parse("plan f(x: f32[b]) -> (r: f32[]) { return sum(x) }"),
        planc.parse("plan f(x: f32[b], z: f32[]) -> (r: f32[b], t: f32[]) { return x * z, z * 2 }"),
    )
    assert more.leaves == (
        "result r: is f32[b], was f32[]",
        "result r: is now also computed from z (not there before)",
        "result t: f32[] is new, computed from z",
    )


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("plan f", "plan other", "name"),
        ("1..64", "1..65", "dim"),
        ('param w: f32[4] "fc.w"', 'param w: f32[4] "fc.v"', "input"),
        ('param w: f32[4] "fc.w"', 'buffer w: f32[4] "fc.w"', "input"),
        ("x: f32[b, 4], y: f32[b]", "y: f32[b], x: f32[b, 4]", "input"),
        ("s: f32[]", "u: f32[]", "output"),
    ],
)
def test_each_part_is_compared(before: str, after: str, part: str) -> None:
    assert changed(before, after).of(part)


def test_an_order_does_not_hide_behind_another_change() -> None:
    found = changed("x: f32[b, 4], y: f32[b]", "z: f32[2], y: f32[b], x: f32[b, 4]")
    assert [str(change.before)[:6] for change in found.of("input")] == ["None", "order:"]


def test_subplans_and_constants() -> None:
    source = (
        "plan g(x: f32[2]) -> f32[2] { const k: f32[2] = [1.0, 2.0] return relu(x) * k }"
        "plan f(x: f32[2]) { return g(x) }"
    )
    found = diff(planc.parse(source), planc.parse(source.replace("relu", "tanh").replace("1.0", "1.5")))
    assert {change.plan for change in found.of("node")} == {"g"}
    assert [change.kind for change in found.of("constant")] == ["removed", "added"]


def test_subplans_of_one_name_are_not_taken_for_each_other() -> None:
    parsed = planc.parse(
        "plan f(x: f32[2]) { plan g(x: f32[2]) -> f32[2] { return relu(x) }"
        " plan h(x: f32[2]) -> f32[2] { return tanh(x) } return g(x) - h(x) }"
    ).graph
    graph = replace(parsed, subplans=tuple(replace(sub, name="g") for sub in parsed.subplans))
    first, second, minus = graph.nodes
    swapped = (replace(first, attrs=second.attrs), replace(second, attrs=first.attrs), minus)
    found = diff(planc.Plan(Program(graph, {})), planc.Plan(Program(replace(graph, nodes=swapped), {})))
    assert found.of("node")


@given(graphs(), graphs())
@settings(max_examples=40, deadline=None)
def test_plans_are_the_same_exactly_when_their_ids_are(a: Graph, b: Graph) -> None:
    one, two = planc.Plan(Program(a, {})), planc.Plan(Program(b, {}))
    assert diff(one, one).same
    assume(one.id != two.id)
    assert not diff(one, two).same
