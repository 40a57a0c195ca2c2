"""What a worker holds: objects by id, found by tag, counted in bytes. Knows no rights and no messages.

Tensors in a store are never written to, only replaced: views and copies may share memory, and a change is all
or nothing because it is one `Store.commit`. Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch

from runtime.access.accounts import Accounts, Use
from runtime.messages import Pointer
from runtime.policy import PUBLIC, Secrecy


class Stored(msgspec.Struct, frozen=True, eq=False, weakref=True):
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
        if (
            isinstance(before, torch.Tensor)
            and before.is_leaf
            and (before.requires_grad or before.grad is not None)
        ):
            # An update may be of another dtype or shape, for which the old gradient is none.
            same = value.dtype is before.dtype and value.shape == before.shape
            value.requires_grad_(before.requires_grad and value.is_floating_point())
            value.grad = before.grad if same else None
        return Stored(value, self.owner, self.tags, self.description, secrecy, self.grad_secrecy)

    def with_value(self, value: torch.Tensor, secrecy: Secrecy) -> Stored:
        """The object with other elements, all else as it was."""
        return Stored(value, self.owner, self.tags, self.description, secrecy, self.grad_secrecy)


@dataclass(frozen=True, slots=True)
class _Before:
    """An object as it was: with what autograd keeps in its tensor, which is changed in place."""

    stored: Stored
    grad: torch.Tensor | None
    requires_grad: bool


class Deferred(Protocol):
    """New elements of objects that were not put yet: see `Store.defer`."""

    @property
    def ids(self) -> frozenset[int]:
        """The objects."""
        ...

    def settle(self, values: Sequence[torch.Tensor]) -> Mapping[int, Stored]:
        """The new objects, by id, of what was deferred; called when somebody wants to see them."""
        ...


class Store:
    """Objects by id.

    A client that runs one plan again and again replaces its state each time, and drops each result before the
    next comes, and nobody looks. So what `defer` is given is put in its place, counted and found by its tags
    when anything else wants to see the store, and not before.

    Args:
        max_bytes: the limit of memory. Memory that objects share counts once; ``.grad`` and what autograd
            keeps for a backward pass are not counted.
    """

    def __init__(self, max_bytes: int) -> None:
        self._accounts = Accounts(max_bytes)
        self._objects: dict[int, Stored] = {}
        self._uses: dict[int, Use] = {}
        self._tags: dict[str, dict[int, None]] = {}
        self._ids: dict[int, int] = {}
        self._before: dict[int, _Before | None] | None = None
        self._deferred: tuple[Deferred, Sequence[torch.Tensor]] | None = None
        self._deferred_ids: frozenset[int] = frozenset()
        self._young: dict[int, Stored] = {}

    @property
    def accounts(self) -> Accounts:
        """What is held, of all and by owner, and what may be."""
        self._catch_up()
        return self._accounts

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        return self.accounts.nbytes

    @property
    def max_bytes(self) -> int:
        """Bytes that may be held."""
        return self._accounts.max_bytes

    def __len__(self) -> int:
        return len(self._objects) + len(self._young)

    def __iter__(self) -> Iterator[int]:
        self._catch_up()
        return iter(self._objects)

    def __contains__(self, id: int) -> bool:
        return id in self._objects or id in self._young

    def get(self, id: int) -> Stored | None:
        """The object of this id, if there is one."""
        if id in self._deferred_ids or id in self._young:
            self._catch_up()
        return self._objects.get(id)

    def owner_of(self, id: int) -> str | None:
        """Whose object this is, if there is one."""
        found = self._objects.get(id) or self._young.get(id)
        return None if found is None else found.owner

    def id_of(self, tensor: torch.Tensor) -> int | None:
        """The id of the object that is this very tensor, if there is one."""
        self._catch_up()
        return self._ids.get(id(tensor))

    def search(self, tags: Iterable[str]) -> list[int]:
        """The ids of the objects that have all of these tags, ascending; without tags, of all objects."""
        self._catch_up()
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
        self._catch_up()
        objects, uses = self._objects, self._uses
        gone = [id for id in (*deletes, *puts) if id in objects]
        came = _uses(puts)
        if came:
            self._accounts.check(came.values(), [uses[id] for id in gone if id in uses])
        if self._before is not None:
            self.touch((*gone, *puts))
        self._apply(puts, gone, came)

    @property
    def may_defer(self) -> bool:
        """Whether `defer` may be used: not where everything that changes is written down."""
        return self._before is None

    def defer(self, new: Mapping[int, Stored], update: Deferred, values: Sequence[torch.Tensor]) -> None:
        """As `commit`, for objects that are new and others that are replaced by as many bytes: later.

        One update at a time is deferred: what another deferred is put now.

        Args:
            new: the new objects by id.
            update: makes objects of ``values``. Those that they replace are all there.
            values: the new elements, and whatever else the update wants to know again.

        Raises:
            StoreFull, QuotaExceeded: as `commit`; nothing has changed then.
        """
        if self._young or self.deferred(update) is None:
            self._catch_up()
        if new:
            self._accounts.check(_uses(new).values(), ())
            self._young.update(new)
        self._deferred, self._deferred_ids = (update, values), update.ids

    def deferred(self, update: Deferred) -> Sequence[torch.Tensor] | None:
        """What this update deferred, if it is the one that is deferred now."""
        found = self._deferred
        return found[1] if found is not None and found[0] is update else None

    def drop(self, ids: Sequence[int]) -> None:
        """Delete objects that are there."""
        ids = list(dict.fromkeys(ids))
        if self._young:
            ids = [id for id in ids if self._young.pop(id, None) is None]
        if not ids:
            return
        self._catch_up()
        if self._before is not None:
            self.touch(ids)
        for id_ in ids:
            self._remove(id_)

    def touch(self, ids: Iterable[int]) -> None:
        """Say that these objects are going to change; `commit` does so itself.

        For what changes in place: ``.grad`` and ``requires_grad``.
        """
        self._catch_up()
        if self._before is not None:
            for id in ids:
                if id not in self._before:
                    self._before[id] = self._picture(id)

    def record(self) -> None:
        """From now on remember what changes, and how it was before."""
        self._catch_up()
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
        gone = [id for id in (*deletes, *puts) if id in self._objects]
        self._apply(puts, gone, _uses(puts))

    def _catch_up(self) -> None:
        """Put what was deferred."""
        young, deferred = self._young, self._deferred
        if young:
            self._young = {}
            self._apply(young, (), _uses(young))
        if deferred is not None:
            update, values = deferred
            self._deferred, self._deferred_ids = None, frozenset()
            puts = update.settle(values)
            self._apply(puts, list(puts), _uses(puts))

    def _picture(self, id: int) -> _Before | None:
        stored = self._objects.get(id)
        if stored is None:
            return None
        value = stored.value
        if not isinstance(value, torch.Tensor):
            return _Before(stored, None, False)
        return _Before(stored, value.grad if value.is_leaf else None, value.requires_grad)

    def _apply(self, puts: Mapping[int, Stored], gone: Iterable[int], came: Mapping[int, Use]) -> None:
        objects, uses, ids, replace = self._objects, self._uses, self._ids, self._accounts.replace
        for id_ in gone:
            old = objects.get(id_)
            if old is None:  # named twice
                continue
            new, use = puts.get(id_), came.get(id_)
            if new is None or use is None or id_ not in uses or old.tags != new.tags:
                self._remove(id_)
                continue
            # As most updates are: neither memory nor tags come or go.
            replace(uses[id_], use)
            ids.pop(id(old.value), None)
            objects[id_], uses[id_] = new, use
        for id_, stored in puts.items():
            if id_ in objects:  # it was replaced above
                ids[id(stored.value)] = id_
            else:
                self._insert(id_, stored, came.get(id_))

    def _insert(self, id_: int, stored: Stored, use: Use | None) -> None:
        self._objects[id_] = stored
        if use is not None:
            self._uses[id_] = use
            self._accounts.add(use)
        self._ids[id(stored.value)] = id_
        for tag in stored.tags:
            self._tags.setdefault(tag, {})[id_] = None

    def _remove(self, id_: int) -> None:
        stored = self._objects.pop(id_)
        use = self._uses.pop(id_, None)
        if use is not None:
            self._accounts.remove(use)
        self._ids.pop(id(stored.value), None)
        for tag in dict.fromkeys(stored.tags):
            self._tags[tag].pop(id_)
            if not self._tags[tag]:
                del self._tags[tag]


def _uses(puts: Mapping[int, Stored]) -> dict[int, Use]:
    """The memory that objects use, of those that use any."""
    found: dict[int, Use] = {}
    for id, stored in puts.items():
        value = stored.value
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            nbytes = storage.nbytes()
            if nbytes:
                found[id] = storage.data_ptr(), nbytes, stored.owner
    return found
