"""Who may do what with an object, and what becomes of private values. Decides only: `worker` asks and acts.

- An object belongs to the client that made it. Others see it when it has tags, when they are among its
  ``allowed``, or when the worker itself offers it. To anyone else it does not exist.
- Only its owner may change it: delete, replace, or reach it by a gradient.
- A private object can be computed with, but its elements leave to no one except its ``allowed`` (not even to
  its owner). What is computed from private values is private, and ``allowed`` are those of all of them.
- The results of a plan that the worker's owner approved are public, if its private inputs are originals: with
  derived ones a plan that reveals a mean could be fed many copies of one row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True, slots=True)
class Secrecy:
    """Whether a value is private, and to whom it may go all the same.

    Attributes:
        private: its elements do not leave.
        derived: it was computed from private values.
        allowed: the clients and workers that may have it.
    """

    private: bool = False
    derived: bool = False
    allowed: frozenset[str] = frozenset()


PUBLIC = Secrecy()


def derive(sources: Iterable[Secrecy]) -> Secrecy:
    """The secrecy of what is computed from values of these."""
    private = [source for source in sources if source.private]
    if not private:
        return PUBLIC
    allowed = reduce(frozenset[str].__and__, (source.allowed for source in private))
    return Secrecy(private=True, derived=True, allowed=allowed)


def derive_approved(sources: Iterable[Secrecy]) -> Secrecy:
    """The secrecy of what an approved plan computes from values of these."""
    derived = [source for source in sources if source.private and source.derived]
    return derive(derived)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules above, as questions.

    Attributes:
        peers: the workers that may put objects in the name of their owner; None for any.
    """

    peers: frozenset[str] | None = None

    def may_see(self, client: str, owner: str, worker: str, secrecy: Secrecy, tags: tuple[str, ...]) -> bool:
        """Whether an object exists for a client."""
        return client == owner or owner == worker or bool(tags) or client in secrecy.allowed

    def may_change(self, client: str, owner: str) -> bool:
        """Whether a client may delete or replace an object."""
        return client == owner

    def may_have(self, whom: str, secrecy: Secrecy) -> bool:
        """Whether a client or worker may have the elements of a value."""
        return not secrecy.private or whom in secrecy.allowed

    def may_put_for(self, client: str, owner: str) -> bool:
        """Whether a client may put an object that belongs to another."""
        return client == owner or self.peers is None or client in self.peers
