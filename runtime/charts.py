"""Line charts as inline SVG. Colours are CSS variables of the page, so that light and dark both work.

Knows no runs and no plans: a chart is names and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from planc.draw.marks import safe

WIDTH, HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 14, 38
_LEGEND = 20
_LARGEST = 1e300
"""Magnitude of a value that is drawn: the span of larger ones would be infinite."""
_DOTS = 120
"""Rounds whose values have a dot each; of more, dots would hide the line."""

_STYLE = """\
svg.chart { display: block; width: 100%; height: auto; }
svg.chart text { font-family: inherit; fill: var(--ink); }
svg.chart .grid { stroke: var(--rule); }
svg.chart .tick { font-size: 12px; fill: var(--faint); }
svg.chart .legend { font-size: 13px; }
svg.chart .line { fill: none; stroke-width: 2; } svg.chart .dashed { stroke-dasharray: 5 4; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 16px; }
.charts h3 { margin: 0 0 6px; font-size: 15px; font-weight: 600; }
"""
_COLOURS = ("blue", "orange", "green", "purple", "pink", "red")


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, its CSS classes (a colour of the page, ``dashed``), one value a round.

    A value that is not finite, or next to it, is a gap.
    """

    name: str
    css: str
    values: Sequence[float]


def plain(value: float) -> str:
    """A number as charts show it unless told otherwise."""
    return f"{value:.4g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    show: Callable[[float], str] = plain,
    ceiling: float = math.inf,
    first: int = 1,
    ticks: Callable[[float], str] | None = None,
    base: float = math.inf,
) -> str:
    """Values by round, with a legend above where there are several lines.

    Args:
        title: for who does not see it.
        series: the lines; at least one.
        show: how a value is written.
        ceiling: no tick is above it.
        first: the number of the first round.
        ticks: how a value is written at the axis, where that is another way.
        base: the axis begins here, or lower: 0 for counts.
    """
    rounds = max(len(line.values) for line in series)
    values = [v for line in series for v in line.values if abs(v) <= _LARGEST]
    marks = _ticks(min([*values, base] if values else [0.0]), max(values, default=1.0), ceiling)
    lo, hi = marks[0], marks[-1]
    legend, lines = _legend(series) if len(series) > 1 else ([], 0)
    top = _TOP + _LEGEND * lines

    def x(index: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (index / (rounds - 1) if rounds > 1 else 0.5)

    def y(value: float) -> float:
        return top + (HEIGHT - top - _BOTTOM) * (1 - (value - lo) / (hi - lo))

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{safe(title)}">',
        f"<title>{safe(title)}</title>",
    ]
    for mark in marks:
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>',
            _tick(_LEFT - 8, y(mark) + 4, safe((ticks or show)(mark)), "end"),
        ]
    for index in range(0, rounds, max(1, math.ceil(rounds / 12))):
        parts.append(_tick(x(index), HEIGHT - _BOTTOM + 18, str(first + index)))
    parts.append(_tick((WIDTH + _LEFT - _RIGHT) / 2, HEIGHT - 4, "round"))
    for line in series:
        parts += _line(line, x, y, show, first)
    return "\n".join([*parts, *legend, "</svg>"])


def chart_style() -> str:
    """The rules that charts need, besides those of `planc.draw.style.page_style`."""
    paint = "\n".join(
        f"svg.chart .line.{name} {{ stroke: var({v}); }} svg.chart .dot.{name} {{ fill: var({v}); }}"
        for name, v in ((name, f"--{name}") for name in _COLOURS)
    )
    return f"{_STYLE}{paint}\n"


def colour(index: int) -> str:
    """The CSS class of the line of this number: a colour of the page, over and over."""
    return _COLOURS[index % len(_COLOURS)]


def _line(
    line: Series,
    x: Callable[[int], float],
    y: Callable[[float], float],
    show: Callable[[float], str],
    first: int,
) -> Iterator[str]:
    points = [(i, x(i), y(v), v) for i, v in enumerate(line.values) if abs(v) <= _LARGEST]
    path = " ".join(f"{px:.1f},{py:.1f}" for _, px, py, _ in points)
    yield f'<polyline class="line {line.css}" points="{path}"/>'
    if len(points) > _DOTS:
        return
    for index, px, py, value in points:
        tip = safe(f"{line.name}, round {first + index}: {show(value)}")
        yield (
            f'<circle class="dot {line.css}" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{tip}</title></circle>'
        )


def _tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """The names of the lines above the chart, and how many rows they take."""
    parts: list[str] = []
    left, row = _LEFT, 0
    for line in series:
        width = 26 + 7 * len(line.name) + 16
        if left > _LEFT and left + width > WIDTH:
            left, row = _LEFT, row + 1
        y = 12 + _LEGEND * row
        parts += [
            f'<line class="line {line.css}" x1="{left}" x2="{left + 20}" y1="{y}" y2="{y}"/>',
            f'<text class="legend" x="{left + 26}" y="{y + 4}">{safe(line.name)}</text>',
        ]
        left += width
    return parts, row + 1


def _ticks(lo: float, hi: float, ceiling: float) -> list[float]:
    """About five round numbers that span the values; none above ``ceiling``."""
    span = max(hi - lo, 1e-6, abs(hi) * 2e-3)  # less would be the same text at every tick
    rough = span / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    found = [i * step for i in range(first, max(last, first + 1) + 1)]
    return [t for t in found if t <= ceiling + 1e-9]


__all__ = ["HEIGHT", "WIDTH", "Series", "chart_style", "colour", "line_chart", "plain"]
