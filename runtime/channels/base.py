"""The caller's end: what a channel is, and the connection that speaks messages over one. Knows no handles."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch

from planc.errors import DecodeError
from runtime.counting import count_reply, count_request
from runtime.errors import ConnectionLost, to_error
from runtime.messages import MAX_ID, Answer, Body, Failure, Pointer, Reply, Request, Values
from runtime.wire import Frame, WireLimits, decode, encode_frame

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


class Connection:
    """Sends requests over a channel, one session of one client. Safe to use from many threads.

    Args:
        channel: the way to the worker.
        client: the name of the caller.
        peer: whether the caller is a worker itself; counted apart.
        limits: the largest reply that is accepted.
    """

    def __init__(
        self, channel: Channel, client: str, *, peer: bool = False, limits: WireLimits | None = None
    ) -> None:
        self.client = client
        self._channel = channel
        self._peer = peer
        self._limits = limits
        # Random: two connections of one client must not answer each other's repeats, even after a restart.
        self._session = secrets.randbelow(MAX_ID)
        self._lock = threading.Lock()
        self._last = 0
        self._open: set[int] = set()
        # Handles release from destructors, which may run while this lock is held: append needs none.
        self._released: deque[int] = deque()

    def release(self, id: int) -> None:
        """Let the worker forget an object, with the next request. Sends nothing, never blocks."""
        self._released.append(id)

    @property
    def pending_releases(self) -> int:
        """How many objects wait to be released."""
        return len(self._released)

    def call(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> tuple[Answer, list[torch.Tensor]]:
        """The worker's answer to a message, and the tensors in it.

        Raises:
            WorkerError: what went wrong there, as the worker's own error; ConnectionLost if no reply came.
            InputError: a tensor cannot be sent.
        """
        released = self._take_released()
        try:
            frame, number = self._frame(body, tensors, released)
            try:
                reply = self._exchange(type(body).__name__, frame)
            finally:
                with self._lock:
                    self._open.discard(number)
            message, answer = decode(reply, self._limits)
        except BaseException:
            # Releasing what is released already does no harm; forgetting to does.
            self._released.extend(released)
            raise
        if not isinstance(message, Reply):
            raise DecodeError(f"expected a reply, got a {type(message).__name__}")
        if isinstance(message.body, Failure):
            raise to_error(message.body)
        if message.request_id != number:
            raise ConnectionLost(f"the reply to request {message.request_id} came for request {number}")
        return message.body, answer

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
        request = Request(self.client, self._session, number, settled, tuple(released), body)
        try:
            return encode_frame(request, tensors), number
        except BaseException:
            with self._lock:
                self._open.discard(number)
            raise

    def _exchange(self, kind: str, frame: Frame) -> bytearray | memoryview:
        count_request(kind, len(frame), peer=self._peer)
        reply = self._channel.call(frame)
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
