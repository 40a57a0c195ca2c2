"""Charts: well-formed, complete, and bounded."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from runtime.demo.chart import HEIGHT, Series, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter(f"{SVG}text")]


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
