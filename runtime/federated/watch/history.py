"""The events of a run, gathered: one record a round, and who was lost, refused or failed. Shows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.federated.evaluation import CLIENTS
from runtime.federated.events import (
    CheckpointSaved,
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


@dataclass
class RoundRecord:
    """What is known of one round so far.

    Attributes:
        number: counted from 1.
        cohort: how many clients were drawn.
        done: how many of them count.
        failed: (client, worker, why) of each that failed.
        late: how many were not finished in time.
        dropped: how many do not count because their worker was lost or refused.
        seconds: by worker, all that its replies of this round took.
        end: how it ended; None while it goes on.
    """

    number: int
    cohort: int = 0
    done: int = 0
    failed: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    late: int = 0
    dropped: int = 0
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    end: RoundDone | RoundFailed | None = None

    @property
    def result(self) -> RoundDone | None:
        """Its figures, where it gave a new model."""
        return self.end if isinstance(self.end, RoundDone) else None

    def add(self, event: ClientsDone) -> None:
        """One reply more."""
        self.done += len(event.done)
        self.late += len(event.late)
        self.failed += [(client, event.worker, why) for client, why in event.failed.items()]
        self.seconds[event.worker] = self.seconds.get(event.worker, 0.0) + event.seconds


@dataclass
class History:
    """A run as far as its events tell it.

    Attributes:
        start: how it began; the last time, where it was stopped and resumed.
        resumed: the rounds before which it was resumed.
        rounds: by number, in order.
        lost, refused: workers that were, and when.
        checkpoints: those that were written.
        skipped: those that were damaged.
        end: how it ended; None while it goes on, or where it was stopped.
    """

    start: RunStarted | None = None
    resumed: list[int] = field(default_factory=list[int])
    rounds: dict[int, RoundRecord] = field(default_factory=dict[int, RoundRecord])
    lost: list[WorkerLost] = field(default_factory=list[WorkerLost])
    refused: list[WorkerRefused] = field(default_factory=list[WorkerRefused])
    checkpoints: list[CheckpointSaved] = field(default_factory=list[CheckpointSaved])
    skipped: list[CheckpointSkipped] = field(default_factory=list[CheckpointSkipped])
    end: RunDone | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> History:
        """All of them, in the order in which they came."""
        history = cls()
        for event in events:
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        """One event more."""
        match event:
            case RunStarted():
                if self.start is not None or event.first > 1:
                    self.resumed.append(event.first)
                self.start, self.end = event, None
                self._forget(event.first)
            case RoundStarted():
                self.rounds[event.number] = RoundRecord(event.number, len(event.cohort))
            case ClientsDone():
                self._round(event.number).add(event)
            case WorkerLost():
                self.lost.append(event)
                self._round(event.number).dropped += len(event.dropped)
            case WorkerRefused():
                self.refused.append(event)
                self._round(event.number).dropped += len(event.dropped)
            case RoundDone() | RoundFailed():
                self._round(event.number).end = event
            case CheckpointSaved():
                self.checkpoints.append(event)
            case CheckpointSkipped():
                self.skipped.append(event)
            case RunDone():
                self.end = event

    def results(self) -> list[RoundDone]:
        """The rounds that gave a new model."""
        return [record.result for record in self.rounds.values() if record.result is not None]

    def last(self, name: str) -> float | None:
        """The newest value of a metric, see `measured`: of a round with evaluation, where there is one."""
        values = [(bool(done.evaluation), measured(done, name)) for done in self.results()]
        known = [(evaluated, value) for evaluated, value in values if value is not None]
        best = [value for evaluated, value in known if evaluated] or [value for _, value in known]
        return best[-1] if best else None

    def reasons(self) -> Counter[str]:
        """How many clients failed for each reason, the commonest first."""
        return Counter(why for record in self.rounds.values() for _, _, why in record.failed)

    def stragglers(self) -> dict[str, Straggler]:
        """By worker, how long its rounds took; the slowest on average first."""
        found: dict[str, list[float]] = {}
        last = Counter[str]()
        for done in self.results():
            if done.slowest:
                last[max(done.slowest, key=lambda worker: done.slowest[worker])] += 1
            for worker, seconds in done.slowest.items():
                found.setdefault(worker, []).append(seconds)
        made = {
            worker: Straggler(len(seconds), sum(seconds) / len(seconds), max(seconds), last[worker])
            for worker, seconds in found.items()
        }
        return dict(sorted(made.items(), key=lambda item: (-item[1].mean, item[0])))

    def _round(self, number: int) -> RoundRecord:
        return self.rounds.setdefault(number, RoundRecord(number))

    def _forget(self, first: int) -> None:
        """Rounds from ``first`` on are done once more: what was told of them before counts no longer."""
        self.rounds = {number: record for number, record in self.rounds.items() if number < first}
        self.lost = [event for event in self.lost if event.number < first]
        self.refused = [event for event in self.refused if event.number < first]
        self.checkpoints = [event for event in self.checkpoints if event.number < first]


@dataclass(frozen=True, slots=True)
class Straggler:
    """How long a worker's part of its rounds took, in seconds; and in how many rounds it was the last."""

    rounds: int
    mean: float
    worst: float
    last: int


def measured(done: RoundDone, name: str) -> float | None:
    """A metric of a round: of the evaluation here, else at clients, else of training."""
    places = ((done.evaluation, name), (done.evaluation, CLIENTS + name), (done.metrics, name))
    return next((metrics[key] for metrics, key in places if key in metrics), None)


def all_measured(done: RoundDone) -> dict[str, float]:
    """All metrics of a round, each named by what it is of."""
    training = {f"training {name}": value for name, value in done.metrics.items()}
    return training | {f"evaluation {name}": value for name, value in done.evaluation.items()}


__all__ = ["History", "RoundRecord", "Straggler", "all_measured", "measured"]
