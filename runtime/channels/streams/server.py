"""The worker's end: what a server takes on, what it is busy with, and how it ends. Knows no kind of stream.

What it may be asked is bounded here (streams, bytes under way, patience); what the requests may do is the
worker's business.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from planc.errors import LimitError
from runtime.channels.address import Address
from runtime.channels.streams.memory import Room
from runtime.errors import to_failure
from runtime.identity import Identity
from runtime.messages import Reply
from runtime.wire import Frame, encode

_LAST_REPLIES = 10.0
"""Seconds that a server that closes gives clients to read what it answered."""


class FrameHandler(Protocol):
    """What answers frames: a `runtime.worker.Worker`."""

    @property
    def id(self) -> str: ...

    def handle_large_frame(self, frame: bytearray | memoryview, identity: Identity) -> Frame: ...


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server takes on. Frames are bounded by the worker's `WireLimits` too, once they are there."""

    streams: int = 256
    """Open at a time, of all clients: connections, on a unix socket."""
    client_streams: int = 64
    """Of one client."""
    frame_bytes: int = 16 * 2**30
    """Of one frame. Memory is taken only as the bytes come in."""
    client_bytes: int = 32 * 2**30
    """Of the frames that one client has begun to send."""
    patience: float = 120.0
    """Seconds after which a frame that does not grow is forgotten; so is a unix socket that nobody reads."""
    ping: float = 30.0
    """Seconds between signs of life on a quiet connection; a peer without any for 20 more is gone. Over a
    network only: on one machine the system says when a process is gone."""
    greeting: float = 10.0
    """Seconds in which who connects to a unix socket has to say who they are."""


class Closing(Exception):
    """The server takes no more requests."""


class Listening(ABC):
    """A server that listens at one address.

    Args:
        worker: what answers the frames.
        limits: what it takes on.

    Attributes:
        address: where it listens, with the port that it got.
    """

    address: Address

    def __init__(self, worker: FrameHandler, limits: ServerLimits | None) -> None:
        self._worker = worker
        self._limits = limits = limits or ServerLimits()
        self._room = Room(limits.frame_bytes, limits.client_bytes)
        self._streams = Counter[str]()
        self._busy = self._computing = 0
        self._closing = False
        self._state = threading.Condition()

    @property
    def busy(self) -> int:
        """How many frames are being answered."""
        return self._busy

    def close(self, grace: float = 30.0) -> bool:
        """Take no more requests, let those that run end, and stop. Blocks until then.

        Args:
            grace: seconds to wait for what runs.

        Returns:
            Whether all that ran came to its end.
        """
        with self._state:
            first, self._closing = not self._closing, True
        if first:
            self._shut_door()
        with self._state:
            until = time.monotonic() + grace
            while self._busy and (left := until - time.monotonic()) > 0:
                if self._state.wait_for(lambda: not self._busy, min(left, _LAST_REPLIES)):
                    break
                if not self._computing:  # a client that never reads its reply must not keep it from ending
                    break
            done = not self._computing
        self._hang_up()
        return done

    @abstractmethod
    def _shut_door(self) -> None:
        """Let nobody in any more; those who are in are answered what runs."""

    @abstractmethod
    def _hang_up(self) -> None:
        """End every stream."""

    @contextmanager
    def _let_in(self, client: str) -> Generator[None]:
        """One more stream of a client, as long as the block lasts.

        Raises:
            LimitError: it has as many as are allowed.
        """
        with self._state:
            if self._streams[client] >= self._limits.client_streams:
                raise LimitError(
                    f"{client!r} has {self._limits.client_streams} streams open, as many as are allowed"
                )
            self._streams[client] += 1
        try:
            yield
        finally:
            with self._state:
                self._streams[client] -= 1
                if not self._streams[client]:
                    del self._streams[client]

    @contextmanager
    def _answering(self) -> Generator[None]:
        """A frame has come, and its reply is on its way until the block ends.

        Raises:
            Closing: the server takes no more.
        """
        with self._state:
            if self._closing:
                raise Closing
            self._busy += 1
        try:
            yield
        finally:
            with self._state:
                self._busy -= 1
                self._state.notify_all()

    def _answer(self, frame: bytearray | memoryview, identity: Identity) -> Frame:
        """The worker's reply to a frame."""
        with self._state:
            self._computing += 1
        try:
            return self._worker.handle_large_frame(frame, identity)
        finally:
            with self._state:
                self._computing -= 1

    def _too_large(self, error: LimitError) -> Frame:
        """The reply to a frame that was not taken in: an answer like any other, which says why."""
        return encode(Reply(0, to_failure(error, self._worker.id)))
