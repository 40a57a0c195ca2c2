"""What is asked of clients in a round, and what came of it. Data only: `collecting` has it done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from runtime.counting import Sent
from runtime.errors import RoundFailed
from runtime.federated.members import CohortResult, Member
from runtime.remote.handle import WorkerHandle
from runtime.sums import add_sums

Place = Callable[[Sequence[int], float], Mapping[WorkerHandle, Sequence[Member]]]
"""Clients as members by worker; may send data, for so many seconds at most."""


class Send(Protocol):
    """One cohort message."""

    def __call__(
        self, worker: WorkerHandle, members: Sequence[Member], seconds: float, /, *, hold: bool = False
    ) -> CohortResult:
        """Have members trained at a worker, which has so many seconds; ``hold``: their sum stays there."""
        ...


Tag = TypeVar("Tag")

_NAMED = 8
"""Workers that the text of a failed round names; the error has all."""


@dataclass(frozen=True)
class Work(Generic[Tag]):
    """What is asked of clients.

    Attributes:
        number: of the round.
        clients: who.
        place: makes members of them.
        send: asks them.
        tag: comes back with results that are used in the round after: see `Late`.
        must_answer: whether a lost worker may fail the round, and may be late: not for an evaluation.
    """

    number: int
    clients: tuple[int, ...]
    place: Place
    send: Send
    tag: Tag
    must_answer: bool = True


@dataclass(frozen=True)
class Late(Generic[Tag]):
    """A result of an earlier round: the number and the tag of its `Work`."""

    number: int
    tag: Tag
    result: CohortResult


@dataclass
class Collected(Generic[Tag]):
    """What came of a round's work.

    Attributes:
        results: no client is done in two of them; what `add` took has its sums in ``sums``.
        sums: of all results, by path: added up as they come, so that no more than one is held.
        failed: why clients do not count though their worker answered, by client.
        late: clients that were not done in time.
        dropped: clients that were not done because of their worker.
        reasons: by worker, why clients of it do not count.
        late_results: what came of the round before.
        slowest: by worker, the seconds until its last reply.
        messages, bytes_out, bytes_in: what was sent and came.
    """

    results: list[CohortResult] = field(default_factory=list[CohortResult])
    sums: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    failed: dict[int, str] = field(default_factory=dict[int, str])
    late: list[int] = field(default_factory=list[int])
    dropped: list[int] = field(default_factory=list[int])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    late_results: list[Late[Tag]] = field(default_factory=list[Late[Tag]])
    slowest: dict[str, float] = field(default_factory=dict[str, float])
    messages: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    @property
    def done(self) -> list[int]:
        """The clients that count, in order of their numbers."""
        return sorted(client for result in self.results for client in result.done)

    def add(self, result: CohortResult) -> None:
        """Count a result in."""
        self.sums = add_sums(self.sums, result.sums)
        self.results.append(replace(result, sums={}))

    def merge(self, more: Collected[Tag]) -> None:
        """Take over what came of work that was done again for clients of this."""
        self.sums = add_sums(self.sums, more.sums)
        self.results += more.results
        self.failed |= more.failed
        self.late += more.late
        self.dropped += more.dropped
        self.reasons |= more.reasons
        self.late_results += more.late_results
        self.slowest |= more.slowest
        self.messages += more.messages
        self.bytes_out += more.bytes_out
        self.bytes_in += more.bytes_in

    def count(self, sent: Sent) -> None:
        """Add up what an attempt sent."""
        self.messages += sent.messages
        self.bytes_out += sent.bytes_out
        self.bytes_in += sent.bytes_in


def too_few(number: int, cohort: Sequence[int], collected: Collected[Any], needed: int) -> RoundFailed:
    """Why too few clients contributed, worker by worker."""
    reasons = collected.reasons
    told = [f"worker {id!r}: {why}" for id, why in list(reasons.items())[:_NAMED]]
    if len(reasons) > _NAMED:
        told.append(f"and {len(reasons) - _NAMED} workers more")
    return RoundFailed(
        f"round {number}: {len(collected.done)} of {len(cohort)} clients contributed, {needed} have to: "
        + ("; ".join(told) or "no worker has their data"),
        number=number,
        contributions=len(collected.done),
        needed=needed,
        reasons=reasons,
    )


__all__ = ["Collected", "Late", "Place", "Send", "Work", "too_few"]
