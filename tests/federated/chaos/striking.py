"""`Chaos`: workers of a run that are killed, or stopped, at random moments; and what has to hold then."""

from __future__ import annotations

import math
import random
import signal
import statistics
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from runtime import WorkerHandle
from runtime.federated import Population
from runtime.federated import events as E
from tests.federated.chaos.processes import Fleet, kill
from tests.federated.chaos.training import ROUNDS

LAST = ROUNDS - 4
"""No strike after this round: every one is to be noticed."""


class Chaos:
    """A callback of a run that strikes a worker at a random moment of a round, every few rounds.

    Which rounds, and when in them, follows from the seed; who is there to be struck, from what came before.

    Args:
        fleet: the workers.
        at: the clients.
        seed: of all draws.
        strike: what is done to a worker.
        every: rounds from one strike to the next, at least and at most.
        absent: rounds for which a place stays empty, before another worker joins; None for no other.
        again: whether one that was struck comes back by itself, and may be struck once more.

    Attributes:
        struck: the workers that were, in order.
        seen: all events of the run.
    """

    def __init__(
        self,
        fleet: Fleet,
        at: Population,
        seed: int,
        strike: Callable[[WorkerHandle], None] | None = None,
        *,
        every: tuple[int, int] = (3, 5),
        absent: tuple[int, int] | None = None,
        again: bool = False,
    ) -> None:
        self._fleet = fleet
        self._at = at
        self._draw = random.Random(seed)
        self._strike = strike or (lambda worker: kill(fleet, worker))
        self._every = every
        self._absent = absent
        self._again = again
        self._next = self._draw.randint(1, 3)
        self._away: list[tuple[int, WorkerHandle]] = []
        self._timers: list[threading.Timer] = []
        self.struck: list[WorkerHandle] = []
        self.seen: list[E.Event] = []

    def __call__(self, event: E.Event) -> None:
        self.seen.append(event)
        if isinstance(event, E.RoundStarted):
            if self._next <= event.number <= LAST:
                self._next = event.number + self._draw.randint(*self._every)
                self._prepare(event)
        elif isinstance(event, E.WorkerLost) and self._absent is not None:
            lost = next(worker for worker in reversed(self.struck) if worker.id == event.worker)
            self._away.append((event.number + self._draw.randint(*self._absent), lost))
        elif isinstance(event, E.RoundDone):
            back = [worker for number, worker in self._away if number <= event.number]
            self._away = [one for one in self._away if one[1] not in back]
            for worker in back:
                self._at.add(self._fleet.replace(worker))

    def _prepare(self, event: E.RoundStarted) -> None:
        """Choose who of those at work is struck, and when; somebody is left."""
        alive = [worker for worker in self._at.workers if self._again or worker not in self.struck]
        working = {self._at.home(client) for client in event.cohort}
        victims = [worker for worker in alive if worker in working]
        part = self._draw.random()
        if len(alive) < 2 or not victims:
            return
        victim = self._draw.choice(victims)
        usual = statistics.median([done.seconds for done in of(E.RoundDone, self.seen)] or [0.0])
        self.struck.append(victim)
        self._timers.append(threading.Timer(part * usual, self._strike, [victim]))
        self._timers[-1].start()

    def settle(self) -> None:
        """Wait for what was prepared; the round may have been over before."""
        for timer in self._timers:
            timer.join()

    @property
    def lost(self) -> list[E.WorkerLost]:
        return of(E.WorkerLost, self.seen)

    def check(self, rounds: int = ROUNDS) -> None:
        """All rounds are done, and what is told of each adds up: nobody counts twice or is forgotten."""
        assert [done.number for done in of(E.RoundDone, self.seen)] == list(range(1, rounds + 1))
        for started, done in zip(of(E.RoundStarted, self.seen), of(E.RoundDone, self.seen), strict=True):
            number = started.number
            answers = [event for event in of(E.ClientsDone, self.seen) if event.number == number]
            lost = [event for event in self.lost if event.number == number]
            counted = [client for event in answers for client in event.done]
            dropped = [client for event in lost for client in event.dropped]
            assert not any(event.failed or event.late for event in answers), answers
            assert sorted(counted + dropped) == sorted(started.cohort), (number, counted, dropped)
            assert done.contributions == len(counted)
            assert done.weight == math.fsum(self._at.weights[client] for client in counted)

    def check_strikes(self, least: int) -> None:
        """Who was struck is lost, and nobody else; but of who was asked nothing since, it is not known."""
        unknown = [worker for worker in self.struck if worker in self._at.workers]
        known = [worker.id for worker in self.struck if worker not in unknown]
        assert sorted(event.worker for event in self.lost) == sorted(known)
        assert len(known) >= least
        assert any(event.rescheduled or event.dropped for event in self.lost), (
            "none was struck while it worked"
        )


def of(kind: type, events: list[E.Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


@contextmanager
def limit(seconds: int) -> Generator[None]:
    """Let a test that hangs fail, wherever it waits."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test takes more than {seconds} s: something hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


__all__ = ["Chaos", "limit", "of"]
