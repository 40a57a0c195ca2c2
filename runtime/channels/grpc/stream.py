"""One stream to a worker, with the exchanges on it: frames go out in order, and so their replies come back.

Whoever waits for a reply reads the stream, for all that wait: no thread of its own stands between the socket
and the caller. A stream that broke is not mended here; `client` moves what is unanswered to a new one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from planc.errors import DecodeError, LimitError
from runtime.channels.grpc import chunks
from runtime.channels.grpc.chunks import Chunk, Kind
from runtime.channels.grpc.inbox import Incoming, allocate
from runtime.security.tls import grpc
from runtime.wire import Frame


class Exchange:
    """A frame on its way, and its reply.

    Attributes:
        key: names the two on the stream.
        frame: what is sent.
        deadline: when to give up, by `time.monotonic`.
        reply: the whole reply, when it is there.
        error: why there will be none.
        attempts: the streams that it was on.
    """

    __slots__ = ("attempts", "deadline", "error", "frame", "incoming", "key", "reply", "start")

    def __init__(self, key: bytes, frame: Frame, deadline: float) -> None:
        self.key = key
        self.frame = frame
        self.deadline = deadline
        self.reply: bytearray | memoryview | None = None
        self.error: Exception | None = None
        self.incoming: Incoming | None = None
        self.attempts = 0
        self.start: int | None = 0
        """How much of the frame the worker has; None until it said so, after a break."""

    @property
    def done(self) -> bool:
        return self.reply is not None or self.error is not None

    def take(self, chunk: Chunk, limit: int) -> None:
        """Add bytes of the reply."""
        if not chunk.offset and len(chunk.data) == chunk.total:
            self.reply = bytearray(chunk.data)
            return
        if self.incoming is None or self.incoming.total != chunk.total:
            if chunk.total > limit:
                raise LimitError(f"a reply of at most {limit} bytes is allowed, got {chunk.total}")
            self.incoming = Incoming(chunk.total, allocate(chunk.total))
        if self.incoming.add(chunk):
            self.reply = self.incoming.buffer

    def have(self) -> int:
        """How much of the reply is there."""
        return self.incoming.have if self.incoming else 0


class Stream:
    """A stream that is open. Safe to use from many threads.

    Args:
        open: begins the call, given the iterator of what to send: a `grpc.Call` that yields what comes.
        limit: the bytes of the largest reply.
    """

    def __init__(self, open: Any, limit: int) -> None:
        self._state = threading.Condition()
        self._outgoing: deque[Exchange] = deque()
        self._waiting: dict[bytes, Exchange] = {}
        self._reading = False
        self._limit = limit
        self.broken: Exception | None = None
        self._call = open(self._send())

    def __len__(self) -> int:
        """How many exchanges are unanswered."""
        return len(self._waiting)

    def metadata(self) -> dict[str, str]:
        """What the worker said of itself. Waits for it.

        Raises:
            grpc.RpcError: it did not take the stream.
        """
        return dict(self._call.initial_metadata())

    def status(self) -> tuple[Any, str]:
        """The status of a stream that ended, and its text. Waits for its end."""
        return self._call.code(), self._call.details() or ""

    def begin(self, exchange: Exchange) -> None:
        """Queue a frame to be sent."""
        with self._state:
            exchange.attempts += 1
            self._waiting[exchange.key] = exchange
            self._outgoing.append(exchange)
            self._state.notify_all()

    def wait(self, exchange: Exchange) -> None:
        """Return when an exchange is done, or the stream is broken."""
        while True:
            with self._state:
                while self._reading and not exchange.done and self.broken is None:
                    self._state.wait()
                if exchange.done or self.broken is not None:
                    return
                self._reading = True
            self._read(exchange)

    def cancel(self) -> None:
        """Break the stream; who waits on it is woken."""
        self._call.cancel()
        self._break(None)

    def give_up(self, now: float, error: Callable[[], Exception]) -> None:
        """Give up the exchanges that are past their deadline. That breaks the stream, for the others too."""
        with self._state:
            late = [exchange for exchange in self._waiting.values() if exchange.deadline <= now]
            for exchange in late:
                exchange.error = error()
                del self._waiting[exchange.key]
        if late:
            self.cancel()

    def take_unanswered(self) -> list[Exchange]:
        """The exchanges without a reply, in order, once the stream is broken."""
        with self._state:
            left = list(self._waiting.values())
            self._waiting.clear()
            self._outgoing.clear()
            return left

    def _read(self, exchange: Exchange) -> None:
        """Read until an exchange is done, as the one who reads for all."""
        try:
            while not exchange.done:
                for chunk in chunks.read(next(self._call)):
                    self._arrived(chunk)
        except StopIteration:
            self._break(ConnectionError("the worker ended the stream"))
        except (grpc.RpcError, DecodeError) as error:
            self._break(error)
        finally:
            with self._state:
                self._reading = False
                self._state.notify_all()

    def _arrived(self, chunk: Chunk) -> None:
        exchange = self._waiting.get(chunk.key)
        if exchange is None:  # given up meanwhile
            return
        if chunk.kind is Kind.HAVE:
            with self._state:
                exchange.start = min(chunk.offset, len(exchange.frame))
                self._state.notify_all()
            return
        try:
            exchange.take(chunk, self._limit)
        except LimitError as error:
            exchange.error = error
        if exchange.done:
            with self._state:
                self._waiting.pop(chunk.key, None)
                self._state.notify_all()

    def _break(self, error: Exception | None) -> None:
        with self._state:
            if self.broken is None:
                self.broken = error or ConnectionError("the stream was given up")
            self._state.notify_all()

    def _send(self) -> Iterator[bytes]:
        """What goes out, chunk by chunk; gRPC takes the next one when it has room."""
        while True:
            with self._state:
                while not self._outgoing and self.broken is None:
                    self._state.wait()
                if self.broken is not None:
                    return
                first = self._outgoing.popleft()
            yield from chunks.pack(self._chunks_of(first))

    def _chunks_of(self, exchange: Exchange | None) -> Iterator[bytes]:
        """The chunks of an exchange, and of those that are queued behind it."""
        while exchange is not None:
            yield from self._chunks(exchange)
            with self._state:
                exchange = self._outgoing.popleft() if self._outgoing and self.broken is None else None

    def _chunks(self, exchange: Exchange) -> Iterator[bytes]:
        total = len(exchange.frame)
        start = exchange.start
        if start is None:
            yield chunks.write(Kind.RESUME, exchange.key, total, 0)
            yield b""
            with self._state:
                while exchange.start is None and self.broken is None:
                    self._state.wait()
                start = exchange.start
        if start is None:
            return
        for offset, data in chunks.split(exchange.frame, start):
            if exchange.done or self.broken is not None:  # refused, or given up
                return
            yield chunks.write(Kind.DATA, exchange.key, total, offset, exchange.have(), data)
