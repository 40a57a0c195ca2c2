"""What a federated run tells while it goes on: one frozen dataclass an event, all of it fit for JSON.

Whoever watches a run is a `Callback`. Nothing here prints, writes or decides anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planc.errors import InputError

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on after a stop.

    Attributes:
        clients: how many there are in the population.
        workers: the ids of the workers where they are.
        rounds: the number of the last round that was asked for.
        seed: what all draws are derived from.
        plan_id: the clients' plan.
        config: the settings, each as a short text or number.
        first: the number of the first round that will be done: 1, or more for a run that is resumed.
    """

    clients: int
    workers: tuple[str, ...]
    rounds: int
    seed: int
    plan_id: str
    config: Mapping[str, Setting]
    first: int = 1


@dataclass(frozen=True)
class RoundStarted:
    """A round begins: its number, counted from 1, and the clients that were drawn for it."""

    number: int
    cohort: tuple[int, ...]


@dataclass(frozen=True)
class ClientsDone:
    """A worker answered one cohort message.

    Attributes:
        number: of the round.
        worker: its id.
        done: the clients that count.
        failed: why others do not, by client: "kind: reason".
        late: the clients that the worker did not finish in time.
        seconds: from sending to the reply.
        messages: those sent for it.
        bytes: of the requests and replies.
    """

    number: int
    worker: str
    done: tuple[int, ...]
    failed: Mapping[int, str]
    late: tuple[int, ...]
    seconds: float
    messages: int
    bytes: int


@dataclass(frozen=True)
class WorkerLost:
    """A worker died, hangs or answered nonsense: it is asked nothing any more.

    Attributes:
        number: of the round.
        worker: its id.
        why: what went wrong, and what was lost with it.
        rescheduled: its clients of this round that go to other workers.
        dropped: its clients of this round that do not count.
    """

    number: int
    worker: str
    why: str
    rescheduled: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class WorkerRefused:
    """A worker refused its cohort (permission, approval, quota): its clients are dropped for this round."""

    number: int
    worker: str
    why: str
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class RoundDone:
    """A round is over, and the model is a new one.

    Attributes:
        number: of the round.
        seconds: that it took, evaluation included.
        contributions: how many clients count.
        weight: the sum of their weights.
        metrics: the clients' results of training, weighted means, by name.
        evaluation: what the evaluation gave, by name; empty where none was due.
        messages: those sent in this round.
        bytes_out: of the requests.
        bytes_in: of the replies.
        slowest: by worker, the seconds until its last reply.
    """

    number: int
    seconds: float
    contributions: int
    weight: float
    metrics: Mapping[str, float]
    evaluation: Mapping[str, float]
    messages: int
    bytes_out: int
    bytes_in: int
    slowest: Mapping[str, float]


@dataclass(frozen=True)
class RoundFailed:
    """A round did not reach its quorum: the model is as it was before."""

    number: int
    why: str


@dataclass(frozen=True)
class CheckpointSaved:
    """The state after round ``number`` is on the disk, at ``path``."""

    number: int
    path: str


@dataclass(frozen=True)
class CheckpointSkipped:
    """A checkpoint was damaged, so an older one is taken."""

    path: str
    why: str


@dataclass(frozen=True)
class RunDone:
    """The run is over.

    Attributes:
        rounds: how many rounds the model has behind it, those before a stop included.
        why: which rule ended it, or that all rounds were done.
        seconds: of this run.
    """

    rounds: int
    why: str
    seconds: float


Event = (
    RunStarted
    | RoundStarted
    | ClientsDone
    | WorkerLost
    | WorkerRefused
    | RoundDone
    | RoundFailed
    | CheckpointSaved
    | CheckpointSkipped
    | RunDone
)
Callback = Callable[[Event], None]

_EVENTS: Mapping[str, Any] = {
    event.__name__: event
    for event in (
        RunStarted,
        RoundStarted,
        ClientsDone,
        WorkerLost,
        WorkerRefused,
        RoundDone,
        RoundFailed,
        CheckpointSaved,
        CheckpointSkipped,
        RunDone,
    )
}


def to_json(event: Event) -> dict[str, Any]:
    """An event as plain data for JSON: its fields, and its name under ``"event"``."""
    return {"event": type(event).__name__} | {
        field.name: _plain(getattr(event, field.name)) for field in dataclasses.fields(event)
    }


def from_json(data: Mapping[str, Any]) -> Event:
    """The event that `to_json` made this of, after JSON's own changes (keys are text, tuples are lists).

    Raises:
        InputError: no event has this name, or these fields.
    """
    name = data.get("event")
    kind = _EVENTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError(f"expected an event, one of {', '.join(_EVENTS)}, got {name!r}")
    fields = {key: _frozen(value) for key, value in data.items() if key != "event"}
    if "failed" in fields:
        fields["failed"] = {int(client): str(why) for client, why in fields["failed"].items()}
    try:
        return kind(**fields)
    except TypeError as error:
        raise InputError(f"these are not the fields of {name}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


__all__ = [
    "Callback",
    "CheckpointSaved",
    "CheckpointSkipped",
    "ClientsDone",
    "Event",
    "RoundDone",
    "RoundFailed",
    "RoundStarted",
    "RunDone",
    "RunStarted",
    "Setting",
    "WorkerLost",
    "WorkerRefused",
    "from_json",
    "to_json",
]
