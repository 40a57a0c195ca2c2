"""What the demo shows in a terminal: a bar while it works, and lines that stay. Measures nothing."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from runtime.demo.results import Results
from runtime.demo.training import Trained


class Screen:
    """Lines on ``console``, with a live bar below them where it is a terminal.

    Args:
        json: standard output belongs to the JSON object: only the bar is shown, and on standard error.
    """

    def __init__(self, json: bool = False) -> None:
        self._quiet = json
        self._console = Console(
            file=sys.stderr if json else sys.stdout, markup=False, highlight=False, emoji=False
        )
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counted]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, text: str = "") -> None:
        """A line that stays; not with JSON."""
        if not self._quiet:
            self._console.print(text)

    def path(self, label: str, path: Path) -> None:
        """A file's name on a line of its own, however long it is: people copy it."""
        if not self._quiet:
            self._console.print(f"{label} {path}", soft_wrap=True)

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Generator[Task]:
        """A bar for a piece of work; one that only moves where ``total`` is not known."""
        number = self._progress.add_task(title, total=total, counted=f"0/{total}" if total else "")
        try:
            yield Task(self._progress, number, total)
        finally:
            self._progress.remove_task(number)

    def round_header(self) -> None:
        """What stands over the lines of the rounds."""
        self.line()
        self.line("round    loss    held-out loss    accuracy    messages       bytes    seconds")

    def round(self, trained: Trained, size: str) -> None:
        """One line a round. ``size`` is its bytes as text."""
        figures = trained.figures
        self.line(
            f"{trained.number:>5}  {trained.loss:>6.4f}    {trained.held_out.loss:>13.4f}    "
            f"{trained.held_out.accuracy:>8.1%}    {figures.messages:>8,}    {size:>8}    "
            f"{figures.seconds:>7.2f}"
        )

    def comparison(self, results: Results) -> None:
        """The table of the four ways, and what its reader must know."""
        self.line()
        self.line(results.work())
        if not self._quiet:
            table = Table(box=SIMPLE, pad_edge=False, show_edge=False)
            table.add_column("way")
            for name in ("messages", "bytes", "seconds"):
                table.add_column(name, justify="right")
            for cells in results.table():
                table.add_row(*cells)
            self._console.print(table)
            self.line()
        for note in results.notes():
            self.line(note)


class Task:
    """A bar that is being shown."""

    def __init__(self, progress: Progress, number: TaskID, total: int | None) -> None:
        self._progress = progress
        self._number = number
        self._total = total
        self._done = 0

    def advance(self) -> None:
        """One of ``total`` is done."""
        self._done += 1
        self._progress.update(self._number, completed=self._done, counted=f"{self._done}/{self._total}")

    def rename(self, title: str) -> None:
        """Something else is being done now."""
        self._progress.update(self._number, description=title)


__all__ = ["Screen", "Task"]
