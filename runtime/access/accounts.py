"""Bytes by owner: who pays for memory that objects share, and whether a change fits their quota.

A piece of memory is paid for by whom an object of it belonged to first: a view of offered data costs its
maker nothing. When they let go of it, the next pays. Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from runtime.errors import QuotaExceeded


class Held(Protocol):
    """An object as the account sees it: `runtime.store.Stored`."""

    @property
    def value(self) -> object: ...

    @property
    def owner(self) -> str: ...


@dataclass(slots=True)
class _Piece:
    """A piece of memory and how many objects of each owner use it; the first owner pays."""

    nbytes: int
    users: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def payer(self) -> str | None:
        return next(iter(self.users), None)

    def shift(self, owner: str, by: int) -> None:
        count = self.users.get(owner, 0) + by
        if count > 0:
            self.users[owner] = count
        else:
            self.users.pop(owner, None)


def _no_limit(_owner: str) -> int | None:
    return None


def _nothing(_owner: str) -> int:
    return 0


@dataclass(slots=True)
class Accounts:
    """Bytes of objects by owner.

    Attributes:
        limit: the most that an owner may hold; None for no limit.
        besides: bytes that count for an owner besides objects: those of plans.
    """

    limit: Callable[[str], int | None] = _no_limit
    besides: Callable[[str], int] = _nothing
    _pieces: dict[int, _Piece] = field(default_factory=dict[int, _Piece])
    _held: dict[str, int] = field(default_factory=dict[str, int])

    def held(self, owner: str) -> int:
        """Bytes of an owner's objects."""
        return self._held.get(owner, 0)

    def check(self, puts: Iterable[Held], gone: Iterable[Held]) -> None:
        """Refuse a change by which an owner would hold more than they may, and more than now.

        Raises:
            QuotaExceeded: one would.
        """
        puts = list(puts)
        owners = {held.owner for held in puts}
        limits = {owner: limit for owner in owners if (limit := self.limit(owner)) is not None}
        if not limits:
            return
        for owner, growth in self._growth(puts, gone).items():
            limit = limits.get(owner)
            if limit is not None and growth > 0:
                self.require(owner, growth, limit)

    def require(self, owner: str, growth: int, limit: int) -> None:
        """Refuse growth by which an owner would hold more than they may.

        Raises:
            QuotaExceeded: they would.
        """
        held = self.held(owner) + self.besides(owner)
        if held + growth > limit:
            raise QuotaExceeded(
                f"{growth} more bytes do not fit: {owner!r} holds {held} of at most {limit} bytes here; "
                "let go of some, or ask the worker's owner for more (quota.bytes)"
            )

    def add(self, held: Held) -> None:
        """An object came."""
        self._shift(held, 1)

    def remove(self, held: Held) -> None:
        """An object went."""
        self._shift(held, -1)

    def _shift(self, held: Held, by: int) -> None:
        found = _memory(held)
        if found is None:
            return
        address, nbytes = found
        piece = self._pieces.setdefault(address, _Piece(nbytes))
        before = piece.payer
        piece.shift(held.owner, by)
        after = piece.payer
        if before != after:
            self._charge(before, -piece.nbytes)
            self._charge(after, piece.nbytes)
        if after is None:
            del self._pieces[address]

    def _charge(self, owner: str | None, nbytes: int) -> None:
        if owner is None:
            return
        self._held[owner] = self._held.get(owner, 0) + nbytes
        if not self._held[owner]:
            del self._held[owner]

    def _growth(self, puts: Iterable[Held], gone: Iterable[Held]) -> Mapping[str, int]:
        """What a change adds to each owner, counted on copies of the pieces that it touches."""
        touched: dict[int, _Piece] = {}
        for group, by in ((gone, -1), (puts, 1)):  # as a commit does it
            for held in group:
                found = _memory(held)
                if found is None:
                    continue
                address, nbytes = found
                piece = touched.get(address)
                if piece is None:
                    known = self._pieces.get(address)
                    piece = touched[address] = _Piece(nbytes, dict(known.users) if known else {})
                piece.shift(held.owner, by)
        out: dict[str, int] = {}
        for address, piece in touched.items():
            known = self._pieces.get(address)
            before, after = known.payer if known else None, piece.payer
            if before != after:
                for owner, nbytes in ((before, -piece.nbytes), (after, piece.nbytes)):
                    if owner is not None:
                        out[owner] = out.get(owner, 0) + nbytes
        return out


def _memory(held: Held) -> tuple[int, int] | None:
    """The address and size of the memory that an object uses, if it uses any."""
    if not isinstance(held.value, torch.Tensor):
        return None
    storage = held.value.untyped_storage()
    nbytes = storage.nbytes()
    return (storage.data_ptr(), nbytes) if nbytes else None


__all__ = ["Accounts", "Held"]
