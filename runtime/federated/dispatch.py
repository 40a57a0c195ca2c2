"""Work at workers: at each one after another, at several at once, and never waited for beyond a time.

It knows threads and clocks, no rounds and no messages. What does not come back in time is given up: its
thread is left alone, and whatever it brings later is thrown away.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from runtime.counting import Sent, count_for_this_thread, count_own_messages
from runtime.remote.handle import WorkerHandle

T = TypeVar("T")
_LAST_SECONDS = 5.0
"""How long Python's end waits for jobs that compute in this process."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of one job.

    Attributes:
        attempt: the number that `Dispatch.submit` gave it.
        worker: where it was done; None for a job of `within`.
        value: what it returned; None if it raised.
        error: what it raised.
        seconds: from its start to its end.
        sent: the messages that it sent.
    """

    attempt: int
    worker: WorkerHandle | None
    value: T | None
    error: BaseException | None
    seconds: float
    sent: Sent


@dataclass(eq=False)
class _Attempt(Generic[T]):
    number: int
    worker: WorkerHandle
    job: Callable[[], T] | None
    started: float | None = None

    def take(self) -> Callable[[], T]:
        """The job, once: what it holds is let go of before anybody hears that it is done."""
        job, self.job = self.job, None
        assert job is not None
        return job


class Dispatch(Generic[T]):
    """Runs jobs, each at a worker, in threads that nobody has to wait for.

    A worker has one job at a time. Workers of this process compute in the caller's cores, so no more of them
    are at work at once than there are cores. Not to be used from several threads; jobs may not use it either.

    Args:
        here: how many workers of this process are at work at once; as many as cores if not given.
    """

    def __init__(self, here: int | None = None) -> None:
        self._here = here or os.cpu_count() or 1
        self._changed = threading.Condition()
        self._waiting: deque[_Attempt[T]] = deque()
        self._running: dict[WorkerHandle, _Attempt[T]] = {}
        self._outcomes: deque[Outcome[T]] = deque()
        self._lanes: dict[WorkerHandle, SimpleQueue[Callable[[], None] | None]] = {}
        self._last = 0
        weakref.finalize(self, _end, self._lanes)

    def submit(self, worker: WorkerHandle, job: Callable[[], T]) -> int:
        """Do a job at a worker, behind those that it has. Returns its number."""
        with self._changed:
            self._last += 1
            self._waiting.append(_Attempt(self._last, worker, job))
            self._start()
            return self._last

    def wait(self, until: float) -> Outcome[T] | None:
        """The next outcome, in the order in which they come; None if none came until then.

        What it sent counts as sent by this thread too: see `count_own_messages`.

        Args:
            until: a time of `time.monotonic`. None is returned at once where nothing is under way.
        """
        with self._changed:
            while not self._outcomes:
                left = until - time.monotonic()
                if left <= 0 or not (self._running or self._waiting):
                    return None
                self._changed.wait(left)
            outcome = self._outcomes.popleft()
        count_for_this_thread(outcome.sent)
        return outcome

    def give_up(self, worker: WorkerHandle) -> tuple[int, ...]:
        """Forget a worker's jobs, begun or not; nothing of them comes any more. Returns their numbers."""
        with self._changed:
            gone = [one for one in self._waiting if one.worker is worker]
            self._waiting = deque(one for one in self._waiting if one.worker is not worker)
            running = self._running.pop(worker, None)
            if running is not None:
                gone.insert(0, running)
                # Its thread ends by itself once the job does, if ever; the worker's next job gets a new one.
                self._lanes.pop(worker).put(None)
            came = [one for one in self._outcomes if one.worker is worker]
            self._outcomes = deque(one for one in self._outcomes if one.worker is not worker)
            self._start()
            return (*(one.attempt for one in came), *(one.number for one in gone))

    def started(self) -> dict[int, tuple[WorkerHandle, float]]:
        """The jobs that are at work, by number: where, and since when (of `time.monotonic`)."""
        with self._changed:
            return {
                one.number: (worker, one.started)
                for worker, one in self._running.items()
                if one.started is not None
            }

    def close(self) -> None:
        """Forget everything, and let threads end as soon as they can."""
        with self._changed:
            self._waiting.clear()
            self._running.clear()
            self._outcomes.clear()
            _end(self._lanes)

    def _start(self) -> None:
        """Begin what can begin. The lock is held."""
        left: deque[_Attempt[T]] = deque()
        here = sum(worker.in_process for worker in self._running)
        for attempt in self._waiting:
            worker = attempt.worker
            if worker in self._running or (worker.in_process and here >= self._here):
                left.append(attempt)
                continue
            here += worker.in_process
            attempt.started = time.monotonic()
            self._running[worker] = attempt
            if worker not in self._lanes:
                self._lanes[worker] = _lane(worker.id)
            self._lanes[worker].put(lambda attempt=attempt: self._run(attempt))
        self._waiting = left

    def _run(self, attempt: _Attempt[T]) -> None:
        """One job, in its worker's thread."""
        here = attempt.worker.in_process
        if here and not _computing.begin():
            return
        try:
            outcome = _outcome(attempt.number, attempt.worker, attempt.take())
        finally:
            if here:
                _computing.done()
        with self._changed:
            if self._running.get(attempt.worker) is not attempt:
                return  # it was given up
            del self._running[attempt.worker]
            self._outcomes.append(outcome)
            self._start()
            self._changed.notify_all()


def within(until: float, job: Callable[[], T]) -> Outcome[T] | None:
    """What comes of a job that is at no one worker, in a thread of its own; None if it takes longer.

    Args:
        until: a time of `time.monotonic`.
        job: what to do; it is left alone when the time is over.
    """
    came: SimpleQueue[Outcome[T]] = SimpleQueue()

    def run() -> None:
        came.put(_outcome(0, None, job))

    threading.Thread(target=run, name="planc-round", daemon=True).start()
    try:
        outcome = came.get(timeout=max(0.0, until - time.monotonic()))
    except Empty:
        return None
    count_for_this_thread(outcome.sent)
    return outcome


class _Computing:
    """The jobs that compute in this process.

    Where Python ends while a thread is within torch, the process is aborted ("terminate called without an
    active exception"): so its end, after Ctrl-C say, lets such jobs end, for a while, and begins no others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._over = False
        atexit.register(self._end)

    def begin(self) -> bool:
        """Whether a job may begin; if so, call `done` after it."""
        with self._changed:
            self._count += not self._over
            return not self._over

    def done(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: not self._count, _LAST_SECONDS)


_computing = _Computing()


def _outcome(attempt: int, worker: WorkerHandle | None, job: Callable[[], T]) -> Outcome[T]:
    start = time.monotonic()
    value: T | None = None
    error: BaseException | None = None
    with count_own_messages() as sent:
        try:
            value = job()
        except BaseException as raised:  # whatever it is: who waits must hear of it
            error = raised
    return Outcome(attempt, worker, value, error, time.monotonic() - start, sent)


def _lane(name: str) -> SimpleQueue[Callable[[], None] | None]:
    """A thread for one worker's jobs: it lives on, so that torch's own threads do with it."""
    jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    threading.Thread(target=_serve, args=(jobs,), name=f"planc-round-{name}", daemon=True).start()
    return jobs


def _serve(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # an idle thread keeps nothing alive


def _end(lanes: dict[WorkerHandle, SimpleQueue[Callable[[], None] | None]]) -> None:
    for jobs in lanes.values():
        jobs.put(None)
    lanes.clear()


__all__ = ["Dispatch", "Outcome", "within"]
