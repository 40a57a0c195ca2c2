"""Charts: well-formed, complete, and bounded."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from runtime.charts import HEIGHT, Series, line_chart

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
    root = parse(line_chart("loss", [Series("a", "orange dashed", values), Series("b", "blue", values)]))
    dots = list(root.iter(f"{SVG}circle"))
    assert len(dots) == 2 * sum(math.isfinite(v) for v in values)
    assert all(0 <= float(dot.get("cy") or "nan") <= HEIGHT for dot in dots)


def test_accuracy_ends_at_100_percent() -> None:
    shown = texts(line_chart("accuracy", [Series("a", "blue", [0.61, 0.97])], "{:.0%}".format, ceiling=1.0))
    assert "100%" in shown
    assert "110%" not in shown


def test_titles_are_escaped() -> None:
    svg = line_chart("a <b> & c", [Series("<i>", "blue", [1.0]), Series("j", "orange dashed", [1.0])])
    assert "<i>" in texts(svg)


def test_the_legend_is_above_the_lines() -> None:
    lines = [Series(f"worker {i}", "blue", [0.0, 1.0]) for i in range(9)]
    root = parse(line_chart("t", lines))
    legend = [float(e.get("y") or "nan") for e in root.iter(f"{SVG}text") if e.get("class") == "legend"]
    assert len(set(legend)) > 1, "nine names do not fit one row"
    assert max(legend) < min(float(dot.get("cy") or "nan") for dot in root.iter(f"{SVG}circle"))


def test_counts_begin_at_zero() -> None:
    assert texts(line_chart("t", [Series("a", "blue", [20.0, 20.0])], base=0.0))[0] == "0"


def test_many_rounds_have_no_dots_and_rounds_count_from_the_first() -> None:
    root = parse(line_chart("t", [Series("a", "blue", [float(i) for i in range(500)])], first=301))
    assert not list(root.iter(f"{SVG}circle"))
    assert "301" in texts(line_chart("t", [Series("a", "blue", [1.0, 2.0])], first=301))
