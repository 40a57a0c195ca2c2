"""What client and server say on a stream: frames a chunk at a time, and where to go on after a break.

    kind (u8), key (16 bytes), total (u64), offset (u64), have (u64), length (u32), then as many bytes

A message of the stream is one chunk or several small ones: sending a message costs far more than a small
frame does. A frame and its reply share a key, which the client chose. Layout only: `inbox` puts frames
together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from planc.errors import DecodeError
from runtime.wire import Frame, Pieces

VERSION = "1"
"""Of the stream; each end tells the other in its metadata, under `VERSION_KEY`."""
SERVICE = "planc.Worker"
METHOD = "Session"
VERSION_KEY = "planc-stream"
WORKER_KEY = "planc-worker"
CLIENT_KEY = "planc-client"
ROLE_KEY = "planc-role"
CHUNK = 2**20
"""Bytes of a frame in one chunk at most."""
BATCH = 2**16
"""Bytes from which on a message gets no more chunks."""
_HEAD = struct.Struct("<B16sQQQI")
MAX_MESSAGE = CHUNK + _HEAD.size
"""Bytes of one message of the stream at most."""


class Kind(IntEnum):
    """What a message of the stream is."""

    DATA = 1
    """Bytes of a frame from ``offset`` on. From a client, ``have`` is how much of the reply it has."""
    RESUME = 2
    """From a client: how much of this frame is there? The answer is `HAVE`."""
    HAVE = 3
    """From a server: ``offset`` bytes of the frame are there; go on from there."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message of the stream."""

    kind: Kind
    key: bytes
    total: int
    offset: int
    have: int
    data: memoryview


def write(
    kind: Kind, key: bytes, total: int, offset: int, have: int = 0, data: bytes | memoryview = b""
) -> bytes:
    """A chunk as bytes."""
    return b"".join((_HEAD.pack(kind, key, total, offset, have, len(data)), data))


def read(message: bytes) -> Iterator[Chunk]:
    """The chunks of a message, one after another.

    Raises:
        DecodeError: the bytes that come next are none.
    """
    view = memoryview(message)
    at = 0
    while at < len(message):
        if len(message) - at < _HEAD.size:
            raise DecodeError(f"a chunk has at least {_HEAD.size} bytes, got {len(message) - at}")
        kind, key, total, offset, have, length = _HEAD.unpack_from(message, at)
        at += _HEAD.size
        if kind not in _KINDS:
            raise DecodeError(f"a chunk is of kind {min(_KINDS)} to {max(_KINDS)}, got {kind}")
        data = view[at : at + length]
        if len(data) != length:
            raise DecodeError(f"a chunk of {length} bytes was announced, got {len(data)}")
        if offset + length > total:
            raise DecodeError(f"a chunk ends at {offset + length}, beyond the {total} bytes of its frame")
        at += length
        yield Chunk(_KINDS[kind], key, total, offset, have, data)


def pack(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Messages of one chunk each, small ones joined to larger messages; an empty one lets go what waits."""
    waiting: list[bytes] = []
    size = 0
    for message in messages:
        if waiting and (not message or size + len(message) > BATCH):
            yield b"".join(waiting)
            waiting, size = [], 0
        if len(message) > BATCH:
            yield message
        elif message:
            waiting.append(message)
            size += len(message)
    if waiting:
        yield b"".join(waiting)


_KINDS = {int(kind): kind for kind in Kind}


def split(frame: Frame, start: int = 0) -> Iterator[tuple[int, bytes | memoryview]]:
    """The chunks of a frame from ``start`` on, with their offsets; at least one, which may be empty."""
    total = len(frame)
    if start >= total:
        yield total, b""
        return
    parts = frame.parts if isinstance(frame, Pieces) else (memoryview(frame),)
    offset, waiting, size = start, list[memoryview](), 0
    at = 0
    for part in parts:
        begin = max(start - at, 0)
        at += part.nbytes
        while begin < part.nbytes:
            taken = part[begin : begin + CHUNK - size]
            waiting.append(taken)
            begin += taken.nbytes
            size += taken.nbytes
            if size == CHUNK:
                yield offset, _joined(waiting)
                offset, waiting, size = offset + size, [], 0
    if waiting:
        yield offset, _joined(waiting)


def _joined(parts: list[memoryview]) -> bytes | memoryview:
    return parts[0] if len(parts) == 1 else b"".join(parts)
