"""The page that shows a run of the harness, ``docs/benchmarks.md``, from a `Report`. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.harness import Report, Result, cell, missed, seconds
from benchmarks.suites import suites
from benchmarks.targets import judged

INTRODUCTION = (
    "Contenders take turns in one run, one thread each unless a note says otherwise; a figure is the median "
    "over turns of the mean time of a call (and the best turn), a ratio the median over turns of the ratio "
    "to the first row of its table in the same turn. Targets are what the project aims at. What is **bold** "
    "misses its target, or loses against its baseline where there is none."
)


def page(report: Report) -> str:
    """The page as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    parts = [
        f"# Benchmarks\n\nThis page is made by `{report.command}`; do not edit it. {INTRODUCTION}\n",
        f"Measured on: {machine}. With plots: `benchmarks/results.html`.\n",
        "## Targets\n\n" + "\n".join(_rows(judged(report))) + "\n",
    ]
    for name, suite in suites().items():
        found = section(report, name)
        if found:
            parts.append(f"## {suite.title}\n\n{suite.about} Reproduce it with `{command(name, report)}`.\n")
            parts.extend("\n".join(lines) + "\n" for lines in found)
    return "\n".join(parts)


def command(name: str, report: Report) -> str:
    """What measures this suite again."""
    return f"python -m benchmarks {name}" + (" --peers" if name == "rounds" and report.peers else "")


def section(report: Report, name: str) -> list[list[str]]:
    """The tables of a suite, each as lines of Markdown."""
    rows = report.tables.get(name)
    return [list(_rows(rows))] if rows else [list(_result(r)) for r in report.results if r.suite == name]


def _rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    rows = list(rows)
    yield "| " + " | ".join(rows[0]) + " |"
    yield "| " + " | ".join("---" if is_text(name) else "--:" for name in rows[0]) + " |"
    for row in rows:
        yield f"| {' | '.join(cell(value) for value in row.values())} |"


def is_text(column: str) -> bool:
    """Whether a column of a table holds words."""
    return column in ("work", "way", "baseline", "verdict")


def _result(result: Result) -> Iterator[str]:
    yield f"### {result.work}\n"
    target = f"target {result.target}" if result.target else ""
    yield "; ".join(part for part in (result.note, target) if part) + "\n"
    yield "| way | median | best | ratio |"
    yield "| --- | --: | --: | --: |"
    for figure in result.figures:
        ratio = f"{figure.ratio:.2f}x"
        shown = f"**{ratio}**" if missed(result, figure) else ratio
        yield f"| {figure.name} | {seconds(figure.median)} | {seconds(figure.minimum)} | {shown} |"


__all__ = ["INTRODUCTION", "command", "is_text", "page", "section"]
