"""Frames as Ray carries them: small ones within a call, as bytes; large ones in its object store, as arrays.

An array of bytes is what Ray takes out of its pickles and puts into shared memory as it is. No tensor and no
class of ours is ever pickled for a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.wire import Frame, Pieces

Payload: TypeAlias = "bytes | list[NDArray[np.uint8]]"
"""A frame on its way: its bytes, or arrays whose concatenation they are."""

_SMALL = 64 * 2**10
"""Bytes up to which a frame is carried within the call itself; Ray does so up to 100 KiB."""
_WITHIN = 96 * 2**10
_SPREAD = 512 * 2**10
"""Bytes up to which a request is spread over several arguments of a call, so that it stays within it: at
256 KiB that takes half the time of the object store, beyond 512 KiB it takes longer."""
_JOINED = 16 * 2**10
"""Pieces smaller than this are put together: each array costs Ray as much as copying some thousand bytes."""


def pack(frame: Frame) -> Payload:
    """What carries a frame. Shares its memory where it is large."""
    if len(frame) <= _SMALL:
        return bytes(frame if isinstance(frame, bytearray) else frame.join())
    if isinstance(frame, bytearray):
        return [np.frombuffer(frame, np.uint8)]
    return [np.frombuffer(part, np.uint8) for part in _joined(frame)]


def spread(payload: Payload) -> Sequence[Payload]:
    """The arguments of the call that carries a request; `gather` is the reverse."""
    if isinstance(payload, bytes) or sum(part.nbytes for part in payload) > _SPREAD:
        return [payload]
    whole = b"".join(part.data for part in payload)
    return [whole[at : at + _WITHIN] for at in range(0, len(whole), _WITHIN)]


def gather(arguments: Sequence[Payload]) -> Payload:
    """What `spread` was given, or the same bytes."""
    if len(arguments) == 1:
        return arguments[0]
    return b"".join(part for part in arguments if isinstance(part, bytes))


def unpack(payload: Payload) -> bytearray | memoryview:
    """The frame that was carried, in memory of its own: that of Ray's store cannot be written to."""
    if isinstance(payload, bytes):
        return bytearray(payload)
    # Not zeroed first, as a bytearray would be: all of it is written to here.
    out = np.empty(sum(part.nbytes for part in payload), np.uint8)
    at = 0
    for part in payload:
        out[at : at + part.nbytes] = part
        at += part.nbytes
    return out.data


def _joined(frame: Pieces) -> list[memoryview | bytes]:
    out: list[memoryview | bytes] = []
    small: list[memoryview] = []
    for part in frame.parts:
        if part.nbytes < _JOINED:
            small.append(part)
            continue
        if small:
            out.append(b"".join(small))
            small = []
        out.append(part)
    if small:
        out.append(b"".join(small))
    return out
