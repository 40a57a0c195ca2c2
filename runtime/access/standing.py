"""What somebody is to a worker, looked up once: their rights, and whether they may speak to it at all.

It asks `admission` and remembers; it decides nothing.
"""

from __future__ import annotations

from typing import TypeVar

from runtime.access.admission import ONE_RIGHT, admit, enter
from runtime.errors import PermissionDenied
from runtime.identity import Identity
from runtime.messages import Body
from runtime.policy import Policy, Right

K = TypeVar("K")
_REMEMBERED = 4096


class Standing:
    """One name in one role.

    Attributes:
        identity: who it is.
        name: their name.
        rights: what they may do.
        refused: why they may not ask for anything; None where they may.
    """

    __slots__ = ("_admitted", "_worker", "identity", "name", "refused", "rights")

    def __init__(self, identity: Identity, policy: Policy, worker: str, *, vouched: bool) -> None:
        self.identity = identity
        self.name = identity.name
        self.rights = policy.rights(identity)
        self.refused: str | None = None
        self._worker = worker
        self._admitted: dict[type, Right] = {}
        try:
            enter(policy, identity, worker, vouched=vouched)
        except PermissionDenied as error:
            self.refused = str(error)

    def admit(self, body: Body) -> Right:
        """The right that a message asks for.

        Raises:
            PermissionDenied: they have not got it.
        """
        right = self._admitted.get(type(body))
        if right is None:
            right = admit(self.identity, self.rights, self._worker, body)
            if type(body) in ONE_RIGHT:
                self._admitted[type(body)] = right
        return right


class Standings:
    """All who asked lately.

    Args:
        policy: who may do what. It does not change.
        worker: the worker that is asked.
    """

    def __init__(self, policy: Policy, worker: str) -> None:
        self._policy = policy
        self._worker = worker
        self._vouched: dict[Identity, Standing] = {}
        self._clients: dict[str, Standing] = {}
        self._unvouched: dict[str, Standing] = {}

    def of(self, identity: Identity) -> Standing:
        """Of somebody whom the channel vouches for."""
        found = self._vouched.get(identity)
        if found is None:
            found = Standing(identity, self._policy, self._worker, vouched=True)
            _remember(self._vouched, identity, found)
        return found

    def client(self, name: str) -> Standing:
        """Of a client by name."""
        found = self._clients.get(name)
        if found is None:
            found = self.of(Identity(name))
            _remember(self._clients, name, found)
        return found

    def unvouched(self, name: str) -> Standing:
        """Of somebody of this process, whoever they say they are."""
        found = self._unvouched.get(name)
        if found is None:
            found = Standing(self._policy.unvouched(name), self._policy, self._worker, vouched=False)
            _remember(self._unvouched, name, found)
        return found


def _remember(known: dict[K, Standing], key: K, found: Standing) -> None:
    if len(known) >= _REMEMBERED:  # names cost nothing to invent
        known.clear()
    known[key] = found


__all__ = ["Standing", "Standings"]
