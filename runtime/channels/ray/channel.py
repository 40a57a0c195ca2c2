"""The caller's end: `RayChannel` carries frames by calls of an actor. Knows no store and no plans.

Ray keeps no order between calls of an actor with several threads. So what is posted goes in batches, one on
its way at a time; what is posted meanwhile goes with the next one. That is also what makes it fast: a call of
an actor costs a millisecond, however many frames are in it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
import ray.exceptions as failures

from planc.errors import PlancError
from runtime.channels.ray.payload import Payload, pack, spread, unpack
from runtime.errors import ConnectionLost, DeadlineExceeded
from runtime.wire import Frame

_GUESSES = re.compile(r" (?:There are some potential root|Some common) causes")
_BATCH = 256
"""Frames that go in one call at most."""


class RayChannel:
    """A channel to a worker in an actor. Safe to use from many threads.

    Args:
        actor: the actor, asked before each call: there may be a new one in its place.
        worker: the id of the worker there.
        peer: whether the caller is a worker of the same cluster.
        timeout: seconds after which a call without a reply is given up; None for never. An actor that died
            is noticed without.
        patience: seconds for which an actor that cannot be reached just now is tried again.
        lost: called once, when it is known that an actor is dead and none has taken its place.
    """

    def __init__(
        self,
        actor: Callable[[], Any],
        worker: str,
        *,
        peer: bool = False,
        timeout: float | None = None,
        patience: float = 20.0,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._actor = actor
        self._worker = worker
        self._peer = peer
        self._timeout = timeout
        self._patience = patience
        self._on_lost = lost
        self._lock = threading.Lock()
        self._dead: Any = None
        self._why = ""
        self._closed = False
        self._queue: deque[Ticket] = deque()
        self._posting = False

    def call(self, frame: Frame, *, ordered: bool = True) -> bytearray | memoryview:
        """The reply to a frame.

        Args:
            frame: what to send.
            ordered: whether it has to come behind everything that was posted.

        Raises:
            ConnectionLost: none came; DeadlineExceeded where none came in time.
        """
        if ordered and self._posting:
            return self.post(frame).reply()
        arguments = spread(pack(frame))
        if self._peer:
            return unpack(self._ask(lambda actor: actor.exchange_peer.remote(*arguments)))
        return unpack(self._ask(lambda actor: actor.exchange.remote(*arguments)))

    def post(self, frame: Frame) -> Ticket:
        """Send a frame without waiting for its reply. Frames that are posted arrive in order."""
        ticket = Ticket(pack(frame))
        with self._lock:
            self._queue.append(ticket)
            if not self._posting:
                self._posting = True
                threading.Thread(target=self._post_all, name="planc-ray-posting", daemon=True).start()
        return ticket

    def close(self) -> None:
        """Let go of the actor. Later calls raise ConnectionLost."""
        self._closed = True

    @property
    def lost(self) -> str:
        """Why the worker is gone for good; "" while it is not."""
        return self._why if self._dead is not None else ""

    def give_up(self, why: str) -> None:
        """Let every later call fail: the worker is gone."""
        self._lose(self._actor(), why)

    def _post_all(self) -> None:
        """Send what is queued, a batch at a time, until nothing is."""
        while True:
            with self._lock:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
                if not batch:
                    self._posting = False
                    return
            frames = [ticket.frame for ticket in batch]
            try:
                replies = self._ask(lambda actor, frames=frames: actor.exchange_all.remote(frames))
            except BaseException as error:  # whoever waits for one of these has to hear of it
                for ticket in batch:
                    ticket.future.set_exception(error)
            else:
                for ticket, reply in zip(batch, replies, strict=True):
                    ticket.future.set_result(reply)

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        """What a call of the actor returns, repeated where it has to be: a worker applies a request once."""
        until, pause = time.monotonic() + self._patience, 0.05
        while True:
            actor = self._usable()
            try:
                return ray.get(call(actor), timeout=self._timeout)
            except failures.GetTimeoutError:
                raise self._late() from None
            except failures.ActorUnavailableError as error:
                if time.monotonic() + pause > until:
                    raise ConnectionLost(f"it cannot be reached: {why(error)}", worker=self._worker) from None
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            except failures.RayActorError as error:
                if self._actor() is actor:
                    self._lose(actor, why(error))
                    raise self._gone() from None
            except failures.RayError as error:
                raise ConnectionLost(f"Ray failed: {why(error)}", worker=self._worker) from None

    def _usable(self) -> Any:
        if self._closed or not ray.is_initialized():  # asked for anything, Ray would start anew by itself
            raise ConnectionLost("the channel is closed", worker=self._worker)
        actor = self._actor()
        if actor is self._dead:
            raise self._gone()
        return actor

    def _lose(self, actor: Any, why: str) -> None:
        with self._lock:
            if self._dead is actor:
                return
            self._dead, self._why = actor, why
        if self._on_lost is not None:
            self._on_lost()

    def _gone(self) -> ConnectionLost:
        return ConnectionLost(
            f"it is gone, and all that it held: {self._why}; RayCluster.replace starts another in its place",
            worker=self._worker,
        )

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no reply came within {self._timeout:g} s: it may work on the request still", worker=self._worker
        )


class Ticket:
    """A frame that was posted, and its reply to come."""

    __slots__ = ("frame", "future")

    def __init__(self, frame: Payload) -> None:
        self.frame = frame
        self.future: Future[Payload] = Future()

    def reply(self) -> bytearray | memoryview:
        """The reply. Waits for it.

        Raises:
            ConnectionLost: none came; DeadlineExceeded where none came in time.
        """
        return unpack(self.future.result())


def why(error: Exception) -> str:
    """What a failure of Ray comes to, in a line: its own texts are pages of guesses and tracebacks."""
    if isinstance(error, failures.RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}" if isinstance(cause, PlancError) else type(cause).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    text = " ".join(lines).removeprefix("The actor died unexpectedly before finishing this task.").strip()
    text = _GUESSES.split(text)[0].rstrip(".")
    return text[:400] or type(error).__name__


__all__ = ["RayChannel", "Ticket", "why"]
