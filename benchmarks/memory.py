"""What a worker and the process hold while a client works on: the curves have to be flat."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

import planc
from runtime import VirtualWorker

POINTS = 10
WIDTH = 20
"""Characters of the longest bar."""


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Curves of two loops: eager operations whose results are dropped, and training steps by a plan.

    A row is a point of a curve; its bar (in the column of ways) draws the memory of the process.
    """
    for work, times, make in (
        ("eager operations", 500 if quick else 10_000, _eager),
        ("plan calls", 50 if quick else 1_000, _plan),
    ):
        worker = VirtualWorker("bob")
        turn = make(worker)
        for _ in range(times // POINTS):  # caches fill, and what is compiled is compiled
            turn()
        rows = list(_curve(worker, turn, times))
        highest = max(row["resident KiB"] for row in rows) or 1
        for row in rows:
            yield {"work": work, "way": "#" * round(WIDTH * row["resident KiB"] / highest), **row}


def _curve(worker: VirtualWorker, turn: Callable[[], None], times: int) -> Iterator[dict[str, int]]:
    for point in range(POINTS + 1):
        if point:
            for _ in range(times // POINTS):
                turn()
        gc.collect()
        yield {
            "turns": point * times // POINTS,
            "objects": len(worker.worker),
            "bytes at the worker": worker.worker.nbytes,
            "resident KiB": _resident(),
        }


def _eager(worker: VirtualWorker) -> Callable[[], None]:
    x = worker.send(torch.randn(8, 8))
    last = [x]

    def turn() -> None:
        """One operation, on what the one before it made."""
        last[0] = torch.sub(x, last[0])

    return turn


def _plan(worker: VirtualWorker) -> Callable[[], None]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x, y = torch.randn(8, 16), torch.randint(0, 4, (8,))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    step = planc.train_step(net, nn.functional.cross_entropy, optimizer, x, y).send(worker)
    given = worker.send(x), worker.send(y)

    def turn() -> None:
        step(*given)

    return turn


def _resident() -> int:
    """The memory of this process that is in RAM, in KiB; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])
