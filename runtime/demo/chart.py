"""Line charts as inline SVG. Colours are CSS variables of the page, so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 38


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, its CSS class, one value a round."""

    name: str
    css: str
    values: Sequence[float]


def line_chart(title: str, series: Sequence[Series], percent: bool = False) -> str:
    """Values by round, counted from 1, with a legend where there are several lines."""
    rounds = max(len(line.values) for line in series)
    values = [v for line in series for v in line.values if math.isfinite(v)]
    ticks = _ticks(min(values, default=0.0), max(values, default=1.0), 1.0 if percent else math.inf)
    lo, hi = ticks[0], ticks[-1]

    def x(number: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((number - 1) / (rounds - 1) if rounds > 1 else 0.5)

    def y(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - lo) / (hi - lo))

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in ticks:
        text = f"{tick * 100:.4g}%" if percent else f"{tick:.4g}"
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>',
            _tick(_LEFT - 8, y(tick) + 4, text, "end"),
        ]
    for number in _round_ticks(rounds):
        parts.append(_tick(x(number), HEIGHT - _BOTTOM + 18, str(number)))
    parts.append(_tick((WIDTH + _LEFT - _RIGHT) / 2, HEIGHT - 4, "round"))
    for line in series:
        points = [(x(i + 1), y(v), v) for i, v in enumerate(line.values) if math.isfinite(v)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(f'<polyline class="line {line.css}" points="{path}"/>')
        for i, (px, py, value) in enumerate(points):
            shown = f"{value:.2%}" if percent else f"{value:.4f}"
            tip = escape(f"{line.name}, round {i + 1}: {shown}")
            parts.append(
                f'<circle class="dot {line.css}" cx="{px:.1f}" cy="{py:.1f}" r="3">'
                f"<title>{tip}</title></circle>"
            )
    parts += _legend(series) if len(series) > 1 else []
    return "\n".join([*parts, "</svg>"])


def _tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _legend(series: Sequence[Series]) -> Iterator[str]:
    """Names of the lines, at the top on the right: curves of a training that works are not there."""
    left = WIDTH - _RIGHT - 8 - 7 * max(len(line.name) for line in series) - 26
    for i, line in enumerate(series):
        at = _TOP + 16 + 18 * i
        yield f'<line class="line {line.css}" x1="{left}" x2="{left + 20}" y1="{at}" y2="{at}"/>'
        yield f'<text class="legend" x="{left + 26}" y="{at + 4}">{escape(line.name)}</text>'


def _ticks(lo: float, hi: float, ceiling: float) -> list[float]:
    """About five round numbers that span the values; none above ``ceiling``."""
    span = max(hi - lo, 1e-6)
    rough = span / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    found = [i * step for i in range(first, max(last, first + 1) + 1)]
    return [t for t in found if t <= ceiling + 1e-9]


def _round_ticks(rounds: int) -> list[int]:
    every = max(1, math.ceil(rounds / 12))
    return list(range(1, rounds + 1, every))


__all__ = ["Series", "line_chart"]
