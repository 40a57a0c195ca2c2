"""Events of a made-up run, for the tests of what watches runs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from runtime.federated import events as E


def run(rounds: int = 5, first: int = 1, last: int | None = None) -> Iterator[E.Event]:
    """A run of ten clients at two workers, from ``first``; killed after round ``last`` where given.

    In round 2 a client fails, in round 3 worker "b" is lost, round 4 fails.
    """
    config = {"server": "fedavg", "quorum": 0.5, "deadline": None}
    yield E.RunStarted(10, ("a", "b"), rounds, 7, "ab" * 32, config, first)
    for number in range(first, (last or rounds) + 1):
        yield from one_round(number)
    if last is None:
        yield E.CheckpointSaved(rounds, "runs/x/checkpoints/000005")
        yield E.RunDone(rounds, "all rounds were done", 1.5)


def one_round(number: int) -> Iterator[E.Event]:
    yield E.RoundStarted(number, (0, 1, 2, 3))
    yield E.ClientsDone(number, "a", (0, 1), {}, (), 0.1, 1, 1000)
    if number == 3:
        yield E.WorkerLost(number, "b", "no reply in 5 s", (2,), (3,))
        yield E.ClientsDone(number, "a", (2,), {}, (), 0.2, 1, 1000)
    elif number == 2:
        yield E.ClientsDone(number, "b", (2,), {3: "nonsense: fc.weight is NaN"}, (), 0.3, 1, 1000)
    elif number == 4:
        yield E.RoundFailed(number, "1 of 4 clients count, the quorum is 2")
        return
    else:
        yield E.ClientsDone(number, "b", (2,), {}, (3,), 0.3, 1, 1000)
    loss = math.nan if number == 1 else 2.0 / number
    evaluation = {"accuracy": 1 - 0.5 / number, "loss": 2.1 / number}
    slowest = {"a": 0.1 * number, "b": 0.3}
    yield E.RoundDone(number, 0.5, 3, 3.0, {"loss": loss}, evaluation, 2, 1500, 500, slowest)
