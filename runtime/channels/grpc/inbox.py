"""Frames that arrive in chunks: put together, bounded before anything is allocated, forgotten when given up.

Knows no stream: a frame begun on one can be ended on another, after a break.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from planc.errors import DecodeError
from runtime.channels.grpc.chunks import Chunk
from runtime.channels.streams.memory import Room


@dataclass(slots=True)
class Incoming:
    """A frame of which a part is there."""

    total: int
    buffer: bytearray | memoryview
    have: int = 0
    touched: float = 0.0

    def add(self, chunk: Chunk) -> bool:
        """Add a chunk; true when the frame is whole. What is there already is passed over.

        Raises:
            DecodeError: bytes before it are missing, or it belongs to a frame of another size.
        """
        if chunk.total != self.total:
            raise DecodeError(f"a frame of {self.total} bytes became one of {chunk.total}")
        if chunk.offset > self.have:
            raise DecodeError(
                f"expected the bytes of a frame from {self.have} on, got them from {chunk.offset}"
            )
        end = chunk.offset + len(chunk.data)
        if end > self.have:
            self.buffer[self.have : end] = chunk.data[self.have - chunk.offset :]
            self.have = end
        return self.have == self.total


@dataclass(slots=True)
class Inbox:
    """The frames that clients are sending. Safe to use from many threads.

    Attributes:
        room: what they may take.
        patience: seconds after which a frame that does not grow is forgotten.
    """

    room: Room
    patience: float = 120.0
    clock: Callable[[], float] = time.monotonic
    _frames: dict[str, dict[bytes, Incoming]] = field(default_factory=dict[str, dict[bytes, Incoming]])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, client: str, chunk: Chunk) -> bytearray | memoryview | None:
        """Add a chunk; the whole frame, if this was its last one.

        Raises:
            DecodeError: the chunk does not fit what came before; its frame is forgotten.
            LimitError: the frame, or all frames of the client, would be too large; likewise.
        """
        if not chunk.offset and len(chunk.data) == chunk.total <= self.room.frame_bytes:
            return bytearray(chunk.data)
        with self._lock:
            frames = self._frames.get(client, {})
            incoming = frames.get(chunk.key)
            if incoming is None:
                if chunk.offset:  # the rest of a frame that was refused
                    return None
                incoming = Incoming(chunk.total, self.room.begin(client, chunk.total))
                self._frames.setdefault(client, frames)[chunk.key] = incoming
            incoming.touched = self.clock()
            whole = True  # a frame that failed is forgotten as one that is done
            try:
                whole = incoming.add(chunk)
            finally:
                if whole:
                    self._forget(client, chunk.key)
            return incoming.buffer if whole else None

    def have(self, client: str, key: bytes) -> int:
        """How many bytes of a frame are there."""
        with self._lock:
            incoming = self._frames.get(client, {}).get(key)
            return incoming.have if incoming else 0

    def sweep(self) -> None:
        """Forget the frames that have not grown for too long."""
        with self._lock:
            oldest = self.clock() - self.patience
            for client, frames in list(self._frames.items()):
                for key in [key for key, incoming in frames.items() if incoming.touched < oldest]:
                    self._forget(client, key)

    def _forget(self, client: str, key: bytes) -> None:
        frames = self._frames[client]
        self.room.end(client, frames.pop(key).total)
        if not frames:
            del self._frames[client]
