"""The caller's end: what a channel is, and the connection that speaks messages over one. Knows no handles."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from planc.errors import DecodeError
from runtime.counting import count_reply, count_request
from runtime.errors import (
    AuditFailed,
    ConnectionLost,
    RequestSkipped,
    StorageError,
    StoreFull,
    WorkerError,
    to_error,
)
from runtime.messages import MAX_ID, Answer, Body, Failure, Message, Pointer, Reply, Request, Values
from runtime.wire import Frame, WireLimits, decode, encode_frame

_POSTED = 64
"""Requests that may be unanswered at a time."""
_POSTED_BYTES = 2**16
"""Bytes of tensors in a request that is not waited for: until it is answered its frame is kept."""
_RELEASES = 4096
"""Objects released by one request at most."""


class Channel(Protocol):
    """Carries one frame to a worker and its reply back. Safe to call from many threads.

    A channel may send a frame again when no reply came: the worker applies it once.
    """

    def call(self, frame: Frame) -> bytearray | memoryview:
        """The reply to a frame, in memory that is the caller's from then on.

        Raises:
            ConnectionLost: none came.
        """
        ...

    def close(self) -> None:
        """Give up what the channel holds. Later calls raise ConnectionLost."""
        ...


class Ticket(Protocol):
    """A frame that was sent without waiting."""

    def reply(self) -> bytearray | memoryview:
        """The reply. Waits for it; raises as `Channel.call` does."""
        ...


class PipelinedChannel(Channel, Protocol):
    """A channel on which the next frame can be sent before the reply to the last one is there."""

    def call(self, frame: Frame, *, ordered: bool = True) -> bytearray | memoryview:
        """As `Channel.call`; ``ordered``: behind everything that was posted."""
        ...

    def post(self, frame: Frame) -> Ticket:
        """Send a frame without waiting. Frames that are posted arrive in order."""
        ...


@dataclass(frozen=True, slots=True)
class _Posted:
    """A request that was sent without waiting."""

    number: int
    ticket: Ticket


class Connection:
    """Sends requests over a channel, one session of one client. Safe to use from many threads.

    What is posted is not waited for. If it fails, what was sent behind it is not applied, and the next `call`
    or `settle` raises its error.

    Args:
        channel: the way to the worker.
        client: the name of the caller.
        peer: whether the caller is a worker itself; counted apart.
        limits: the largest reply that is accepted.
        pipeline: the same channel, where `post` shall not wait for replies.
    """

    def __init__(
        self,
        channel: Channel,
        client: str,
        *,
        peer: bool = False,
        limits: WireLimits | None = None,
        pipeline: PipelinedChannel | None = None,
    ) -> None:
        self.client = client
        self._channel = channel
        self._peer = peer
        self._limits = limits
        # Random: two connections of one client must not answer each other's repeats, even after a restart.
        self._session = secrets.randbelow(MAX_ID)
        self._pipeline = pipeline
        self._posting = threading.Lock()
        self._posted: deque[_Posted] = deque()
        self._lock = threading.Lock()
        self._last = 0
        self._open: set[int] = set()
        # Handles release from destructors, which may run while this lock is held: append needs none.
        self._released: deque[int] = deque()

    def as_session(self, session: int) -> Connection:
        """Another connection over the same channel, for one request of a session whose number is known.

        The worker takes the same request for a repeat, also when the caller was started again in between.
        """
        connection = Connection(self._channel, self.client, peer=self._peer, limits=self._limits)
        connection._session = session
        return connection

    def release(self, id: int) -> None:
        """Let the worker forget an object, with the next request. Sends nothing, never blocks."""
        self._released.append(id)

    @property
    def pending_releases(self) -> int:
        """How many objects wait to be released."""
        return len(self._released)

    @property
    def sent(self) -> int:
        """How many requests were sent."""
        return self._last

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a reply. What was posted is not waited for."""
        return len(self._open) > len(self._posted)

    def call(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> tuple[Answer, list[torch.Tensor]]:
        """The worker's answer to a message, and the tensors in it.

        Raises:
            WorkerError: what went wrong there, as the worker's own error; ConnectionLost if no reply came.
                Or the error of a request that was posted before; this one was not applied then.
            InputError: a tensor cannot be sent.
        """
        released = self._take_released() if self._released else []
        posted: Sequence[_Posted] = ()
        try:
            if self._pipeline is None:  # nothing is ever posted
                frame, number = self._frame(body, tensors, released)
            else:
                with self._posting:
                    frame, number = self._frame(body, tensors, released)
                    posted = tuple(self._posted)
            try:
                reply = self._exchange(type(body).__name__, frame, bool(posted))
            finally:
                with self._lock:
                    self._open.discard(number)
            if posted:
                self._settle(posted)
            message, answer = decode(reply, self._limits)
        except BaseException:
            # Releasing what is released already does no harm; forgetting to does.
            self._released.extend(released)
            raise
        try:
            return self._answer(number, message), answer
        except (AuditFailed, StorageError, StoreFull):  # then the request was taken back, releases and all
            self._released.extend(released)
            raise

    def post(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Send a message that is answered by Done, without waiting for that where the channel allows it.

        Raises:
            WorkerError, InputError: as `call`.
        """
        pipeline = self._pipeline
        if pipeline is None or sum(tensor.nbytes for tensor in tensors) > _POSTED_BYTES:
            self.call(body, tensors)
            return
        while len(self._posted) >= _POSTED:
            self._settle([self._posted[0]])
        released = self._take_released()
        with self._posting:
            try:
                frame, number = self._frame(body, tensors, released)
            except BaseException:
                self._released.extend(released)
                raise
            count_request(type(body).__name__, len(frame), peer=self._peer)
            self._posted.append(_Posted(number, pipeline.post(frame)))

    def settle(self) -> None:
        """Wait until everything that was posted is done.

        Raises:
            WorkerError: it is not.
        """
        self._settle(list(self._posted))

    def _settle(self, posted: Sequence[_Posted]) -> None:
        """Read the replies to what was posted. The first failure is raised once all of them are read."""
        failed: BaseException | None = None
        for one in posted:
            try:
                reply = one.ticket.reply()
                with self._posting:
                    if one not in self._posted:  # another thread read it, and raised what there was
                        continue
                    self._posted.remove(one)
                with self._lock:
                    self._open.discard(one.number)
                count_reply(len(reply), peer=self._peer)
                self._answer(one.number, decode(reply, self._limits)[0])
            except RequestSkipped as error:
                failed = failed or error
            except WorkerError as error:
                with self._posting:
                    if one in self._posted:
                        self._posted.remove(one)
                with self._lock:
                    self._open.discard(one.number)
                failed = failed or error
        if failed is not None:
            raise failed

    def _answer(self, number: int, message: Message) -> Answer:
        if not isinstance(message, Reply):
            raise DecodeError(f"expected a reply, got a {type(message).__name__}")
        if isinstance(message.body, Failure):
            raise to_error(message.body)
        if message.request_id != number:
            raise ConnectionLost(f"the reply to request {message.request_id} came for request {number}")
        return message.body

    def values(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> list[torch.Tensor | Pointer]:
        """As `call`, for a message that is answered by values: these, in order."""
        answer, given = self.call(body, tensors)
        if not isinstance(answer, Values):
            raise DecodeError(f"expected values, got a {type(answer).__name__}")
        if any(not isinstance(item, Pointer) and item.index >= len(given) for item in answer.items):
            raise DecodeError(f"the reply means more than the {len(given)} tensors that came with it")
        return [item if isinstance(item, Pointer) else given[item.index] for item in answer.items]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _frame(
        self, body: Body, tensors: Sequence[torch.Tensor], released: Sequence[int]
    ) -> tuple[Frame, int]:
        with self._lock:
            self._last += 1
            number = self._last
            self._open.add(number)
            settled = min(self._open) - 1
        behind = self._posted[-1].number if self._posted else 0
        request = Request(self.client, self._session, number, settled, tuple(released), body, behind)
        try:
            return encode_frame(request, tensors), number
        except BaseException:
            with self._lock:
                self._open.discard(number)
            raise

    def _exchange(self, kind: str, frame: Frame, ordered: bool) -> bytearray | memoryview:
        count_request(kind, len(frame), peer=self._peer)
        if self._pipeline is None:
            reply = self._channel.call(frame)
        else:
            reply = self._pipeline.call(frame, ordered=ordered)
        count_reply(len(reply), peer=self._peer)
        return reply

    def _take_released(self) -> list[int]:
        out: list[int] = []
        while self._released and len(out) < _RELEASES:
            try:
                out.append(self._released.popleft())
            except IndexError:  # another thread took the last one
                break
        return out
