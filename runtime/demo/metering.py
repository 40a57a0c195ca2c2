"""What a piece of work took: messages, their bytes, and seconds. Also on how many threads it ran."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from runtime.counting import count_messages


@dataclass(slots=True)
class Figures:
    """Messages to workers, bytes of their frames in both directions, seconds."""

    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def times(self, factor: float) -> Figures:
        """The figures of ``factor`` times the work."""
        return Figures(round(self.messages * factor), round(self.bytes * factor), self.seconds * factor)

    def json(self) -> dict[str, float]:
        """As plain data."""
        return asdict(self)


@contextmanager
def metered() -> Generator[Figures]:
    """Measure the block; the figures are there when it is left."""
    figures = Figures()
    start = time.perf_counter()
    with count_messages() as sent:
        yield figures
    figures.seconds = time.perf_counter() - start
    figures.messages = sent.messages
    figures.bytes = sent.bytes_out + sent.bytes_in


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch use one thread an operation, here and in threads started meanwhile.

    The workers of a round run at the same time, so all cores have work; sums come out the same on every
    number of cores; and threads that wait for each other at every operation are slow on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


__all__ = ["Figures", "metered", "one_thread"]
