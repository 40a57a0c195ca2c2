"""The bytes of a durable store: blobs, each in a file of its own, or in the index where it is small.

A blob is a safetensors file of pieces of memory, or the frame of a reply. It is written once and never
changed. Knows how they are laid out and read, not who uses them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import torch

INLINE = 64 * 2**10
"""A blob of up to this many bytes stands in the index: a file would cost two more waits for the disk."""
_CHUNK = 16 * 2**20
Kind = Literal["safetensors", "frame"]
FILE_NAME = re.compile(r"(\d+)\.(safetensors|frame)(\.tmp)?")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of memory in a blob: where it begins, and how many bytes it has."""

    id: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that was written. ``data`` is None where it lies in a file."""

    id: int
    kind: Kind
    nbytes: int
    digest: bytes
    pieces: tuple[Piece, ...] = ()
    data: bytes | None = None

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.id}.{self.kind}"


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of memory that is to be written, and as what: a dtype's safetensors name and a shape."""

    storage: torch.UntypedStorage
    dtype: str = "U8"
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.storage.nbytes()


def lay_out(memories: Sequence[tuple[int, Memory]]) -> tuple[bytes, tuple[Piece, ...]]:
    """The header of a safetensors file, and where its pieces are going to lie.

    By hand, since the library's writers take copies of all tensors: a file here is written as it is read from
    memory. Any reader of safetensors can open it.
    """
    table: dict[str, object] = {}
    end = 0
    for id, memory in memories:
        shape = memory.shape if memory.dtype != "U8" else (memory.nbytes,)
        start, end = end, end + memory.nbytes
        table[str(id)] = {"dtype": memory.dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    at = len(header)
    pieces: list[Piece] = []
    for id, memory in memories:
        pieces.append(Piece(id, at, memory.nbytes))
        at += memory.nbytes
    return header, tuple(pieces)


def parts(header: bytes, memories: Sequence[tuple[int, Memory]]) -> Iterator[memoryview]:
    """The bytes of the file, a piece at a time."""
    yield memoryview(header)
    for _, memory in memories:
        yield _view(_bytes_of(memory.storage).cpu())


def read(
    blob: Blob, folder: Path, wanted: Collection[int], device: torch.device
) -> dict[int, torch.UntypedStorage]:
    """The wanted pieces of a blob, each in memory of its own. All of the blob is checked.

    Raises:
        ValueError: it is not what was written; says in what way.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    out: dict[int, torch.UntypedStorage] = {}
    if blob.data is not None:
        digest.update(blob.data)
        _check(blob, digest.digest(), len(blob.data))
        for piece in blob.pieces:
            if piece.id in wanted:
                memory = torch.empty(piece.nbytes, dtype=torch.uint8)
                _view(memory)[:] = blob.data[piece.offset : piece.offset + piece.nbytes]
                out[piece.id] = memory.to(device).untyped_storage()
        return out
    with (folder / blob.name).open("rb", buffering=0) as file:
        at = 0
        for piece in sorted(blob.pieces, key=lambda piece: piece.offset):
            at += _skip(file, piece.offset - at, digest.update)
            if piece.id in wanted:
                memory = torch.empty(piece.nbytes, dtype=torch.uint8)
                at += _fill(file, _view(memory), digest.update)
                out[piece.id] = memory.to(device).untyped_storage()
        at += _skip(file, None, digest.update)
    _check(blob, digest.digest(), at)
    return out


def read_all(blob: Blob, folder: Path) -> bytes:
    """All bytes of a blob.

    Raises:
        ValueError: they are not what was written.
        OSError: they cannot be read.
    """
    data = (folder / blob.name).read_bytes() if blob.data is None else blob.data
    _check(blob, hashlib.sha256(data).digest(), len(data))
    return data


def _check(blob: Blob, digest: bytes, nbytes: int) -> None:
    where = "in the index" if blob.data is not None else f"file {blob.name}"
    if nbytes != blob.nbytes:
        raise ValueError(f"{where}: {blob.nbytes} bytes were written, {nbytes} are there")
    if digest != blob.digest:
        raise ValueError(f"{where}: its checksum is not that of what was written")


def _skip(file: BinaryIO, count: int | None, update: Callable[[bytes], None]) -> int:
    """Read past some bytes, or past all; returns how many there were."""
    done = 0
    while count is None or done < count:
        data = file.read(_CHUNK if count is None else min(_CHUNK, count - done))
        if not data:
            break
        update(data)
        done += len(data)
    return done


def _fill(file: BinaryIO, view: memoryview, update: Callable[[memoryview], None]) -> int:
    done = 0
    while done < view.nbytes:
        count = file.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined] # unbuffered files have it
        if not count:
            break
        update(view[done : done + count])
        done += count
    return done


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _view(memory: torch.Tensor) -> memoryview:
    return memory.numpy().data.cast("B")
