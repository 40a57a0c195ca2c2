"""Which charts a run's page has, and what is in them. Draws nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rich.filesize import decimal

from runtime.charts import Series, colour, line_chart, plain
from runtime.federated.evaluation import CLIENTS
from runtime.federated.events import RoundDone
from runtime.federated.watch.history import History, RoundRecord

_SHARES = ("accuracy", "precision", "recall", "f1")
_LINES = 6
"""Lines in one chart at most: there are as many colours."""
_GAPS = 1000
"""Rounds that a file of events may leave out for each one that it has."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: its title, its lines, and how a value is written."""

    title: str
    series: tuple[Series, ...]
    show: Callable[[float], str] = plain
    ceiling: float = math.inf
    first: int = 1
    base: float = math.inf

    def draw(self) -> str:
        """As SVG."""
        ticks = tick_rate if self.show is rate else None
        return line_chart(
            f"{self.title} by round", self.series, self.show, self.ceiling, self.first, ticks, self.base
        )


def rate(value: float) -> str:
    """A share of one as people read it."""
    return f"{value:.2%}"


def tick_rate(value: float) -> str:
    """The same at an axis, where the numbers are round."""
    return f"{value * 100:.4g}%"


def charts(history: History) -> Iterator[Chart]:
    """The charts that this run has values for."""
    if not history.rounds or not history.results():
        return
    first, last = min(history.rounds), max(history.rounds)
    if last - first >= _GAPS * (len(history.rounds) + 1):
        return  # no run leaves out so many: a file that says so would take all memory
    records = [history.rounds.get(number, RoundRecord(number)) for number in range(first, last + 1)]

    def of(value: Callable[[RoundDone], float]) -> list[float]:
        return [math.nan if r.result is None else value(r.result) for r in records]

    for name in _names(history):
        lines: list[Series] = []
        if any(name in done.metrics for done in history.results()):
            values = of(lambda done, key=name: done.metrics.get(key, math.nan))
            lines.append(Series("training", "orange dashed", values))
        if any(name in done.evaluation for done in history.results()):
            values = of(lambda done, key=name: done.evaluation.get(key, math.nan))
            lines.append(Series("evaluation", "blue", values))
        if any(CLIENTS + name in done.evaluation for done in history.results()):
            values = of(lambda done, key=CLIENTS + name: done.evaluation.get(key, math.nan))
            lines.append(Series("evaluation at clients", "green", values))
        if is_share(name):
            yield Chart(name, tuple(lines), rate, 1.0, first)
        else:
            yield Chart(name, tuple(lines), plain, math.inf, first)
    yield Chart("clients", tuple(_clients(records)), _count, math.inf, first, 0.0)
    yield Chart(
        "messages", (Series("messages", "blue", of(lambda d: d.messages)),), _count, first=first, base=0.0
    )
    sent = Series("to workers", "blue", of(lambda d: d.bytes_out))
    came = Series("back", "orange dashed", of(lambda d: d.bytes_in))
    yield Chart("bytes", (sent, came), _bytes, first=first, base=0.0)
    whole = Series("the round", "blue", of(lambda d: d.seconds))
    yield Chart("seconds", (whole, *_slowest(history, of)), first=first, base=0.0)


def is_share(name: str) -> bool:
    """Whether a metric is a share of one, to judge by the last word of its name."""
    return name.replace("/", "_").replace(".", "_").rpartition("_")[2].lower() in _SHARES


def _names(history: History) -> list[str]:
    """The metrics, those that people look at first before others."""
    found = (part for done in history.results() for part in (done.metrics, done.evaluation))
    names = {name.removeprefix(CLIENTS) for part in found for name in part}
    return sorted(names, key=lambda name: (not is_share(name), not name.endswith("loss"), name))


def _clients(records: list[RoundRecord]) -> Iterator[Series]:
    counts: Mapping[str, tuple[str, list[float]]] = {
        "counted": ("green", [float(r.result.contributions) if r.result else 0.0 for r in records]),
        "failed": ("red", [float(len(r.failed)) for r in records]),
        "late": ("orange", [float(r.late) for r in records]),
        "dropped": ("purple", [float(r.dropped) for r in records]),
    }
    for name, (css, values) in counts.items():
        if name == "counted" or any(values):
            yield Series(name, css, values)


def _slowest(history: History, of: Callable[[Callable[[RoundDone], float]], list[float]]) -> Iterator[Series]:
    """A line a worker, where there are few; else that of the slowest and of the fastest worker."""
    workers = sorted({worker for done in history.results() for worker in done.slowest})
    if len(workers) < _LINES:
        for index, worker in enumerate(workers):
            values = of(lambda done, key=worker: done.slowest.get(key, math.nan))
            yield Series(worker, f"{colour(index + 1)} dashed", values)
        return
    yield Series("slowest worker", "orange dashed", of(lambda d: max(d.slowest.values(), default=math.nan)))
    yield Series("fastest worker", "green dashed", of(lambda d: min(d.slowest.values(), default=math.nan)))


def _count(value: float) -> str:
    return f"{value:,.6g}"


def _bytes(value: float) -> str:
    return decimal(round(value))


__all__ = ["Chart", "charts", "is_share", "rate"]
