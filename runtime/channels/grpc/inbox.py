"""Frames that arrive in chunks: put together, bounded before anything is allocated, forgotten when given up.

Knows no stream: a frame begun on one can be ended on another, after a break.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from planc.errors import DecodeError, LimitError
from runtime.channels.grpc.chunks import Chunk

_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


def allocate(nbytes: int) -> memoryview:
    """Memory that takes up room only as it is written to: who announces much and sends little has little.

    Raises:
        LimitError: the machine has not got so much.
    """
    try:
        area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise LimitError(f"there is no room for a frame of {nbytes} bytes: {error}") from None
    if _HUGE is not None:
        area.madvise(_HUGE)
    return memoryview(area)


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
        frame_bytes: the largest frame.
        client_bytes: the bytes of all frames that one client has begun.
        client_frames: how many frames one client may have begun.
        patience: seconds after which a frame that does not grow is forgotten.
    """

    frame_bytes: int
    client_bytes: int
    client_frames: int = 64
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
        if not chunk.offset and len(chunk.data) == chunk.total <= self.frame_bytes:
            return bytearray(chunk.data)
        with self._lock:
            frames = self._frames.setdefault(client, {})
            whole = True  # a frame that failed is forgotten as one that is done
            try:
                incoming = frames.get(chunk.key)
                if incoming is None:
                    if chunk.offset:  # the rest of a frame that was refused
                        return None
                    incoming = self._begin(frames, chunk)
                frames[chunk.key] = incoming
                incoming.touched = self.clock()
                whole = incoming.add(chunk)
            finally:
                if whole:
                    frames.pop(chunk.key, None)
                if not frames:
                    del self._frames[client]
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
                    del frames[key]
                if not frames:
                    del self._frames[client]

    def _begin(self, frames: dict[bytes, Incoming], chunk: Chunk) -> Incoming:
        if chunk.total > self.frame_bytes:
            raise LimitError(f"a frame of at most {self.frame_bytes} bytes is allowed, got {chunk.total}")
        if len(frames) >= self.client_frames:
            raise LimitError(f"at most {self.client_frames} frames may be under way at once")
        begun = sum(incoming.total for incoming in frames.values())
        if begun + chunk.total > self.client_bytes:
            raise LimitError(
                f"frames of at most {self.client_bytes} bytes may be under way at once, "
                f"got {begun} and {chunk.total} more"
            )
        if not chunk.total:
            raise DecodeError("a frame is not empty")
        return Incoming(chunk.total, allocate(chunk.total))
