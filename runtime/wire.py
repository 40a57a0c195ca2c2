"""Frames: one message and the tensors it refers to, as bytes. Knows the layout, not what messages mean.

    prefix    magic and version (8 bytes), header length (u32), zero (u32), total length (u64)
    header    msgpack: the message and a table of dtype, shape, offset, nbytes for each tensor
    tensors   raw row-major little-endian elements, each from a multiple of 64 bytes; zeros between

All sizes are checked before anything is allocated for a tensor; what does not fit is a DecodeError.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from planc.errors import DecodeError, InputError, LimitError, VersionError
from planc.ir import DType, from_torch
from planc.lower.transfer import to_host
from runtime.messages import Message, Size

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("runtime.wire lays tensors out little-endian and supports no big-endian machine")

_MAGIC = b"\x8bplancw"
VERSION = 1
_PREFIX = struct.Struct("<7sBIIQ")
_ALIGN = 64
_PADDING = [bytes(n) for n in range(_ALIGN)]
_LARGE = 2**20
"""Bytes of tensors from which on a frame is sent without being put together first."""
_TORCH = {dtype: dtype.torch for dtype in DType}
_ITEMSIZE = {dtype: dtype.itemsize for dtype in DType}


@dataclass(frozen=True, slots=True)
class WireLimits:
    """The largest frame that is accepted."""

    frame_bytes: int = 16 * 2**30
    """Bytes of the whole frame."""
    header_bytes: int = 20 * 2**20
    """Bytes of the header. A plan travels in it: leave room for the plans that `planc.limits` allows."""
    tensors: int = 65_536
    """Tensors in one frame."""
    rank: int = 16
    """Dims of one tensor."""


_LIMITS = WireLimits()


class _Entry(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    dtype: DType
    shape: tuple[Size, ...]
    offset: Size
    nbytes: Size


class _Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    message: Message
    tensors: tuple[_Entry, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)


class Pieces:
    """A frame that was not put together: what is sent a chunk at a time needs no copy of its tensors.

    It holds on to the tensors, which nobody may write to until it is gone.

    Attributes:
        parts: bytes whose concatenation is the frame.
        nbytes: how many there are.
    """

    __slots__ = ("nbytes", "parts")

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self.parts = parts
        self.nbytes = sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return self.nbytes

    def join(self) -> bytearray:
        """The frame in memory of its own."""
        return bytearray().join(self.parts)


Frame = bytearray | Pieces
"""A frame to be sent."""


def encode(message: Message, tensors: Sequence[torch.Tensor] = ()) -> bytearray:
    """The frame of a message and its tensors. Copies each tensor once, from any device and memory layout.

    Raises:
        InputError: a tensor is sparse, has no data, or is of a dtype that plans do not have.
    """
    if not tensors:  # most messages: written where they are sent from
        frame = bytearray(_PREFIX.size)
        try:
            _encoder.encode_into(_Header(message, ()), frame, _PREFIX.size)
        except (UnicodeEncodeError, OverflowError) as error:
            raise _unsendable(message, error) from None
        length = len(frame)
        frame.extend(_PADDING[-length % _ALIGN])
        _PREFIX.pack_into(frame, 0, _MAGIC, VERSION, length - _PREFIX.size, 0, len(frame))
        return frame
    prefix, entries, data, end = _lay_out(message, tensors)
    frame = bytearray(data + end)
    frame[: len(prefix)] = prefix
    for entry, tensor in zip(entries, to_host(tensors), strict=True):
        if entry.nbytes:
            _view(frame, entry, data).copy_(tensor.detach())
    return frame


def encode_pieces(message: Message, tensors: Sequence[torch.Tensor] = ()) -> Pieces:
    """As `encode`, without a copy of tensors that lie in the machine's memory in row-major order."""
    prefix, entries, data, _ = _lay_out(message, tensors)
    parts = [memoryview(prefix)]
    at = len(prefix) - data
    for entry, tensor in zip(entries, to_host(tensors), strict=True):
        if gap := entry.offset - at:
            parts.append(memoryview(bytes(gap)))
        if entry.nbytes:
            flat = tensor.detach().contiguous().view(-1)
            parts.append(flat.view(torch.uint8).numpy().data.cast("B"))
        at = entry.offset + entry.nbytes
    if at < 0:  # no tensors: the padding behind the header
        parts.append(memoryview(bytes(-at)))
    return Pieces(parts)


def encode_frame(message: Message, tensors: Sequence[torch.Tensor] = ()) -> Frame:
    """As `encode` where the tensors are small, else as `encode_pieces`."""
    if not tensors or sum([tensor.nbytes for tensor in tensors]) < _LARGE:
        return encode(message, tensors)
    return encode_pieces(message, tensors)


def _lay_out(message: Message, tensors: Sequence[torch.Tensor]) -> tuple[bytes, Sequence[_Entry], int, int]:
    """Prefix and header, the table, and where the tensors begin and how many bytes they take."""
    table: list[_Entry] = []
    end = 0
    for i, tensor in enumerate(tensors):
        dtype = _dtype(i, tensor)
        start = _align(end)
        end = start + tensor.numel() * _ITEMSIZE[dtype]
        table.append(_Entry(dtype, tuple(tensor.shape), start, end - start))
    try:
        header = _encoder.encode(_Header(message, tuple(table)))
    except (UnicodeEncodeError, OverflowError) as error:
        raise _unsendable(message, error) from None
    data = _align(_PREFIX.size + len(header))
    prefix = _PREFIX.pack(_MAGIC, VERSION, len(header), 0, data + end) + header
    return prefix, table, data, end


def decode(
    frame: bytearray | memoryview | bytes, limits: WireLimits | None = None
) -> tuple[Message, list[torch.Tensor]]:
    """The message of a frame and its tensors.

    The tensors share the memory of a writable frame: whoever calls this gives the frame away. A read-only
    one is copied.

    Raises:
        DecodeError: the bytes are not a frame; VersionError where they are one of another version.
        LimitError: the frame is larger than the limits allow.
    """
    limits = limits or _LIMITS
    view = memoryview(frame)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    header_end, message, entries = _read_header(view, limits)
    data = _align(header_end)
    if not entries:
        if data != len(view):
            raise DecodeError(f"a frame of {data} bytes was announced, got {view.nbytes}")
        if bytes(view[header_end:data]) != _PADDING[data - header_end]:
            raise DecodeError(f"the padding at {header_end} is not zero")
        return message, []
    end = 0
    for i, entry in enumerate(entries):
        _check_entry(i, entry, _align(end), limits)
        end = entry.offset + entry.nbytes
    if data + end != view.nbytes:
        raise DecodeError(f"a frame of {data + end} bytes was announced by its tensors, got {view.nbytes}")
    _check_gaps(view, header_end, data, entries)
    if view.readonly:
        frame = bytearray(view)
    return message, [_read(i, frame, entry, data) for i, entry in enumerate(entries)]


def _read_header(view: memoryview, limits: WireLimits) -> tuple[int, Message, tuple[_Entry, ...]]:
    size = len(view)
    if size > limits.frame_bytes:
        raise LimitError(f"a frame of at most {limits.frame_bytes} bytes is allowed, got {size}")
    if size < _PREFIX.size:
        raise DecodeError(f"a frame has at least {_PREFIX.size} bytes, got {size}")
    magic, version, length, reserved, total = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise DecodeError(f"not a frame: expected bytes that begin with {_MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise VersionError(f"the frame has version {version}, this library reads version {VERSION}")
    if reserved or total != size:
        raise DecodeError(f"a frame of {total} bytes was announced, got {size}")
    if length > limits.header_bytes:
        raise LimitError(f"a header of at most {limits.header_bytes} bytes is allowed, got {length}")
    end = _PREFIX.size + length
    if end > size:
        raise DecodeError(f"a header of {length} bytes was announced, but the frame ends at {size}")
    try:
        header = _decoder.decode(view[_PREFIX.size : end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a message: {error}") from None
    if len(header.tensors) > limits.tensors:
        raise LimitError(
            f"at most {limits.tensors} tensors in a frame are allowed, got {len(header.tensors)}"
        )
    return end, header.message, header.tensors


def _check_entry(i: int, entry: _Entry, start: int, limits: WireLimits) -> None:
    if len(entry.shape) > limits.rank:
        raise LimitError(f"tensor {i}: at most {limits.rank} dims are allowed, got {len(entry.shape)}")
    expected = math.prod(entry.shape) * _ITEMSIZE[entry.dtype]
    if entry.nbytes != expected:
        shape = list(entry.shape)
        raise DecodeError(
            f"tensor {i}: {entry.dtype}{shape} has {expected} bytes, not the {entry.nbytes} announced"
        )
    # An empty tensor allocates nothing, but torch still multiplies its other dims for the strides.
    if math.prod(size for size in entry.shape if size) * _ITEMSIZE[entry.dtype] >= 2**63:
        raise DecodeError(f"tensor {i}: the dims {list(entry.shape)} are too large")
    if entry.offset != start:
        raise DecodeError(f"tensor {i}: expected it at {start}, got {entry.offset}")


def _check_gaps(view: memoryview, header_end: int, data: int, entries: Sequence[_Entry]) -> None:
    end = header_end
    for entry in entries:
        if not _are_zero(view[end : data + entry.offset]):
            raise DecodeError(f"the padding at {end} is not zero")
        end = data + entry.offset + entry.nbytes


def _are_zero(gap: memoryview) -> bool:
    return not bytes(gap).strip(b"\0")


def _read(i: int, frame: bytearray | memoryview | bytes, entry: _Entry, data: int) -> torch.Tensor:
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=_TORCH[entry.dtype])
    tensor = _view(frame, entry, data)
    # Any other byte in a bool is undefined behaviour in torch's kernels.
    if entry.dtype is DType.BOOL and bool((tensor.view(torch.uint8) > 1).any()):
        raise DecodeError(f"tensor {i}: the bytes of a bool are 0 or 1")
    return tensor


def _view(frame: bytearray | memoryview | bytes, entry: _Entry, data: int) -> torch.Tensor:
    dtype = _TORCH[entry.dtype]
    count = entry.nbytes // _ITEMSIZE[entry.dtype]
    return torch.frombuffer(frame, dtype=dtype, count=count, offset=data + entry.offset).view(entry.shape)


def _unsendable(message: Message, error: Exception) -> InputError:
    """The error for a lone surrogate or an integer beyond 64 bits, in what a caller wrote."""
    return InputError(f"{type(message).__name__}: a text or number cannot be sent: {error}")


def _dtype(i: int, tensor: torch.Tensor) -> DType:
    dtype = from_torch(tensor.dtype)
    if dtype is None:
        raise InputError(f"tensor {i}: its dtype {tensor.dtype} is not one of {', '.join(map(str, DType))}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise InputError(
            f"tensor {i}: expected a dense tensor with data, got layout {tensor.layout} on {tensor.device}"
        )
    return dtype


def _align(offset: int) -> int:
    return (offset + _ALIGN - 1) // _ALIGN * _ALIGN
