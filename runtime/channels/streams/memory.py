"""The memory of frames that are on their way: bounded before any is taken. Knows no stream."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass, field

from planc.errors import DecodeError, LimitError

_SMALL = 2**18
"""Bytes up to which memory is ordinary: to map pages takes longer than to fill these with zeros."""
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


def allocate(nbytes: int) -> bytearray | memoryview:
    """Memory that takes up room only as it is written to: who announces much and sends little has little.

    Raises:
        LimitError: the machine has not got so much.
    """
    if nbytes <= _SMALL:
        return bytearray(nbytes)
    try:
        area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise LimitError(f"there is no room for a frame of {nbytes} bytes: {error}") from None
    if _HUGE is not None:
        area.madvise(_HUGE)
    return memoryview(area)


@dataclass(slots=True)
class Room:
    """What the frames that clients have begun to send may take. Safe to use from many threads.

    Attributes:
        frame_bytes: the largest frame.
        client_bytes: the bytes of all frames that one client has begun.
        client_frames: how many frames one client may have begun.
    """

    frame_bytes: int
    client_bytes: int
    client_frames: int = 64
    _begun: dict[str, list[int]] = field(default_factory=dict[str, "list[int]"])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, nbytes: int) -> None:
        """Whether a frame may be so large.

        Raises:
            LimitError: it is too large.
            DecodeError: it is empty.
        """
        if nbytes > self.frame_bytes:
            raise LimitError(f"a frame of at most {self.frame_bytes} bytes is allowed, got {nbytes}")
        if not nbytes:
            raise DecodeError("a frame is not empty")

    def begin(self, client: str, nbytes: int) -> bytearray | memoryview:
        """Memory for a frame that a client has announced; `end` says that it is no longer on its way.

        Raises:
            LimitError: the frame, or all frames of the client, would be too large.
            DecodeError: it is empty.
        """
        self.check(nbytes)
        with self._lock:
            sizes = self._begun.get(client, [])
            if len(sizes) >= self.client_frames:
                raise LimitError(f"at most {self.client_frames} frames may be under way at once")
            if sum(sizes) + nbytes > self.client_bytes:
                raise LimitError(
                    f"frames of at most {self.client_bytes} bytes may be under way at once, "
                    f"got {sum(sizes)} and {nbytes} more"
                )
            memory = allocate(nbytes)
            self._begun.setdefault(client, sizes).append(nbytes)
            return memory

    def end(self, client: str, nbytes: int) -> None:
        """A frame is whole, or given up."""
        with self._lock:
            sizes = self._begun[client]
            sizes.remove(nbytes)
            if not sizes:
                del self._begun[client]
