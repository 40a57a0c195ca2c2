"""Which piece of memory lies in which blob, who uses it, and what a change makes of that. Writes nothing.

Objects that share memory share a piece, so that bytes are counted after a restart as before. A blob whose
pieces are mostly unused is written anew without them: on the disk is at most about twice what is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from runtime.durable.blobs import Blob, Memory
from runtime.durable.rows import TensorRow, tensor_row

User = tuple[str, int | str]
"""Who uses pieces: ("object", id) or ("plan", id)."""
_ALONE = 2**20
"""A piece of this many bytes has a blob of its own."""
_GROUP = 4 * 2**20
"""Smaller ones share blobs of about this many bytes."""


@dataclass(slots=True)
class _Kept:
    """A piece on the disk. ``memory`` is None where nothing is going to share it."""

    blob: int
    users: int
    memory: Memory | None
    nbytes: int


@dataclass(slots=True)
class _Held:
    """A blob on the disk, and its pieces that are used."""

    blob: Blob
    pieces: set[int]


@dataclass(slots=True)
class Catalogue:
    """What is on the disk now.

    Attributes:
        kept: the pieces, by id.
        held: the blobs of pieces, by id.
        at: the piece of each address in memory.
        used: the pieces of each user, one as often as the user has tensors of it.
        foreign: memory that is kept elsewhere, by address.
        next_piece: the id of the next piece; none is given twice.
        next_blob: the id of the next blob, likewise.
    """

    kept: dict[int, _Kept] = field(default_factory=dict[int, _Kept])
    held: dict[int, _Held] = field(default_factory=dict[int, _Held])
    at: dict[int, int] = field(default_factory=dict[int, int])
    used: dict[User, tuple[int, ...]] = field(default_factory=dict[User, tuple[int, ...]])
    foreign: dict[int, torch.UntypedStorage] = field(default_factory=dict[int, torch.UntypedStorage])
    next_piece: int = 1
    next_blob: int = 1

    def pass_over(self, tensor: torch.Tensor) -> None:
        """The memory of this tensor is kept elsewhere: a view of it is written as the part that it shows."""
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self.foreign[storage.data_ptr()] = storage

    def draft(self) -> Draft:
        """A change to be written down, and then `Draft.settle`d."""
        return Draft(self)

    def new_blob(self) -> int:
        """The id of a blob that is going to be written. None is given twice."""
        self.next_blob += 1
        return self.next_blob - 1

    def restore(
        self,
        blobs: Iterable[Blob],
        pieces: dict[int, torch.UntypedStorage],
        users: dict[User, list[TensorRow]],
    ) -> list[Blob]:
        """Know what was read from the disk. Returns the blobs of tensors that nobody uses."""
        self.used = {user: tuple(row.piece for row in rows if row.piece) for user, rows in users.items()}
        counts = Counter(piece for used in self.used.values() for piece in used)
        labels = {row.piece: row for rows in users.values() for row in rows}
        unused: list[Blob] = []
        for blob in blobs:
            self.next_blob = max(self.next_blob, blob.id + 1)
            live = {piece.id for piece in blob.pieces if counts[piece.id]}
            self.next_piece = max([self.next_piece, *(piece.id + 1 for piece in blob.pieces)])
            if blob.kind == "frame":
                continue
            if not live:
                unused.append(blob)
                continue
            self.held[blob.id] = _Held(blob, live)
            for piece in live:
                memory = _memory(pieces[piece], labels[piece])
                self.kept[piece] = _Kept(blob.id, counts[piece], memory, memory.nbytes)
                self.at[pieces[piece].data_ptr()] = piece
        return unused


@dataclass(slots=True)
class Draft:
    """What one commit changes. Nothing in the catalogue is touched before `settle`."""

    _catalogue: Catalogue
    _users: dict[User, list[int]] = field(default_factory=dict[User, list[int]])
    _fresh: dict[int, Memory] = field(default_factory=dict[int, Memory])
    _unshared: set[int] = field(default_factory=set[int])
    _at: dict[int, int] = field(default_factory=dict[int, int])
    _counts: Counter[int] = field(default_factory=Counter[int])
    _written: list[Blob] = field(default_factory=list[Blob])
    gone: list[Blob] = field(default_factory=list[Blob])
    """The blobs that are no longer needed when this is written down; known after `groups`."""

    def use(self, user: User) -> None:
        """This user uses what `refer` is told from here on, and no longer what it used."""
        self._users[user] = []

    def refer(self, user: User, tensor: torch.Tensor) -> TensorRow:
        """How a tensor is written down; its memory is written too where it is not on the disk."""
        storage = tensor.untyped_storage()
        if not tensor.numel():
            return tensor_row(tensor, 0, 0)
        address = storage.data_ptr()
        if address in self._catalogue.foreign:
            return self._refer_part(user, tensor)
        piece = self._catalogue.at.get(address) or self._at.get(address)
        if piece is None:
            piece = self._at[address] = self._new(Memory(storage))
        row = tensor_row(tensor, piece)
        if piece in self._fresh:
            self._fresh[piece] = _memory(storage, row)
        self._users[user].append(piece)
        return row

    def groups(self) -> Iterator[tuple[int, Sequence[tuple[int, Memory]]]]:
        """The blobs to be written, as ids and pieces. To be gone through once, when all users are known."""
        self._count()
        group: list[tuple[int, Memory]] = []
        size = 0
        for piece, memory in self._fresh.items():
            if memory.nbytes >= _ALONE or piece in self._unshared:
                yield self._catalogue.new_blob(), [(piece, memory)]
                continue
            group.append((piece, memory))
            size += memory.nbytes
            if size >= _GROUP:
                yield self._catalogue.new_blob(), group
                group, size = [], 0
        if group:
            yield self._catalogue.new_blob(), group

    def wrote(self, blob: Blob) -> None:
        """This blob of `groups` is written."""
        self._written.append(blob)

    def settle(self) -> None:
        """It is written down: from now on this is what is on the disk."""
        catalogue = self._catalogue
        for user, pieces in self._users.items():
            if pieces:
                catalogue.used[user] = tuple(pieces)
            else:
                catalogue.used.pop(user, None)
        for blob in self.gone:
            catalogue.held.pop(blob.id, None)
        for blob in self._written:
            catalogue.held[blob.id] = _Held(blob, {piece.id for piece in blob.pieces})
            for piece in blob.pieces:
                old = catalogue.kept.get(piece.id)
                memory = None if piece.id in self._unshared else self._fresh[piece.id]
                catalogue.kept[piece.id] = _Kept(blob.id, old.users if old else 0, memory, piece.nbytes)
        for piece, change in self._counts.items():
            catalogue.kept[piece].users += change
            if not catalogue.kept[piece].users:
                self._forget(piece)
        catalogue.at.update({at: piece for at, piece in self._at.items() if piece in catalogue.kept})

    def _new(self, memory: Memory) -> int:
        piece = self._catalogue.next_piece
        self._catalogue.next_piece += 1
        self._fresh[piece] = memory
        return piece

    def _refer_part(self, user: User, tensor: torch.Tensor) -> TensorRow:
        steps = ((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        part = tensor.detach().as_strided((sum(steps) + 1,), (1,), tensor.storage_offset()).clone()
        piece = self._new(Memory(part.untyped_storage()))
        self._unshared.add(piece)
        self._users[user].append(piece)
        return tensor_row(tensor, piece, 0)

    def _count(self) -> None:
        """Who uses how many more or fewer, which blobs are done with, and which are worth writing anew."""
        catalogue = self._catalogue
        for user, pieces in self._users.items():
            self._counts.update(pieces)
            self._counts.subtract(catalogue.used.get(user, ()))
        kept = catalogue.kept
        dead = {p for p, n in self._counts.items() if p in kept and not kept[p].users + n}
        for id in {kept[piece].blob for piece in dead}:
            held = catalogue.held[id]
            left = {piece: kept[piece] for piece in held.pieces - dead}
            if 2 * sum(piece.nbytes for piece in left.values()) >= held.blob.nbytes:
                continue
            self.gone.append(held.blob)
            self._fresh.update({id: piece.memory for id, piece in left.items() if piece.memory})

    def _forget(self, piece: int) -> None:
        catalogue = self._catalogue
        kept = catalogue.kept.pop(piece)
        if held := catalogue.held.get(kept.blob):
            held.pieces.discard(piece)
        if kept.memory is not None:
            catalogue.at.pop(kept.memory.storage.data_ptr(), None)


def _memory(storage: torch.UntypedStorage, row: TensorRow) -> Memory:
    """A piece, as the tensor that it is where that is all of it: then any reader of the file sees it so."""
    whole = row.offset == 0 and _elements(row.shape) * row.dtype.itemsize == storage.nbytes()
    if whole and row.strides == _dense(row.shape):
        return Memory(storage, row.dtype.name, row.shape)
    return Memory(storage)


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    steps: list[int] = []
    step = 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))
