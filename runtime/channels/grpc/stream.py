"""A gRPC stream to a worker: exchanges in chunks. Those that came are not sent again after a break."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from planc.errors import DecodeError, LimitError
from runtime.channels.grpc import chunks
from runtime.channels.grpc.chunks import Chunk, Kind
from runtime.channels.grpc.inbox import Incoming
from runtime.channels.streams.memory import allocate
from runtime.channels.streams.stream import Exchange, Stream
from runtime.security.tls import grpc
from runtime.wire import Frame


class ChunkedExchange(Exchange):
    """A frame on its way, and its reply, each in chunks.

    Attributes:
        start: how much of the frame the worker has; None until it said so, after a break.
    """

    __slots__ = ("_incoming", "start")

    def __init__(self, key: bytes, frame: Frame, deadline: float) -> None:
        super().__init__(key, frame, deadline)
        self._incoming: Incoming | None = None
        self.start: int | None = 0

    def take(self, chunk: Chunk, limit: int) -> None:
        """Add bytes of the reply.

        Raises:
            LimitError: the reply is too large.
        """
        if chunk.total > limit:
            raise LimitError(f"a reply of at most {limit} bytes is allowed, got {chunk.total}")
        if not chunk.offset and len(chunk.data) == chunk.total:
            self.reply = bytearray(chunk.data)
            return
        if self._incoming is None or self._incoming.total != chunk.total:
            self._incoming = Incoming(chunk.total, allocate(chunk.total))
        if self._incoming.add(chunk):
            self.reply = self._incoming.buffer

    def have(self) -> int:
        """How much of the reply is there."""
        return self._incoming.have if self._incoming else 0


class GrpcStream(Stream[ChunkedExchange]):
    """A stream that is open. Safe to use from many threads.

    Args:
        open: begins the call, given the iterator of what to send: a `grpc.Call` that yields what comes.
        limit: the bytes of the largest reply.
    """

    BREAKS = (OSError, DecodeError, grpc.RpcError)

    def __init__(self, open: Any, limit: int) -> None:
        super().__init__(limit)
        self._outgoing: deque[ChunkedExchange] = deque()
        self._call = open(self._outgo())

    def metadata(self) -> dict[str, str]:
        """What the worker said of itself. Waits for it.

        Raises:
            grpc.RpcError: it did not take the stream.
        """
        return dict(self._call.initial_metadata())

    def status(self) -> tuple[Any, str]:
        """The status of a stream that ended, and its text. Waits for its end."""
        return self._call.code(), self._call.details() or ""

    def _send(self, exchange: ChunkedExchange) -> None:
        if exchange.attempts > 1:
            # A small frame is sent again whole; of a large one the worker says first how much it has.
            exchange.start = 0 if len(exchange.frame) <= chunks.CHUNK else None
        with self._state:
            self._outgoing.append(exchange)
            self._state.notify_all()

    def _receive(self) -> None:
        try:
            message = next(self._call)
        except StopIteration:
            raise ConnectionError("the worker ended the stream") from None
        for chunk in chunks.read(message):
            self._arrived(chunk)

    def _hang_up(self) -> None:
        self._call.cancel()

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
            self._settled(exchange)

    def _outgo(self) -> Iterator[bytes]:
        """What goes out, chunk by chunk; gRPC takes the next one when it has room."""
        while True:
            with self._state:
                while not self._outgoing and self.broken is None:
                    self._state.wait()
                if self.broken is not None:
                    return
                first = self._outgoing.popleft()
            yield from chunks.pack(self._chunks_of(first))

    def _chunks_of(self, exchange: ChunkedExchange | None) -> Iterator[bytes]:
        """The chunks of an exchange, and of those that are queued behind it."""
        while exchange is not None:
            yield from self._chunks(exchange)
            with self._state:
                exchange = self._outgoing.popleft() if self._outgoing and self.broken is None else None

    def _chunks(self, exchange: ChunkedExchange) -> Iterator[bytes]:
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
