"""Drawings of plans: well-formed, complete, in their frame, and harmless whatever names a plan has."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings

import planc
from planc.draw import Captions, svg
from planc.draw.phases import Phase, classify, scan_of
from planc.errors import InputError
from planc.ir import Graph, Role
from tests.draw.drawings import check_places, rects, texts
from tests.strategies import graphs

SCAN = """\
plan total(w: f32[4], x: f32[n, 4]) -> (a: f32[4], t: f32[n, 4]) {
  plan step(w: f32[4], x: f32[b, 4]) -> f32[4] { return w + sum(x, dim=[0]) }
  a = scan([w], [x], [], body=step, size=2)
  return a, x * 2
}
"""


def long_plan(length: int) -> Graph:
    steps = "".join(f"v{i + 1} = relu(v{i}) * x\n" for i in range(length))
    return planc.parse(f"plan f(x: f32[2]) {{ v0 = x * 2\n{steps} return v{length} }}").graph


def test_phases_follow_from_the_dataflow(step: planc.Plan) -> None:
    found = scan_of(planc.epoch(step, batch_size=64).graph)
    assert found is not None
    made = classify(found[1])
    ops = {phase: [node.op.removeprefix("aten.") for node in made.of(phase)] for phase in Phase}
    assert ops[Phase.BATCH] == ["index_select", "index_select"]
    assert ops[Phase.FORWARD][-1] == "nll_loss_forward"
    assert not [op for op in ops[Phase.FORWARD] if "backward" in op]
    assert {"convolution_backward", "nll_loss_backward", "mm"} <= set(ops[Phase.BACKWARD])
    assert "convolution" not in ops[Phase.BACKWARD]
    assert ops[Phase.UPDATE] == ["opt.sgd"]
    assert sorted(made.gradients.values()) == sorted(step.state_dict())


def test_a_plan_without_update_has_no_phases() -> None:
    plan = planc.parse("plan f(x: f32[b, 3], param w: f32[3]) -> f32[b, 3] { return relu(x * w) }")
    assert set(classify(plan.graph).phases) == {Phase.FORWARD}
    assert not classify(plan.graph).is_training
    shown = texts(svg(plan.graph))
    assert "forward ↓" not in shown
    assert {"plan f", "mul", "reads x", "reads w", "relu", "→ r"} <= set(shown)


def test_what_only_counts_steps_is_part_of_the_update() -> None:
    plan = planc.parse(
        "plan f(x: f32[2], param w: f32[2], buffer n: i64[])"
        " -> (r: f32[], param w: f32[2], buffer n: i64[]) {"
        "  l = sum(x * w) g = opt.sgd([w], [x], [], [], lr=0.1) return l, g, n + 1 }"
    )
    # The gradient is an input here, so nothing is backward: the drawing is an ordinary one.
    made = classify(plan.graph)
    assert made.of(Phase.UPDATE) == [n for n in plan.nodes if n.op in ("opt.sgd", "aten.add")]
    assert not made.is_training
    check_places(svg(plan.graph))


def test_every_node_and_every_port_is_shown(step: planc.Plan) -> None:
    plan = planc.epoch(step, batch_size=64)
    drawn = svg(plan.graph)
    shown = texts(drawn)
    assert len(rects(drawn, "node")) == plan.graph.count_nodes() - 1  # the scan is the box around them
    assert len(rects(drawn, "scan")) == 1
    for port in plan.inputs:
        assert port.path in shown
    (scan,) = [text for text in shown if text.startswith("scan")]
    assert scan.endswith("batches of 64 rows, ((n + 63)//64) times")
    assert {"backward ↑", "∇ conv1: weight, bias", "carried to the next batch"} <= set(shown)
    check_places(drawn)


def test_backward_stands_beside_what_it_reads(step: planc.Plan) -> None:
    drawn = svg(step.graph)
    level = {
        element.get("class", "") + (element[0].text or "").split(":")[0]: float(element.get("y") or "nan")
        for element in rects(drawn, "node")
        if "log_softmax" in (element[0].text or "")
    }
    assert len(level) == 2
    assert len(set(level.values())) == 1


def test_loops_and_what_follows_them() -> None:
    plan = planc.parse(SCAN)
    drawn = svg(plan.graph)
    assert len(rects(drawn, "scan")) == 1
    assert [t for t in texts(drawn) if t.startswith("scan step: batches of 2 rows")]
    check_places(drawn)


def test_a_plan_called_often_is_drawn_once() -> None:
    source = "plan g(x: f32[2]) -> f32[2] { return relu(x) } plan f(x: f32[2]) { return g(g(g(x))) }"
    drawn = svg(planc.parse(source).graph)
    assert texts(drawn).count("call g") == 3
    assert texts(drawn).count("relu") == 1


@given(graphs())
@settings(max_examples=25, deadline=None)
def test_any_plan_can_be_drawn(graph: Graph) -> None:
    check_places(svg(graph))


def test_private_inputs_are_marked_and_what_follows_from_them() -> None:
    plan = planc.parse("plan f(x: f32[2], y: f32[2]) -> (a: f32[2], c: f32[2]) { return x * 2, y + 1 }")
    assert not rects(svg(plan.graph), "secret")
    drawn = svg(plan.graph, ["y"])
    assert len(rects(drawn, "secret")) == 2
    assert texts(drawn).count("private") == texts(drawn).count("from private data") == 1
    with pytest.raises(InputError, match="no input 'z'; it has x, y"):
        svg(plan.graph, ["z"])


def test_many_ports_are_counted_but_never_the_private() -> None:
    inputs = ", ".join(f"a{i}: f32[2]" for i in range(40))
    drawn = svg(planc.parse(f"plan f({inputs}) {{ return a0 + a39 }}").graph, ["a38"])
    assert {"arguments (40)", "and 28 more", "a38"} <= set(texts(drawn))
    assert "a37" not in texts(drawn)


def test_all_of_a_role_are_marked_together() -> None:
    inputs = ", ".join(f"a{i}: f32[2]" for i in range(40))
    drawn = svg(planc.parse(f"plan f({inputs}) {{ return a0 + a39 }}").graph, [f"a{i}" for i in range(40)])
    assert len(rects(drawn, "secret")) == 2
    assert {"all private", "and 29 more", "from private data"} <= set(texts(drawn))
    check_places(drawn)


def test_captions() -> None:
    plan = planc.parse("plan f(x: f32[2]) -> (l: f32[2]) { return x * 2 }")
    captions = Captions({Role.ARGUMENT: "data"}, {Role.ARGUMENT: "sent"}, {"l": "the loss"})
    assert {"data", "sent", "the loss"} <= set(texts(svg(plan.graph, captions=captions)))


def test_hostile_names_stay_text() -> None:
    path = '</text><script>alert(1)</script>\\u202e\\u0000&\\" onload=\\"x'
    graph = planc.parse(f'plan f(x: f32[2] "{path}") {{ return x * 2 }}').graph
    drawn = svg(replace(graph, name="<img src=x>"))  # no valid plan has this name; no drawing relies on it
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "\u202e" not in drawn
    assert "\x00" not in drawn
    assert "plan <img src=x>" in texts(drawn)
    check_places(drawn)


def test_a_drawing_is_linear_in_its_plan() -> None:
    """Twice the nodes, about twice the text and time; long plans go on in columns."""
    plans = [long_plan(n) for n in (500, 1000)]
    start = time.perf_counter()
    sizes = [len(svg(graph)) for graph in plans]
    assert sizes[1] < 2.2 * sizes[0]
    assert time.perf_counter() - start < 5
    assert len({rect.get("x") for rect in rects(svg(plans[0]), "node")}) == 5
