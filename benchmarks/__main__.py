"""``python -m benchmarks [SUITE ...]``, or ``planc bench``: run suites, print tables, write pages."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Report, Result, cell, machine, missed, seconds
from benchmarks.html import html
from benchmarks.page import is_text, page
from benchmarks.suites import suites
from benchmarks.targets import judged


def main(arguments: list[str] | None = None) -> int:
    names = list(suites())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"all if none: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="fewer turns and clients, to see that it works")
    parser.add_argument("--peers", action="store_true", help="other tools run the rounds too")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page of Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.suites if name not in names]
    if unknown:
        parser.error(f"there is no suite {unknown[0]!r}; there are {', '.join(names)}")
    torch.set_num_threads(options.threads)
    given = sys.argv[1:] if arguments is None else arguments
    report = Report(machine(), " ".join(["python -m benchmarks", *given]), options.peers)
    console = Console()
    console.print(", ".join(f"{k}: {v}" for k, v in report.machine.items()))
    measure(report, options.suites or names, options.quick, console)
    console.print(_table("targets", judged(report)))
    if options.page:
        options.page.write_text(page(report), encoding="utf-8")
    if options.html:
        options.html.write_text(html(report), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2), encoding="utf-8")
    return 0


def measure(report: Report, names: list[str], quick: bool, console: Console) -> None:
    """Run suites, print what they find, and add it to the report."""
    known = suites(report.peers)
    for name in names:
        suite = known[name]
        if suite.rows is not None:
            report.tables[name] = list(suite.rows(quick))
            console.print(_table(name, report.tables[name]))
        if suite.results is not None:
            for result in suite.results(quick):
                report.results.append(result)
                console.print(_times(result))


def _times(result: Result) -> Table:
    table = Table(title=f"{result.suite}: {result.work}", title_justify="left", caption=result.note)
    for column in ("way", "median", "min", "ratio"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for figure in result.figures:
        ratio = f"{figure.ratio:.2f}x"
        shown = f"[bold]{ratio}[/bold]" if missed(result, figure) else ratio
        table.add_row(figure.name, seconds(figure.median), seconds(figure.minimum), shown)
    if result.target:
        table.add_row("[dim]target[/dim]", "", "", f"[dim]{result.target}[/dim]")
    return table


def _table(name: str, rows: list[dict[str, object]] | list[dict[str, str]]) -> Table:
    table = Table(title=name, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if is_text(column) else "right")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
