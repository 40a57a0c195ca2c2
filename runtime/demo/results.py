"""What a run of the demo gave, and the table that terminal and report both show. Prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

import planc
from runtime.demo.comparison import Way
from runtime.demo.engines import Engine
from runtime.demo.metering import Figures
from runtime.demo.training import Settings, Trained

MARK = "*"
"""Stands behind figures that are extrapolated."""


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run.

    Attributes:
        source: what the images are, for people.
        training, held_out: how many images.
        sending, installing: what it took to put images and plan at the workers, once.
        repeats: how often each of ``ways`` was measured.
        seconds: all of it, from the start of the command.
        engine: where the workers ran.
    """

    settings: Settings
    source: str
    training: int
    held_out: int
    plan: planc.Plan
    sending: Figures
    installing: Figures
    rounds: Sequence[Trained]
    ways: Sequence[Way]
    repeats: int
    seconds: float
    engine: Engine = Engine.IN_PROCESS

    @property
    def accuracy(self) -> float:
        """After the last round."""
        return self.rounds[-1].held_out.accuracy

    def way(self, key: str) -> Way:
        return next(way for way in self.ways if way.key == key)

    def work(self) -> str:
        """What all four ways do, and how it was measured."""
        batches = count(self.ways[0].batches, "batch", "batches")
        best = "" if self.repeats == 1 else f" The best of {self.repeats} turns each."
        return (
            f"All {self.training:,} training images once, in {batches} of up to {self.settings.batch_size}; "
            f"one thread an operation, the workers of a round at the same time.{best}"
        )

    def table(self) -> list[tuple[str, str, str, str]]:
        """A row a way: title, messages, bytes, seconds."""
        return [row(way) for way in self.ways]

    def notes(self) -> list[str]:
        """What the reader of the table must know."""
        out = [
            f"{MARK} {way.title}: measured on {way.measured} of {way.batches} batches, extrapolated to all."
            for way in self.ways
            if way.is_extrapolated
        ]
        out.append(self.engine.note)
        out.append(
            f"Before the first round, once: sending the images ({_traffic(self.sending)}), and installing "
            f"the plan, which is one message more a worker ({_traffic(self.installing)})."
        )
        if self.rounds[0].figures.bytes > self.rounds[-1].figures.bytes:
            out.append(
                "The first round's messages take the optimizer's fresh state along; it stays at the workers."
            )
        return out

    def json(self, model: Path, report: Path) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "planc": planc.__version__,
            "torch": torch.__version__,
            "data": {"source": self.source, "training": self.training, "held_out": self.held_out},
            "workers": self.settings.workers,
            "engine": self.engine.value,
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            "accuracy": self.accuracy,
            "rounds": [trained.json() for trained in self.rounds],
            "plan": {
                "name": self.plan.name,
                "id": self.plan.id,
                "nodes": self.plan.graph.count_nodes(),
                "bytes": len(self.plan.bytes),
            },
            "sending_images": self.sending.json(),
            "installing_plan": self.installing.json(),
            "comparison": [way.json() for way in self.ways],
            "model": str(model),
            "report": str(report),
            "seconds": self.seconds,
        }


def row(way: Way) -> tuple[str, str, str, str]:
    """One way as text; extrapolated figures are marked."""
    mark = MARK if way.is_extrapolated else ""
    figures = way.figures
    return (
        way.title,
        f"{figures.messages:,}{mark}",
        (decimal(figures.bytes) if figures.bytes else "0") + mark,
        f"{figures.seconds:.2f}{mark}",
    )


def _traffic(figures: Figures) -> str:
    return f"{count(figures.messages, 'message', 'messages')}, {decimal(figures.bytes)}"


def count(number: int, one: str, many: str) -> str:
    """``1 round``, ``4 rounds``."""
    return f"{number:,} {one if number == 1 else many}"


__all__ = ["MARK", "Results", "count", "row"]
