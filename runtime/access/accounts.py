"""The memory of objects: how much there is, who pays for what objects share, and whether a change fits.

A piece of memory is paid for by whom an object of it belonged to first: a view of offered data costs its
maker nothing. When they let go of it, the next pays. Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from runtime.errors import QuotaExceeded, StoreFull

Use = tuple[int, int, str]
"""Memory that an object uses: address, bytes, and whose object it is."""


class _Piece:
    """A piece of memory and how many objects of each owner use it; the first owner pays."""

    __slots__ = ("nbytes", "users")

    def __init__(self, nbytes: int, users: dict[str, int]) -> None:
        self.nbytes = nbytes
        self.users = users

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
    """Bytes of objects, of all and by owner.

    Attributes:
        max_bytes: the most that there may be of all.
        nbytes: what there is now. Memory that objects share counts once.
        limit: the most that an owner may hold; None for no limit.
        besides: bytes that count for an owner besides objects: those of plans.
    """

    max_bytes: int
    nbytes: int = 0
    limit: Callable[[str], int | None] = _no_limit
    besides: Callable[[str], int] = _nothing
    _pieces: dict[int, _Piece] = field(default_factory=dict[int, _Piece])
    _held: dict[str, int] = field(default_factory=dict[str, int])

    def held(self, owner: str) -> int:
        """Bytes of an owner's objects."""
        return self._held.get(owner, 0)

    def check(self, came: Collection[Use], gone: Collection[Use]) -> None:
        """Refuse a change by which more would be held than may be, and more than now.

        Raises:
            StoreFull: of all together.
            QuotaExceeded: of an owner.
        """
        most = 0  # if none of it is shared, and nothing goes
        limits: dict[str, int] = {}
        seen = None
        for _, nbytes, owner in came:
            most += nbytes
            if owner != seen:
                seen = owner
                limit = self.limit(owner)
                if limit is not None:
                    limits[owner] = limit
        if not limits and self.nbytes + most <= self.max_bytes:
            return
        growth, by_owner = self._growth(came, gone)
        if growth > 0:
            self.require_all(growth)
        for owner, more in by_owner.items():
            limit = limits.get(owner)
            if limit is not None and more > 0:
                self.require(owner, more, limit)

    def require_all(self, growth: int) -> None:
        """Refuse growth by which more would be held than may be.

        Raises:
            StoreFull: it would.
        """
        if self.nbytes + growth > self.max_bytes:
            raise StoreFull(
                f"{growth} more bytes do not fit: {self.nbytes} of at most {self.max_bytes} are held"
            )

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

    def add(self, use: Use) -> None:
        """An object came."""
        address, nbytes, owner = use
        piece = self._pieces.get(address)
        if piece is None:
            self._pieces[address] = _Piece(nbytes, {owner: 1})
            self.nbytes += nbytes
            self._held[owner] = self._held.get(owner, 0) + nbytes
        else:
            piece.shift(owner, 1)

    def remove(self, use: Use) -> None:
        """An object went."""
        address, _, owner = use
        piece = self._pieces[address]
        if len(piece.users) == 1 and piece.users.get(owner) == 1:  # as most memory is: nobody else uses it
            del self._pieces[address]
            self.nbytes -= piece.nbytes
            self._charge(owner, -piece.nbytes)
            return
        before = piece.payer
        piece.shift(owner, -1)
        after = piece.payer
        if before != after:
            self._charge(before, -piece.nbytes)
            self._charge(after, piece.nbytes)

    def replace(self, old: Use, new: Use) -> None:
        """An object went, and one came in its place."""
        pieces = self._pieces
        users = pieces[old[0]].users
        if old[1:] == new[1:] and new[0] not in pieces and len(users) == 1 and users[old[2]] == 1:
            pieces[new[0]] = pieces.pop(old[0])  # as most updates are: other memory, all else alike
        else:
            self.remove(old)
            self.add(new)

    def _charge(self, owner: str | None, nbytes: int) -> None:
        if owner is None:
            return
        self._held[owner] = self._held.get(owner, 0) + nbytes
        if not self._held[owner]:
            del self._held[owner]

    def _growth(self, came: Collection[Use], gone: Collection[Use]) -> tuple[int, Mapping[str, int]]:
        """What a change adds to all and to each owner, counted on copies of the pieces that it touches."""
        touched: dict[int, _Piece] = {}
        for group, by in ((gone, -1), (came, 1)):  # as a commit does it
            for address, nbytes, owner in group:
                piece = touched.get(address)
                if piece is None:
                    known = self._pieces.get(address)
                    piece = touched[address] = _Piece(nbytes, dict(known.users) if known else {})
                piece.shift(owner, by)
        total = 0
        out: dict[str, int] = {}
        for address, piece in touched.items():
            known = self._pieces.get(address)
            before, after = known.payer if known else None, piece.payer
            total += piece.nbytes * ((after is not None) - (before is not None))
            if before != after:
                for owner, nbytes in ((before, -piece.nbytes), (after, piece.nbytes)):
                    if owner is not None:
                        out[owner] = out.get(owner, 0) + nbytes
        return total, out


__all__ = ["Accounts", "Use"]
