"""``python -m benchmarks [SUITE ...] [--quick] [--json FILE]``: run suites and print tables."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import messages, rounds, steps
from benchmarks.harness import Report, Result, cell, machine, seconds
from benchmarks.page import page

TIMED = {"steps": steps.run, "rounds": rounds.run}
COUNTED = {"messages": messages.run}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"all if none: {', '.join([*TIMED, *COUNTED])}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and clients, to see that it works")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page of Markdown")
    options = parser.parse_args(arguments)
    unknown = [s for s in options.suites if s not in {**TIMED, **COUNTED}]
    if unknown:
        parser.error(f"there is no suite {unknown[0]!r}; there are {', '.join([*TIMED, *COUNTED])}")
    torch.set_num_threads(options.threads)
    wanted = options.suites or [*COUNTED, *TIMED]
    report = Report(machine(), " ".join(["python -m benchmarks", *(arguments or sys.argv[1:])]))
    console = Console()
    console.print(", ".join(f"{k}: {v}" for k, v in report.machine.items()))
    for name in wanted:
        if name in COUNTED:
            report.tables[name] = list(COUNTED[name](options.quick))
            console.print(_counts(name, report.tables[name]))
        else:
            for result in TIMED[name](options.quick):
                report.results.append(result)
                console.print(_times(result))
    if options.page:
        options.page.write_text(page(report), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2))
    return 0


def _times(result: Result) -> Table:
    table = Table(title=f"{result.suite}: {result.work}", title_justify="left", caption=result.note)
    for column in ("way", "median", "min", "ratio"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for figure in result.figures:
        table.add_row(figure.name, seconds(figure.median), seconds(figure.minimum), f"{figure.ratio:.2f}x")
    if result.target:
        table.add_row("[dim]target[/dim]", "", "", f"[dim]{result.target}[/dim]")
    return table


def _counts(name: str, rows: list[dict[str, object]]) -> Table:
    table = Table(title=name, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("work", "way") else "right")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
