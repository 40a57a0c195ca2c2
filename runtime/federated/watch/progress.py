"""A run on the terminal: bars of rounds and clients, and a line a round that stays. Measures nothing."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from planc.draw.figures import size
from planc.draw.marks import clean
from planc.text.suggest import count_of
from runtime.federated.events import (
    CheckpointSkipped,
    ClientsDone,
    Event,
    RoundDone,
    RoundFailed,
    RoundStarted,
    RunDone,
    RunStarted,
    WorkerLost,
    WorkerRefused,
)
from runtime.federated.watch.history import History, RoundRecord, measured

_HEADER = "round   done failed  late     loss  accuracy  messages      bytes  seconds"


class Progress:
    """A callback that shows a run: on a terminal with live bars, elsewhere with plain lines, one a round.

    Args:
        file: where to; standard error unless given, so that standard output stays for results.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._console = Console(file=file or sys.stderr, markup=False, highlight=False, emoji=False)
        self._history = History()
        self._bars: Bars | None = None
        self._rounds = self._clients = None

    def __call__(self, event: Event) -> None:
        self._history.add(event)
        match event:
            case RunStarted():
                self._begin(event)
            case RoundStarted():
                self._show(event.number)
            case ClientsDone():
                self._show(event.number)
            case RoundDone():
                self._line(round_line(self._history.rounds[event.number], event))
                self._advance(event.number)
            case RoundFailed():
                self._line(f"{event.number:>5}   failed: {event.why}")
                self._advance(event.number)
            case WorkerLost() | WorkerRefused():
                self._line(worker_line(event))
            case CheckpointSkipped():
                self._line(f"checkpoint {event.path} skipped: {event.why}")
            case RunDone():
                self.close()
                self._line(f"{count_of(event.rounds, 'round')}, {event.seconds:.1f} s: {event.why}")
            case _:
                pass

    def close(self) -> None:
        """Take the bars away; lines stay. A run that ends with an error has nobody else to do it."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _begin(self, event: RunStarted) -> None:
        self.close()
        more = f", from round {event.first}" if event.first > 1 else ""
        workers = count_of(len(event.workers), "worker")
        self._line(f"{event.clients:,} clients at {workers}, {count_of(event.rounds, 'round')}{more}")
        self._line(_HEADER)
        if not self._console.is_terminal:
            return
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._rounds = self._bars.add_task("rounds", total=event.rounds, completed=event.first - 1, note="")
        self._clients = self._bars.add_task("clients", total=None, note="")
        self._bars.start()

    def _show(self, number: int) -> None:
        """How far the clients of the round have come."""
        if self._bars is None or self._clients is None:
            return
        record = self._history.rounds[number]
        counts = {"failed": len(record.failed), "late": record.late, "dropped": record.dropped}
        note = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        self._bars.update(
            self._clients,
            description=f"clients of round {number}",
            total=record.cohort,
            completed=record.done + len(record.failed) + record.late + record.dropped,
            note=note,
        )

    def _advance(self, number: int) -> None:
        if self._bars is not None and self._rounds is not None:
            self._bars.update(self._rounds, completed=number)

    def _line(self, text: str) -> None:
        # Reasons come from workers: none may write over the terminal, or a line that looks like ours.
        self._console.print(clean(text), soft_wrap=True)


def round_line(record: RoundRecord, done: RoundDone) -> str:
    """The figures of a round; a metric that it does not have is a dash."""
    loss, accuracy = measured(done, "loss"), measured(done, "accuracy")
    return (
        f"{done.number:>5} {done.contributions:>6} {len(record.failed) + record.dropped:>6} {record.late:>5} "
        f"{'-' if loss is None else f'{loss:.4f}':>8} {'-' if accuracy is None else f'{accuracy:.2%}':>9} "
        f"{done.messages:>9,} {size(done.bytes_out + done.bytes_in):>10} {done.seconds:>8.2f}"
    )


def worker_line(event: WorkerLost | WorkerRefused) -> str:
    """What became of a worker's clients."""
    parts = []
    if isinstance(event, WorkerLost) and event.rescheduled:
        parts.append(f"{count_of(len(event.rescheduled), 'client')} rescheduled")
    if event.dropped:
        parts.append(f"{count_of(len(event.dropped), 'client')} dropped")
    what = "lost" if isinstance(event, WorkerLost) else "refused"
    told = f" ({', '.join(parts)})" if parts else ""
    return f"{event.number:>5}   worker {event.worker} {what}: {event.why}{told}"


__all__ = ["Progress", "round_line", "worker_line"]
