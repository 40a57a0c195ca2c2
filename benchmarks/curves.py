"""Straight lines through what was measured, and plots of both as SVG for the harness' page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 780, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 30, 44
_WIDE = 40
"""From this ratio of the largest to the smallest on, an axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """``intercept + slope * x``, and which part of the variance of y it explains."""

    slope: float
    intercept: float
    r2: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line of least squares.

    Raises:
        ValueError: fewer than two different x.
    """
    if len(set(xs)) < 2:
        raise ValueError("a line needs two points of different x")
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    line = Line(slope, mean_y - slope * mean_x, 1.0)
    total = sum((y - mean_y) ** 2 for y in ys)
    left = sum((y - line.at(x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Line(line.slope, line.intercept, 1 - left / total if total else 1.0)


@dataclass(frozen=True)
class Series:
    """Measured points of one name, and the line through them if there is one."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    line: Line | None = None


def plot(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """Points as dots, y from 0 up; lines across the range of x.

    Args:
        title: for who does not see it.
        x_name, y_name: what the axes are, with units.
        series: at least one, of at least one point each.
    """
    xs = sorted({x for one in series for x, _ in one.points})
    most = max(max(y for one in series for _, y in one.points), 1e-9)
    across = _axis(xs[0], xs[-1])
    step = _step(most)
    top = step * math.ceil(most / step)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * across(x),
            _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - y / top),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for mark in range(round(top / step) + 1):
        y = at(xs[0], mark * step)[1]
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{mark * step:,.6g}", "end"))
    for x in xs:
        parts.append(_text(at(x, 0)[0], _HEIGHT - _BOTTOM + 18, f"{x:,.10g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_name, "middle"))
    parts.append(_text(8, 14, y_name, "start"))
    left = _LEFT + 150
    for one in series:
        parts += _drawn(one, at, xs[0], xs[-1])
        parts.append(f'<circle class="{one.css}" cx="{left}" cy="10" r="4"/>')
        parts.append(_text(left + 8, 14, one.name, "start"))
        left += 24 + 7 * len(one.name)
    return "".join(parts) + "</svg>"


def _drawn(
    one: Series, at: Callable[[float, float], tuple[float, float]], first: float, last: float
) -> list[str]:
    parts: list[str] = []
    if one.line is not None:  # as many pieces as a logarithmic axis needs to look smooth
        places = [first + (last - first) * i / 60 for i in range(61)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, max(0.0, one.line.at(x)))) for x in places)
        parts.append(f'<polyline class="{one.css}" points="{path}"/>')
    for x, y in one.points:
        cx, cy = at(x, y)
        tip = escape(f"{one.name}: {x:,.6g}, {y:,.6g}")
        parts.append(
            f'<circle class="{one.css}" cx="{cx:.1f}" cy="{cy:.1f}" r="4"><title>{tip}</title></circle>'
        )
    return parts


def _axis(first: float, last: float) -> Callable[[float], float]:
    """Where a value is between the ends, from 0 to 1."""
    if first == last:
        return lambda x: 0.5
    if first > 0 and last / first >= _WIDE:
        return lambda x: math.log(x / first) / math.log(last / first)
    return lambda x: (x - first) / (last - first)


def _step(most: float) -> float:
    """A round number that goes about five times into a value."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


__all__ = ["Line", "Series", "fit", "plot"]
