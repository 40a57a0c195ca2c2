"""One round's work at the workers: sent out, waited for, and done again elsewhere where a worker is lost.

Each client counts once at most: a result belongs to an attempt, and what an attempt brings after it was given
up is thrown away. Knows nothing of models: what is sent, and what the results mean, is the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch

from planc.errors import DecodeError, PlancError
from runtime.errors import DeadlineExceeded, RoundFailed, WorkerError
from runtime.federated.dispatch import Dispatch, Outcome, within
from runtime.federated.events import Callback, ClientsDone, WorkerLost, WorkerRefused
from runtime.federated.faults import in_words, means_lost
from runtime.federated.members import CohortResult, Member
from runtime.federated.population import Population
from runtime.federated.settings import Settings
from runtime.federated.work import Collected, Late, Work
from runtime.remote.handle import WorkerHandle

Replace = Callable[[WorkerHandle], WorkerHandle | None]

_BEGUN_LATE = 1.0
"""Seconds for an attempt to find that its round is over."""


Tag = TypeVar("Tag")


@dataclass(frozen=True)
class _Attempt(Generic[Tag]):
    worker: WorkerHandle
    clients: tuple[int, ...]
    work: Work[Tag]


class Collector(Generic[Tag]):
    """Has clients' work done, and says what became of the workers.

    Args:
        population: the clients; told of workers that are lost.
        settings: what to do about time and faults.
        tell: takes events.
        replace: gives another worker for one that is lost, or None.
    """

    def __init__(
        self,
        population: Population,
        settings: Settings,
        tell: Callback,
        replace: Replace | None = None,
    ) -> None:
        self._population = population
        self._settings = settings
        self._tell = tell
        self._replace = replace
        self._dispatch: Dispatch[CohortResult] = Dispatch()
        self._open: dict[int, _Attempt[Tag]] = {}
        self._behind: dict[int, _Attempt[Tag]] = {}
        self._late: list[Late[Tag]] = []

    def collect(self, work: Work[Tag]) -> Collected[Tag]:
        """All that comes of some work, until all is done or its time is over. It always ends.

        Raises:
            RoundFailed: a worker was lost and the settings say "fail", or data could not be sent in time.
            PlancError: the work itself is at fault: the plan does not fit the data, say.
        """
        round = _Round(work, self._settings)
        try:
            self._submit(round, list(work.clients))
            while self._open:
                outcome = self._dispatch.wait(self._limit(round))
                if outcome is None:
                    self._overdue(round)
                else:
                    self._take(round, outcome)
        finally:
            for attempt in list(self._open.values()):  # an error ends the round: nothing of it comes later
                self._give_up(attempt.worker)
        if work.must_answer:
            round.out.late_results, self._late = self._late, []
        return round.out

    def kept_states(self, number: int) -> dict[int, dict[str, torch.Tensor]]:
        """What clients keep at workers after round ``number``, fetched. Who does not give it is lost with it.

        Raises:
            DeadlineExceeded: it did not come in time.
        """
        while True:
            outcome = within(time.monotonic() + self._settings.deadline, self._population.kept_states)
            if outcome is None:
                raise DeadlineExceeded("what clients keep was not fetched in time")
            if outcome.value is not None:
                return outcome.value
            worker = self._named(outcome.error)
            if worker is None:
                assert outcome.error is not None
                raise outcome.error
            self._give_up(worker)
            why = in_words(outcome.error) + self._without(worker)
            self._tell(WorkerLost(number, worker.id, why, (), ()))

    def close(self) -> None:
        """Let go of all threads."""
        self._open.clear()
        self._behind.clear()
        self._dispatch.close()

    # -- sending ---------------------------------------------------------------------------------------------

    def _submit(self, round: _Round[Tag], clients: list[int]) -> None:
        """Have the work of clients done where their data is."""
        work = round.work
        behind = set() if work.must_answer else {attempt.worker for attempt in self._behind.values()}
        for worker, members in self._placed(round, clients).items():
            if worker in behind:  # a round waits for it, an evaluation does not
                round.out.late += (member.client for member in members)
                continue
            attempt = _Attempt(worker, tuple(member.client for member in members), work)

            def job(worker: WorkerHandle = worker, members: Sequence[Member] = members) -> CohortResult:
                seconds = round.until - time.monotonic()
                return work.send(worker, members, seconds) if seconds > 0 else _nothing(members)

            self._open[self._dispatch.submit(worker, job)] = attempt

    def _placed(self, round: _Round[Tag], clients: list[int]) -> Mapping[WorkerHandle, Sequence[Member]]:
        """Clients by worker, as members. A worker that takes no data is lost; others then get it."""
        while clients:
            # Half of what is left: a worker that hangs is lost while there is time for another.
            most = min(self._settings.patience or math.inf, max(0.0, round.until - time.monotonic()) / 2)
            outcome = within(round.end, partial(self._place, round.work, clients, most))
            if outcome is None:
                raise self._failed(round, "data could not be sent to the workers in time")
            round.out.count(outcome.sent)
            if outcome.value is not None:
                placed = {member.client for members in outcome.value.values() for member in members}
                round.out.dropped += (client for client in clients if client not in placed)
                return outcome.value
            error = outcome.error
            worker = self._named(error)
            if worker is None:
                assert error is not None
                raise error
            there = [client for client in clients if self._population.home(client) is worker]
            again = self._lose(round, worker, f"it took no data: {in_words(error)}", there)
            clients = [*(client for client in clients if client not in set(there)), *again]
        return {}

    def _place(
        self, work: Work[Tag], clients: list[int], seconds: float
    ) -> Mapping[WorkerHandle, Sequence[Member]]:
        """Those clients that are anywhere, as members."""
        left = [client for client in clients if self._population.home(client) is not None]
        return work.place(left, seconds) if left else {}

    def _named(self, error: BaseException | None) -> WorkerHandle | None:
        """The worker that an error names."""
        if not isinstance(error, WorkerError):
            return None
        return next((w for w in self._population.workers if w.id == error.worker), None)

    # -- what comes ------------------------------------------------------------------------------------------

    def _take(self, round: _Round[Tag], outcome: Outcome[CohortResult]) -> None:
        worker = outcome.worker
        behind = self._behind.pop(outcome.attempt, None)
        attempt = behind or self._open.pop(outcome.attempt)
        assert worker is not None
        round.out.count(outcome.sent)
        error = outcome.error
        if outcome.value is not None:
            error = _contradiction(attempt.clients, outcome.value)
        if error is None:
            assert outcome.value is not None
            self._answered(round, attempt, outcome, outcome.value, behind is not None)
        elif means_lost(error):
            self._submit(round, self._lose(round, worker, in_words(error), () if behind else attempt.clients))
        elif isinstance(error, WorkerError):
            self._refused(round, attempt, in_words(error), behind is not None)
        else:
            raise error

    def _answered(
        self,
        round: _Round[Tag],
        attempt: _Attempt[Tag],
        outcome: Outcome[CohortResult],
        result: CohortResult,
        behind: bool,
    ) -> None:
        id = attempt.worker.id
        out = round.out
        if behind:
            self._late.append(Late(attempt.work.number, attempt.work.tag, result))
        else:
            out.add(result)
            out.failed |= result.failed
            out.late += result.late
            if result.late:
                out.reasons[id] = f"{len(result.late)} of its clients were late"
            elif result.failed:
                client, why = next(iter(result.failed.items()))
                out.reasons[id] = f"{len(result.failed)} of its clients failed; client {client}: {why}"
        took = time.monotonic() - round.start
        out.slowest[id] = max(took, out.slowest.get(id, 0.0))
        sent = outcome.sent
        self._tell(
            ClientsDone(
                attempt.work.number,
                id,
                result.done,
                dict(result.failed),
                result.late,
                outcome.seconds,
                sent.messages,
                sent.bytes_out + sent.bytes_in,
            )
        )

    def _refused(self, round: _Round[Tag], attempt: _Attempt[Tag], why: str, behind: bool) -> None:
        id = attempt.worker.id
        dropped = () if behind else attempt.clients
        round.out.reasons[id] = why
        round.out.dropped += dropped
        self._tell(WorkerRefused(round.work.number, id, why, dropped))
        self._fail_if_asked(round, id, why)

    # -- faults ----------------------------------------------------------------------------------------------

    def _limit(self, round: _Round[Tag]) -> float:
        """When the first of the attempts under way is overdue."""
        started = self._dispatch.started()
        return min((self._due(round, n, since) for n, (_, since) in started.items()), default=round.end)

    def _due(self, round: _Round[Tag], number: int, since: float) -> float:
        if since >= round.until:
            return since + _BEGUN_LATE
        patience = self._settings.patience
        if patience is None or number in self._behind:
            return round.end
        return min(round.end, since + patience)

    def _overdue(self, round: _Round[Tag]) -> None:
        """Whoever should have answered by now hangs."""
        now = time.monotonic()
        for number, (worker, since) in self._dispatch.started().items():
            due = self._due(round, number, since)
            # One that is gone by now was given up as another's clients were to go to its worker.
            if now < due or not (number in self._open or number in self._behind):
                continue
            attempt = self._open.get(number)
            if (
                attempt is not None
                and self._settings.late == "use"
                and round.work.must_answer
                and due >= round.end
            ):
                self._behind[number] = self._open.pop(number)
                self._wait_on(round, attempt)
            else:
                why = f"no reply came within {now - since:.1f} s: it hangs, or is gone"
                self._submit(
                    round, self._lose(round, worker, why, () if attempt is None else attempt.clients)
                )

    def _wait_on(self, round: _Round[Tag], attempt: _Attempt[Tag]) -> None:
        """A worker gets a round more; what of this round is queued behind its work is not done."""
        id = attempt.worker.id
        round.out.late += attempt.clients
        round.out.reasons[id] = "no reply came in time; it may still count in the next round"
        self._tell(ClientsDone(round.work.number, id, (), {}, attempt.clients, 0.0, 0, 0))

    def _lose(self, round: _Round[Tag], worker: WorkerHandle, why: str, clients: Sequence[int]) -> list[int]:
        """Count on a worker no more. Returns those of its clients that are to be done elsewhere."""
        settings = self._settings
        gone = [*clients, *(c for c in self._give_up(worker) if c not in set(clients))]
        why += self._without(worker)
        again: list[int] = []
        if settings.on_failure == "reschedule" and time.monotonic() < round.until:
            again = [c for c in gone if round.again(c) and self._population.home(c) is not None]
        dropped = [c for c in gone if c not in set(again)]
        round.out.reasons[worker.id] = why
        round.out.dropped += dropped
        self._tell(WorkerLost(round.work.number, worker.id, why, tuple(again), tuple(dropped)))
        self._fail_if_asked(round, worker.id, why)
        return again

    def _without(self, worker: WorkerHandle) -> str:
        """Take a worker out of the population, and perhaps another in. What more there is to tell of it."""
        told = ""
        lost = self._population.lose(worker)
        if lost.states:
            told += f"; the kept state of {len(lost.states)} clients is lost, they start afresh"
        if lost.clients:
            told += f"; the data of {len(lost.clients)} clients was only there"
        other = self._replace(worker) if self._replace is not None else None
        if other is not None:
            self._population.add(other)
            told += f"; {other.id} takes its place"
        return told

    def _give_up(self, worker: WorkerHandle) -> list[int]:
        """Forget a worker's attempts; the clients of those of this round."""
        clients: list[int] = []
        for number in self._dispatch.give_up(worker):
            attempt = self._open.pop(number, None)
            self._behind.pop(number, None)
            if attempt is not None:
                clients += attempt.clients
        return clients

    def _fail_if_asked(self, round: _Round[Tag], worker: str, why: str) -> None:
        if self._settings.on_failure == "fail" and round.work.must_answer:
            raise self._failed(round, f"worker {worker!r} failed, and on_failure is 'fail': {why}")

    def _failed(self, round: _Round[Tag], why: str) -> RoundFailed:
        return RoundFailed(
            f"round {round.work.number}: {why}",
            number=round.work.number,
            contributions=len(round.out.done),
            needed=self._settings.needed(len(round.work.clients)),
            reasons=round.out.reasons,
        )


class _Round(Generic[Tag]):
    """The times and the results of some work that is under way."""

    def __init__(self, work: Work[Tag], settings: Settings) -> None:
        self.work = work
        self.start = time.monotonic()
        self.until = self.start + settings.deadline
        self.end = self.until + settings.grace
        self.out: Collected[Tag] = Collected()
        self._retries = settings.retries
        self._again: dict[int, int] = {}

    def again(self, client: int) -> bool:
        """Whether a client may be done elsewhere once more; counts it."""
        times = self._again.get(client, 0)
        self._again[client] = times + 1
        return times < self._retries


def _nothing(members: Sequence[Member]) -> CohortResult:
    """What comes of members whose turn came when the time was over: no message is sent for them."""
    late = tuple(member.client for member in members)
    return CohortResult((), {}, late, 0.0, {}, {}, {}, {}, torch.zeros(0, dtype=torch.float64))


def _contradiction(clients: Sequence[int], result: CohortResult) -> PlancError | None:
    """What is wrong with a result that does not say of each client asked, and of no other, what became."""
    told = [*result.done, *result.failed, *result.late]
    if sorted(told) == sorted(clients):
        return None
    return DecodeError(
        f"asked for {len(clients)} clients, it answered of {len(told)}, or of others, or twice"
    )


__all__ = ["Collector", "Replace"]
