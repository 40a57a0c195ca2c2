"""Interleaved timing: every contender takes its turn in every round, so that drift hits all alike.

A figure is the median (and the minimum) over rounds of the mean time of one call within a round; a ratio is
the median over rounds of the ratio to the baseline in the same round.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Contender = Callable[[], Any]
OURS = ("plan", "FederatedAveraging", "Federation")
"""Words in the names of planc's own ways."""


@dataclass(frozen=True)
class Figure:
    """One contender's times in seconds a call, and its ratio to the baseline."""

    name: str
    median: float
    minimum: float
    ratio: float
    calls: int


@dataclass(frozen=True)
class Result:
    """One measured piece of work."""

    suite: str
    work: str
    baseline: str
    figures: tuple[Figure, ...]
    note: str = ""
    target: str = ""


@dataclass
class Report:
    """Everything that a run of the harness found."""

    machine: Mapping[str, Any]
    command: str
    peers: bool = False
    results: list[Result] = field(default_factory=list[Result])
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, "list[dict[str, Any]]"])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    suite: str,
    work: str,
    contenders: Mapping[str, Contender],
    *,
    rounds: int = 9,
    seconds: float = 0.1,
    warmup: int = 3,
    note: str = "",
    target: str = "",
) -> Result:
    """Time contenders against the first of them.

    Args:
        suite: the group that the work belongs to.
        work: what is done; the same in every contender.
        contenders: by name; the first is the baseline.
        rounds: how often each takes its turn.
        seconds: how long a turn takes about; at least one call.
        warmup: calls of each before anything is timed.
        note: for the reader.
        target: what was aimed at, as text.
    """
    names = list(contenders)
    calls: dict[str, int] = {}
    for name, run in contenders.items():
        for _ in range(warmup):
            run()
        calls[name] = max(1, int(seconds / max(_timed(run, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            order = names if turn % 2 == 0 else names[::-1]
            for name in order:
                times[name].append(_timed(contenders[name], calls[name]))
            gc.collect()
    finally:
        if was_enabled:
            gc.enable()
    base = times[names[0]]
    figures = tuple(
        Figure(
            name,
            statistics.median(times[name]),
            min(times[name]),
            statistics.median(t / b for t, b in zip(times[name], base, strict=True)),
            calls[name],
        )
        for name in names
    )
    return Result(suite, work, names[0], figures, note, target)


def _timed(run: Contender, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def missed(result: Result, figure: Figure) -> bool:
    """Whether a reader is to see that a figure is not what was aimed at.

    A target in other words than a ratio (``<= 0.3 us a node``) is judged elsewhere, in `benchmarks.targets`.
    Without a target it is planc's own ways that must not be slower than the baseline, in the suite of steps.
    """
    ours = figure.name != result.baseline and any(w in figure.name for w in OURS)
    limit = re.fullmatch(r"<= ([\d.]+)x", result.target)
    if limit is not None:
        last = [f for f in result.figures if any(w in f.name for w in OURS)][-1:]
        return figure in last and figure.ratio > float(limit[1])
    return ours and result.suite in ("steps", "rounds") and figure.ratio > 1


def seconds(value: float) -> str:
    """A time as people read it."""
    if value < 1e-3:
        return f"{value * 1e6:.1f} us"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def cell(value: object) -> str:
    """A count or a word as a table shows it."""
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
