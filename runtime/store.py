"""What a worker holds: objects by id, found by tag, counted in bytes. Knows no rights and no messages.

Tensors in a store are never written to, only replaced: views and copies may share memory, and a change is all
or nothing because it is one `Store.commit`. Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from runtime.access.accounts import Accounts
from runtime.errors import StoreFull
from runtime.messages import Pointer
from runtime.policy import PUBLIC, Secrecy


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One object.

    ``grad_secrecy`` is that of its ``.grad``, which may come from more private values. ``spent`` says that a
    backward pass from it freed what another would need.
    """

    value: torch.Tensor | Pointer
    owner: str
    tags: tuple[str, ...] = ()
    description: str = ""
    secrecy: Secrecy = PUBLIC
    grad_secrecy: Secrecy = PUBLIC
    spent: bool = False

    def updated(self, value: torch.Tensor, secrecy: Secrecy) -> Stored:
        """The object after an update: new elements (a fresh leaf), all else, ``.grad`` too, as it was."""
        before = self.value
        if isinstance(before, torch.Tensor) and before.is_leaf:
            value.requires_grad_(before.requires_grad)
            value.grad = before.grad
        return replace(self, value=value, secrecy=secrecy, spent=False)


@dataclass(slots=True)
class _Storage:
    """A piece of memory that objects share."""

    users: int
    nbytes: int


@dataclass(slots=True)
class _Shift:
    """What a commit does to one piece of memory."""

    nbytes: int
    users: int = 0


@dataclass(frozen=True, slots=True)
class _Before:
    """An object as it was: with what autograd keeps in its tensor, which is changed in place."""

    stored: Stored
    grad: torch.Tensor | None
    requires_grad: bool


@dataclass(slots=True)
class Store:
    """Objects by id.

    Attributes:
        max_bytes: the limit of memory. Memory that objects share counts once; ``.grad`` and what autograd
            keeps for a backward pass are not counted.
        nbytes: what is held now.
        accounts: the same by owner, and what each may hold.
    """

    max_bytes: int
    nbytes: int = 0
    accounts: Accounts = field(default_factory=Accounts)
    _objects: dict[int, Stored] = field(default_factory=dict[int, Stored])
    _tags: dict[str, dict[int, None]] = field(default_factory=dict[str, dict[int, None]])
    _storages: dict[int, _Storage] = field(default_factory=dict[int, _Storage])
    _ids: dict[int, int] = field(default_factory=dict[int, int])
    _before: dict[int, _Before | None] | None = None

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[int]:
        return iter(self._objects)

    def get(self, id: int) -> Stored | None:
        """The object of this id, if there is one."""
        return self._objects.get(id)

    def id_of(self, tensor: torch.Tensor) -> int | None:
        """The id of the object that is this very tensor, if there is one."""
        return self._ids.get(id(tensor))

    def search(self, tags: Iterable[str]) -> list[int]:
        """The ids of the objects that have all of these tags, ascending; without tags, of all objects."""
        groups = [self._tags.get(tag, {}).keys() for tag in tags]
        if not groups:
            return sorted(self._objects)
        smallest = min(groups, key=len)
        return sorted(id for id in smallest if all(id in group for group in groups))

    def commit(self, puts: Mapping[int, Stored], deletes: Iterable[int] = ()) -> None:
        """Delete and put objects, replacing those that are there: all of it, or nothing and an error.

        Args:
            puts: the new objects by id. Each holds a tensor object of its own.
            deletes: ids to delete first; those that do not exist are passed over.

        Raises:
            StoreFull: the limit of bytes would be exceeded.
            QuotaExceeded: that of an owner would be.
        """
        gone, shifts = self._shifts(puts, deletes)
        growth = self._growth(shifts)
        if growth > 0 and self.nbytes + growth > self.max_bytes:
            raise StoreFull(
                f"{growth} more bytes do not fit: {self.nbytes} of at most {self.max_bytes} are held"
            )
        self.accounts.check(puts.values(), gone.values())
        self.touch((*gone, *puts))
        self._apply(puts, gone, growth, shifts)

    def touch(self, ids: Iterable[int]) -> None:
        """Say that these objects are going to change; `commit` does so itself.

        For what changes in place: ``.grad`` and ``requires_grad``.
        """
        if self._before is not None:
            for id in ids:
                if id not in self._before:
                    self._before[id] = self._picture(id)

    def record(self) -> None:
        """From now on remember what changes, and how it was before."""
        self._before = {}

    @property
    def changed(self) -> list[int]:
        """The ids of what changed since `record` or `settle`."""
        return list(self._before or ())

    def settle(self) -> None:
        """Let the changes stand."""
        if self._before is not None:
            self._before = {}

    def undo(self) -> None:
        """Take back what changed since `record` or `settle`."""
        before, self._before = self._before or {}, None
        self.restore({id: b.stored for id, b in before.items() if b is not None}, before)
        for picture in before.values():
            if picture is not None and isinstance(value := picture.stored.value, torch.Tensor):
                if value.is_leaf and value.requires_grad != picture.requires_grad:
                    value.requires_grad_(picture.requires_grad)
                if value.is_leaf:
                    value.grad = picture.grad
        self._before = {}

    def restore(self, puts: Mapping[int, Stored], deletes: Iterable[int] = ()) -> None:
        """As `commit`, for what was held before: no limit, and nothing to remember."""
        gone, shifts = self._shifts(puts, deletes)
        self._apply(puts, gone, self._growth(shifts), shifts)

    def _picture(self, id: int) -> _Before | None:
        stored = self._objects.get(id)
        if stored is None:
            return None
        value = stored.value
        if not isinstance(value, torch.Tensor):
            return _Before(stored, None, False)
        return _Before(stored, value.grad if value.is_leaf else None, value.requires_grad)

    def _shifts(
        self, puts: Mapping[int, Stored], deletes: Iterable[int]
    ) -> tuple[dict[int, Stored], dict[int, _Shift]]:
        """What goes, and what becomes of each piece of memory."""
        gone = {id: self._objects[id] for id in (*deletes, *puts) if id in self._objects}
        shifts: dict[int, _Shift] = {}
        for stored in puts.values():
            _count(stored, 1, shifts)
        for stored in gone.values():
            _count(stored, -1, shifts)
        return gone, shifts

    def _apply(
        self,
        puts: Mapping[int, Stored],
        gone: Mapping[int, Stored],
        growth: int,
        shifts: Mapping[int, _Shift],
    ) -> None:
        self.nbytes += growth
        self._shift(shifts)
        for id, stored in gone.items():
            self._remove(id, stored)
        for id, stored in puts.items():
            self._insert(id, stored)

    def _growth(self, shifts: Mapping[int, _Shift]) -> int:
        growth = 0
        for address, shift in shifts.items():
            storage = self._storages.get(address)
            before = storage.users if storage else 0
            growth += shift.nbytes * ((before + shift.users > 0) - (before > 0))
        return growth

    def _shift(self, shifts: Mapping[int, _Shift]) -> None:
        for address, shift in shifts.items():
            storage = self._storages.setdefault(address, _Storage(0, shift.nbytes))
            storage.users += shift.users
            if not storage.users:
                del self._storages[address]

    def _insert(self, id_: int, stored: Stored) -> None:
        self._objects[id_] = stored
        self.accounts.add(stored)
        if isinstance(stored.value, torch.Tensor):
            self._ids[id(stored.value)] = id_
        for tag in stored.tags:
            self._tags.setdefault(tag, {})[id_] = None

    def _remove(self, id_: int, stored: Stored) -> None:
        del self._objects[id_]
        self.accounts.remove(stored)
        self._ids.pop(id(stored.value), None)
        for tag in dict.fromkeys(stored.tags):
            self._tags[tag].pop(id_)
            if not self._tags[tag]:
                del self._tags[tag]


def _count(stored: Stored, users: int, shifts: dict[int, _Shift]) -> None:
    if not isinstance(stored.value, torch.Tensor):
        return
    storage = stored.value.untyped_storage()
    if storage.nbytes():
        shifts.setdefault(storage.data_ptr(), _Shift(storage.nbytes())).users += users
