"""The page that shows a run of the harness, ``docs/benchmarks.md``, from a `Report`. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Report, Result, cell, seconds

_INTRODUCTION = """# Benchmarks

This page is made by `{command}`; do not edit it. Contenders take turns in one run, one thread each unless a
note says otherwise; a figure is the median over turns of the mean time of a call (and the best turn), a ratio
the median over turns of the ratio to the first row of its table in the same turn. Targets are what the
project aims at; a ratio in **bold** misses its target.

Measured on: {machine}.
"""


def page(report: Report) -> str:
    """The page as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    parts = [_INTRODUCTION.format(command=report.command, machine=machine)]
    for name, rows in report.tables.items():
        parts.append(f"## {name.capitalize()}\n\n" + "\n".join(_rows(rows)) + "\n")
    suite = ""
    for result in report.results:
        if result.suite != suite:
            suite = result.suite
            parts.append(f"## {suite.capitalize()}\n")
        parts.append("\n".join(_result(result)) + "\n")
    return "\n".join(parts)


def _rows(rows: list[dict[str, object]]) -> Iterator[str]:
    yield "| " + " | ".join(rows[0]) + " |"
    yield "| " + " | ".join("---" if name in ("work", "way") else "--:" for name in rows[0]) + " |"
    for row in rows:
        yield f"| {' | '.join(cell(value) for value in row.values())} |"


def _result(result: Result) -> Iterator[str]:
    yield f"### {result.work}\n"
    yield f"{result.note}; target {result.target}\n" if result.target else f"{result.note}\n"
    yield "| way | median | best | ratio |"
    yield "| --- | --: | --: | --: |"
    limit = float(result.target.strip("<=x ")) if result.target else None
    for place, figure in enumerate(result.figures):
        missed = limit is not None and place == len(result.figures) - 1 and figure.ratio > limit
        ratio = f"**{figure.ratio:.2f}x**" if missed else f"{figure.ratio:.2f}x"
        yield f"| {figure.name} | {seconds(figure.median)} | {seconds(figure.minimum)} | {ratio} |"
