"""Clients at work without rounds: each is started by itself and comes back by itself, wherever workers fail.

A client counts once at most: a result belongs to an attempt, and what an attempt brings after it was given up
is thrown away. Knows nothing of models: what is sent, and what results mean, is the caller's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runtime.counting import Sent, count_own_messages
from runtime.errors import RoundFailed, WorkerError
from runtime.federated.dispatch import Dispatch, Outcome
from runtime.federated.events import Callback, ClientsDone, WorkerLost, WorkerRefused
from runtime.federated.faults import in_words, means_lost
from runtime.federated.members import CohortResult, Member
from runtime.federated.population import Population
from runtime.federated.settings import Settings
from runtime.remote.handle import WorkerHandle

_NOTHING = Sent()
_LATE = "it was not done in time"


@dataclass(frozen=True)
class Flight:
    """One client's training.

    Attributes:
        number: counted from 0, in the order in which they were started.
        client: who.
        version: of the model that it starts from: how many rounds that had behind it.
        attempt: how many workers were lost under it.
    """

    number: int
    client: int
    version: int
    attempt: int = 0


@dataclass(frozen=True)
class Landing:
    """What came of a flight.

    Attributes:
        flight: which.
        worker: the id of where it was, or "".
        result: what its worker answered, if the client is done; else None.
        why: the client does not count; "" if it does.
        answered: whether the worker said so itself.
        seconds: from sending to the reply.
        sent: the messages.
    """

    flight: Flight
    worker: str
    result: CohortResult | None
    why: str
    answered: bool = False
    seconds: float = 0.0
    sent: Sent = _NOTHING


Place = Callable[[Sequence[Flight], float], Mapping[WorkerHandle, Sequence[Member]]]
"""Flights as members by worker, within so many seconds; may send data."""
SendOne = Callable[[WorkerHandle, Member, Flight, float], CohortResult]
"""One client's message to a worker, which has so many seconds for it."""


@dataclass(frozen=True)
class _Waiting:
    """A flight, and where its client's data is."""

    flight: Flight
    worker: WorkerHandle
    member: Member


class Flights:
    """The clients that are at work, and those that came back and were not taken yet.

    Args:
        population: the clients; told of workers that are lost.
        settings: what to do about time and faults.
        ordered: whether results are taken in the order in which clients were started, not as they come.
        place: makes members of flights.
        send: has one trained.
        tell: takes events.
        another: gives another worker for one that is lost, or None.

    Attributes:
        round: the number that events say.
    """

    def __init__(
        self,
        population: Population,
        settings: Settings,
        ordered: bool,
        place: Place,
        send: SendOne,
        tell: Callback,
        another: Callable[[WorkerHandle], WorkerHandle | None] | None = None,
    ) -> None:
        self.round = 0
        self._population = population
        self._settings = settings
        self._ordered = ordered
        self._place = place
        self._send = send
        self._tell = tell
        self._another = another
        self._dispatch: Dispatch[CohortResult] = Dispatch()
        self._data: list[Sent] = []
        self._queue: deque[_Waiting] = deque()
        self._open: dict[int, _Waiting] = {}
        self._landed: dict[int, Landing] = {}  # by the flight's number, as they came
        self._order: dict[int, Flight] = {}  # all that were not taken yet, as they were started

    def __len__(self) -> int:
        return len(self._order)

    @property
    def under_way(self) -> list[Flight]:
        """All that were not taken yet, in the order in which they were started."""
        return list(self._order.values())

    def sent_data(self) -> list[Sent]:
        """What was sent since this was asked last, to have data where it is needed."""
        sent, self._data = self._data, []
        return sent

    def start(self, flights: Iterable[Flight]) -> None:
        """Have clients trained where their data is; one message each.

        Raises:
            RoundFailed: a worker is lost and the settings say "fail".
            PlancError: the work itself is at fault.
        """
        left = list(flights)
        self._order |= {flight.number: flight for flight in left}
        while left:
            lost = [flight for flight in left if self._population.home(flight.client) is None]
            for flight in lost:
                self._land(Landing(flight, "", None, "no worker is left that has its data"))
            left = [flight for flight in left if flight not in lost]
            by_client = {flight.client: flight for flight in left}
            try:
                placed = self._members(left)
            except WorkerError as error:
                worker = next((w for w in self._population.workers if w.id == error.worker), None)
                if worker is None:
                    raise
                self._lose(worker, f"it took no data: {in_words(error)}", [])
                continue
            for worker, members in placed.items():
                for member in members:
                    self._queue.append(_Waiting(by_client[member.client], worker, member))
            break
        self._feed()

    def _members(self, flights: Sequence[Flight]) -> Mapping[WorkerHandle, Sequence[Member]]:
        with count_own_messages() as sent:
            self._data.append(sent)
            return self._place(flights, self._patience()) if flights else {}

    def take(self) -> Landing:
        """The next client that came back, or failed to. Waits for one, but for none beyond its deadline.

        Raises:
            RoundFailed: nobody is at work; or a worker is lost and the settings say "fail".
            PlancError: the work itself is at fault.
        """
        self._feed()
        while True:
            number = next(iter(self._order if self._ordered else self._landed), None)
            if number is not None and number in self._landed:
                del self._order[number]
                landing = self._landed.pop(number)
                self._say(landing)
                return landing
            if not self._open:
                raise RoundFailed(f"round {self.round}: nobody is at work", number=self.round)
            outcome = self._dispatch.wait(self._limit())
            if outcome is None:
                self._overdue()
            else:
                self._arrived(outcome)

    def rest(self, wait: bool = True) -> None:
        """Start nobody until the next `take`; wait for those at work, or try them again then."""
        until = time.monotonic() + (self._patience() if wait else 0.0)
        while self._open:
            outcome = self._dispatch.wait(until)
            if outcome is None:
                for waiting in self._open.values():
                    self._dispatch.give_up(waiting.worker)
                self._queue.extendleft(self._open.values())
                self._open.clear()
                return
            waiting = self._open.pop(outcome.attempt)
            if outcome.value is not None:
                self._answered(waiting, outcome, outcome.value)
            else:  # what is wrong will be found when it is tried again
                self._queue.appendleft(waiting)

    def close(self) -> None:
        """Forget all that is under way, and let go of the threads."""
        self._dispatch.close()
        self._open.clear()
        self._queue.clear()
        self._landed.clear()
        self._order.clear()

    # -- what comes ------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Give each worker that has nothing to do its next client."""
        busy = {waiting.worker for waiting in self._open.values()}
        left: deque[_Waiting] = deque()
        for waiting in self._queue:
            worker = waiting.worker
            if worker in busy:
                left.append(waiting)
                continue
            busy.add(worker)
            job = partial(self._send, worker, waiting.member, waiting.flight, self._settings.deadline)
            self._open[self._dispatch.submit(worker, job)] = waiting
        self._queue = left

    def _arrived(self, outcome: Outcome[CohortResult]) -> None:
        waiting = self._open.pop(outcome.attempt)
        worker, flight = waiting.worker, waiting.flight
        error, result = outcome.error, outcome.value
        if result is not None:
            self._answered(waiting, outcome, result)
            self._feed()
            return
        assert error is not None
        if means_lost(error):
            self._lose(worker, in_words(error), [flight])
            return
        why = in_words(error)
        self._land(Landing(flight, worker.id, None, why, False, outcome.seconds, outcome.sent))
        if not isinstance(error, WorkerError):
            raise error
        self._tell(WorkerRefused(self.round, worker.id, why, (flight.client,)))
        self._fail_if_asked(worker, why)
        self._feed()

    def _answered(self, waiting: _Waiting, outcome: Outcome[CohortResult], result: CohortResult) -> None:
        flight = waiting.flight
        done = flight.client in result.done
        why = "" if done else result.failed.get(flight.client, _LATE)
        found = result if done else None
        self._land(Landing(flight, waiting.worker.id, found, why, True, outcome.seconds, outcome.sent))

    def _say(self, landing: Landing) -> None:
        """Tell of an answer when it is taken: it belongs to that round."""
        client, sent, why = landing.flight.client, landing.sent, landing.why
        if not landing.answered:
            return
        self._tell(
            ClientsDone(
                self.round,
                landing.worker,
                () if why else (client,),
                {client: why} if why and why != _LATE else {},
                (client,) if why == _LATE else (),
                landing.seconds,
                sent.messages,
                sent.bytes_out + sent.bytes_in,
            )
        )

    def _land(self, landing: Landing) -> None:
        self._landed[landing.flight.number] = landing

    # -- faults ----------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """Seconds that a worker has for one client."""
        most = self._settings.deadline + self._settings.grace
        return most if self._settings.patience is None else min(most, self._settings.patience)

    def _limit(self) -> float:
        """When the first of the attempts that have begun is overdue."""
        patience = self._patience()
        started = self._dispatch.started().values()
        return min((since for _, since in started), default=time.monotonic()) + patience

    def _overdue(self) -> None:
        """Whoever should have answered by now hangs."""
        now, patience = time.monotonic(), self._patience()
        for worker, since in list(self._dispatch.started().values()):
            if now - since >= patience:
                self._lose(worker, f"no reply came within {now - since:.1f} s: it hangs, or is gone", [])

    def _lose(self, worker: WorkerHandle, why: str, flights: Sequence[Flight]) -> None:
        """Count on a worker no more; its clients are done elsewhere, from the model that they had."""
        settings = self._settings
        given_up = [self._open.pop(number, None) for number in self._dispatch.give_up(worker)]
        queued = [waiting for waiting in self._queue if waiting.worker is worker]
        self._queue = deque(waiting for waiting in self._queue if waiting.worker is not worker)
        gone = [*flights, *(found.flight for found in (*given_up, *queued) if found is not None)]
        lost = self._population.lose(worker)
        if lost.states:
            why += f"; the kept state of {len(lost.states)} clients is lost, they start afresh"
        if lost.clients:
            why += f"; the data of {len(lost.clients)} clients was only there"
        other = self._another(worker) if self._another is not None else None
        if other is not None:
            self._population.add(other)
            why += f"; {other.id} takes its place"
        again = [
            flight
            for flight in gone
            if settings.on_failure == "reschedule"
            and flight.attempt < settings.retries
            and self._population.home(flight.client) is not None
        ]
        dropped = [flight for flight in gone if flight not in again]
        for flight in dropped:
            self._land(Landing(flight, worker.id, None, why))
        self._tell(
            WorkerLost(
                self.round, worker.id, why, tuple(f.client for f in again), tuple(f.client for f in dropped)
            )
        )
        self._fail_if_asked(worker, why)
        self.start(replace(flight, attempt=flight.attempt + 1) for flight in again)

    def _fail_if_asked(self, worker: WorkerHandle, why: str) -> None:
        if self._settings.on_failure == "fail":
            raise RoundFailed(
                f"round {self.round}: worker {worker.id!r} failed, and on_failure is 'fail': {why}",
                number=self.round,
                reasons={worker.id: why},
            )


__all__ = ["Flight", "Flights", "Landing"]
