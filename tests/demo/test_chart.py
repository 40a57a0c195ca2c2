"""Phases of a step, and the drawing and charts: well-formed, complete, and bounded."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

import planc
from runtime.demo.chart import HEIGHT, Series, line_chart
from runtime.demo.drawing import draw
from runtime.demo.phases import Phase, classify, scan_of

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter(f"{SVG}text")]


def test_phases_follow_from_the_dataflow(step: planc.Plan) -> None:
    found = scan_of(planc.epoch(step, batch_size=64).graph)
    assert found is not None
    made = classify(found[1])
    ops = {phase: [node.op.removeprefix("aten.") for node in made.of(phase)] for phase in Phase}
    assert ops[Phase.BATCH] == ["index_select", "index_select"]
    assert ops[Phase.FORWARD][0] == "convolution"
    assert ops[Phase.FORWARD][-1] == "nll_loss_forward"
    assert not [op for op in ops[Phase.FORWARD] if "backward" in op]
    assert {"convolution_backward", "nll_loss_backward", "mm"} <= set(ops[Phase.BACKWARD])
    assert "convolution" not in ops[Phase.BACKWARD]
    assert ops[Phase.UPDATE] == ["opt.sgd"]
    assert sorted(made.gradients.values()) == sorted(step.state_dict())


def test_a_plan_without_update_is_all_forward() -> None:
    plan = planc.parse("plan f(x: f32[b, 3], param w: f32[3]) -> f32[b, 3] { return relu(x * w) }")
    assert set(classify(plan.graph).phases) == {Phase.FORWARD}
    assert "forward ↓" in texts(draw(plan.graph))


def test_the_drawing_shows_every_node_and_every_port(step: planc.Plan) -> None:
    plan = planc.epoch(step, batch_size=64)
    svg = draw(plan.graph)
    shown = texts(svg)
    root = parse(svg)
    boxes = [r for r in root.iter(f"{SVG}rect") if "node" in (r.get("class") or "").split()]
    assert len(boxes) == plan.graph.count_nodes() - 1  # the scan is the box around them
    for port in plan.inputs:
        assert port.path in shown
    assert "scan: batches of 64 rows, ((n + 63)//64) times" in shown
    assert "∇ conv1.weight, conv1.bias" in shown
    _, _, width, height = (float(part) for part in (root.get("viewBox") or "").split())
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(name) or "nan") for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height


def test_a_step_itself_can_be_drawn(step: planc.Plan) -> None:
    shown = texts(draw(step.graph))
    assert "backward ↑" in shown
    assert not [text for text in shown if text.startswith("scan")]


@pytest.mark.parametrize(
    "values",
    [[0.5], [0.25, 0.25, 0.25], [0.0, 0.0], [1e-7, 2e-7], [2.3, math.nan, 1.1], [math.nan], [5.0, 40000.0]],
    ids=str,
)
def test_charts_stay_within_their_frame(values: list[float]) -> None:
    root = parse(line_chart("loss", [Series("a", "train", values), Series("b", "held", values)]))
    dots = list(root.iter(f"{SVG}circle"))
    assert len(dots) == 2 * sum(math.isfinite(v) for v in values)
    assert all(0 <= float(dot.get("cy") or "nan") <= HEIGHT for dot in dots)


def test_accuracy_ends_at_100_percent() -> None:
    shown = texts(line_chart("accuracy", [Series("a", "held", [0.61, 0.97])], percent=True))
    assert "100%" in shown
    assert "110%" not in shown


def test_titles_are_escaped() -> None:
    svg = line_chart("a <b> & c", [Series("<i>", "held", [1.0]), Series("j", "train", [1.0])])
    assert "<i>" in texts(svg)
