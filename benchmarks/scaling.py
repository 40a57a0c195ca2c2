"""Suite "scaling": how a round grows with clients, cohort, model and workers: time, messages, bytes, memory.

Every engine is measured by `benchmarks.coordinator` in a process of its own; here are the lines through what
it found, and its plots. `benchmarks.planning` makes the planning note's tables of the same rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.coordinator import COHORT, DEMAND, MEMORY, OTHERS, WORKERS, Point
from benchmarks.curves import Line, Series, fit, plot

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
ENGINES = {"here": "in this process", "ray": "on Ray"}
"""Where workers are, and how readers see it."""
LIMIT = 900
"""Seconds that an engine may take."""
_FITTED: Mapping[str, tuple[str, str]] = {
    COHORT: ("cohort", "ms"),
    OTHERS: ("clients", "ms"),
    DEMAND: ("clients", "MiB at most"),
    MEMORY: ("elements", "MiB at most"),
}
"""What has a line through it: by the work, its x and its y."""
_PLOTTED: tuple[tuple[str, str, str], ...] = (
    (COHORT, "cohort", "ms"),
    (OTHERS, "clients", "ms"),
    (DEMAND, "clients", "ms"),
    (DEMAND, "clients", "MiB at most"),
    (WORKERS, "workers", "ms"),
)
_UNITS = {"ms": "ms a round", "MiB at most": "MiB of the coordinator, at most"}
_COLOURS = {"here": "ours", "ray": "other"}


def run(quick: bool = False) -> Iterator[Row]:
    """All rows: what was measured, engine by engine, and the lines through it."""
    for engine in ENGINES:
        found = measured(engine, quick)
        if isinstance(found, str):
            yield row(Point("not measured", f"{ENGINES[engine]}: {found}"))
            continue
        rows = [row(point) for point in found]
        yield from rows
        yield from lines(rows)


def measured(engine: str, quick: bool) -> list[Point] | str:
    """The points of an engine, measured in a new process; or why there are none."""
    wanted = json.dumps({"engine": engine, "quick": quick})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.coordinator", wanted]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"did not finish within {LIMIT} s"
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if found and "why" in found[-1]:
        return str(found[-1]["why"])
    return [Point(**one) for one in found]


def row(point: Point) -> Row:
    """A row of the table."""
    return {
        "work": point.work,
        "way": ENGINES.get(point.way, point.way),
        "clients": point.clients,
        "cohort": point.cohort,
        "elements": point.elements,
        "steps": point.steps,
        "workers": point.workers,
        "messages": point.messages,
        "bytes out": point.bytes_out,
        "bytes in": point.bytes_in,
        "ms": point.ms,
        "MiB at most": point.peak,
    }


def lines(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for each line, which says it in words."""
    for work, (x, y) in _FITTED.items():
        line = fitted(rows, work, x, y)
        if line is not None:
            where = next(row["way"] for row in rows if row["work"] == work)
            xs = [x for x, _ in chosen(rows, work, x, y)]
            yield row(Point(f"{work}: the line", f"{where}: {told(line, x, y, min(xs), max(xs))}"))


def fitted(rows: Iterable[Row], work: str, x: str, y: str, way: str | None = None) -> Line | None:
    """The line through the rows of some work (of one way), if they are enough for one."""
    points = chosen(rows, work, x, y, way)
    return fit(*zip(*points, strict=True)) if len({x for x, _ in points}) > 1 else None


def chosen(
    rows: Iterable[Row], work: str, x: str, y: str, way: str | None = None
) -> list[tuple[float, float]]:
    """The points of some work, as (x, y)."""
    return [
        (float(row[x]), float(row[y]))
        for row in rows
        if row["work"] == work and row[x] is not None and row[y] is not None and way in (None, row["way"])
    ]


def told(line: Line, x: str, y: str, first: float, last: float) -> str:
    """A line in words, between its ends. Lines that should be flat are told by these, not by a slope."""
    unit = y.split()[0]
    if x == "cohort":
        return f"{line.intercept:.3g} {unit} + {line.slope:.3g} {unit} a client, r2 {line.r2:.4f}"
    ends = (f"{line.at(end):.3g} {unit} at {end:,.0f} {x}" for end in (first, last))
    return ", ".join(ends)


def plots(rows: Sequence[Row]) -> str:
    """The plots of a run, for the page of HTML."""
    return "".join(
        f"<h3>{escape(work)}: {_UNITS[y]}</h3>{plot(work, x, _UNITS[y], series)}"
        for work, x, y in _PLOTTED
        if (series := _series(rows, work, x, y))
    )


def _series(rows: Sequence[Row], work: str, x: str, y: str) -> list[Series]:
    named = ((name, css, chosen(rows, work, x, y, name)) for name, css in _named())
    lined = _FITTED.get(work) == (x, y)
    return [
        Series(name, css, points, fitted(rows, work, x, y, name) if lined else None)
        for name, css, points in named
        if points
    ]


def _named() -> Iterator[tuple[str, str]]:
    for engine, name in ENGINES.items():
        yield name, _COLOURS[engine]


__all__ = ["ENGINES", "Row", "chosen", "fitted", "lines", "measured", "plots", "row", "run", "told"]
