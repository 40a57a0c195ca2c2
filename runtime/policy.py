"""Who may do what, and what becomes of private values. Decides only: `worker` and `call` ask and act.

- An object belongs to the client that made it. Others see it when it has tags, when they are among its
  ``allowed``, or when the worker itself offers it. To anyone else it does not exist.
- Only its owner may change it: delete, replace, or reach it by a gradient.
- A private object can be computed with, but its elements leave to no one except its ``allowed`` (not even to
  its owner). What is computed from private values is private, and ``allowed`` are those of all of them.
- The results of a plan that the worker's owner approved are public, if its private inputs are originals: with
  derived ones a plan that reveals a mean could be fed many copies of one row.
- Beyond that a policy narrows each client's rights on what is not its own, and bounds what it may take. The
  file that says so is read by `runtime.access.file`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import reduce

from runtime.identity import Identity, Role


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


class Right(StrEnum):
    """What a message asks to do; `runtime.access.admission` has the right of each message."""

    __hash__ = str.__hash__  # Enum has its own, in Python

    SEARCH = "search"
    """See listings."""
    USE = "use"
    """Compute, one operation at a time."""
    RUN = "run"
    """Install and run plans."""
    SEND = "send"
    """Put objects."""
    FETCH = "fetch"
    """Have elements."""
    MOVE = "move"
    """Send objects to another worker."""
    OWN = "own"
    """Tidy up what is one's own: nobody is refused."""
    ADMINISTER = "administer"
    """What only the worker's owner does."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which data of others a right holds for. A client's own is always among it, where anything is.

    Attributes:
        anything: whether the right is given at all.
        tags: patterns of tags (``*`` stands for any text), of which the data has at least one; None for all
        data.
    """

    anything: bool = True
    tags: tuple[str, ...] | None = None

    def covers(self, tags: Iterable[str]) -> bool:
        """Whether data of another with these tags is among it."""
        if not self.anything or self.tags is None:
            return self.anything
        patterns = [pattern.replace("[", "[[]").replace("?", "[?]") for pattern in self.tags]
        return any(fnmatchcase(tag, pattern) for tag in tags for pattern in patterns)


ALL = Selection()
NOTHING = Selection(anything=False, tags=())


class Needs(StrEnum):
    """When a client's plan needs an approval."""

    NEVER = "never"
    """No plan is put before the owner: what comes from private data stays private, unless they approved "
    "it."""
    PRIVATE = "private"
    """To have results of private data."""
    ALWAYS = "always"
    """To run on any data that is not the client's own; single operations on it are refused."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that one client may take; None for no limit but the worker's own."""

    bytes: int | None = None
    """Bytes of its objects and plans. Memory that objects share counts once, for who had it first."""
    seconds: float | None = None
    """Seconds of computing, since the worker started."""
    run_seconds: float | None = None
    """Seconds of computing for one run of a plan."""
    message_bytes: int | None = None
    """Bytes of one request."""
    plan_nodes: int | None = None
    """Nodes of one plan, those of its subplans included."""
    concurrent_runs: int | None = None
    """Plans that run at a time."""
    plans: int | None = None
    """Installed plans."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What one client may do. The defaults allow everything that the rules of privacy do.

    Attributes:
        search: data of others that listings show.
        use: data of others for single operations.
        run: data of others that plans may be run on.
        fetch: public data of others that it may have. Such data that it may use but not have is private to
        it, and
            so is what it computes from that.
        send: whether it may put objects.
        move: workers that it may have objects sent to; None for all that the policy knows.
        needs: when its plans need an approval.
        quota: the most that it may take.
    """

    search: Selection = ALL
    use: Selection = ALL
    run: Selection = ALL
    fetch: Selection = ALL
    send: bool = True
    move: frozenset[str] | None = None
    needs: Needs = Needs.PRIVATE
    quota: Quota = Quota()

    def selection(self, right: Right) -> Selection:
        """The data that a right holds for; all where it is not about data of others."""
        match right:
            case Right.SEARCH:
                return self.search
            case Right.USE:
                return self.use
            case Right.RUN:
                return self.run
            case Right.FETCH:
                return self.fetch
            case _:
                return ALL

    def covers(self, right: Right, tags: Iterable[str]) -> bool:
        """Whether a right holds for data of another with these tags."""
        if right is Right.USE and self.needs is Needs.ALWAYS:
            return False  # an operation has no approval that could be asked for
        return self.selection(right).covers(tags)


NETWORK_QUOTA = Quota(
    bytes=2 * 2**30,
    run_seconds=600.0,
    message_bytes=2**30,
    plan_nodes=50_000,
    concurrent_runs=2,
    plans=64,
)
NETWORK_RIGHTS = Rights(move=frozenset(), quota=NETWORK_QUOTA)
"""What a client may do where nothing else was said and it may be anybody: use what is offered, move "
"nothing."""

_PEER_RIGHTS = Rights(search=NOTHING, use=NOTHING, run=NOTHING, fetch=NOTHING, move=frozenset())
_OWNER_RIGHTS = Rights()


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules above, as questions. The default is for one process, where all trust each other.

    Attributes:
        peers: the workers that may put objects in the name of their owner, and that objects may be sent to;
        None
            for any.
        default: the rights of whoever has none of their own.
        clients: rights by name.
        denied: names that are refused, whatever certificate or token they show.
    """

    peers: frozenset[str] | None = None
    default: Rights = Rights()
    clients: Mapping[str, Rights] = field(default_factory=dict[str, Rights])
    denied: frozenset[str] = frozenset()

    def rights(self, identity: Identity) -> Rights:
        """What somebody may do."""
        if identity.role is Role.OWNER:
            return _OWNER_RIGHTS
        if identity.role is Role.WORKER:
            return _PEER_RIGHTS
        return self.clients.get(identity.name, self.default)

    def unvouched(self, name: str) -> Identity:
        """Who somebody of this process is, for whom nobody vouches: the peer of that name, or a client."""
        return Identity(name, Role.WORKER if self.peers is not None and name in self.peers else Role.CLIENT)

    def may_see(self, client: str, owner: str, worker: str, secrecy: Secrecy, tags: tuple[str, ...]) -> bool:
        """Whether an object exists for a client."""
        return client == owner or owner == worker or bool(tags) or client in secrecy.allowed

    def may_change(self, client: str, owner: str) -> bool:
        """Whether a client may delete or replace an object."""
        return client == owner

    def may_have(self, whom: str, secrecy: Secrecy) -> bool:
        """Whether a client or worker may have the elements of a value."""
        return not secrecy.private or whom in secrecy.allowed

    def may_put_for(self, identity: Identity, owner: str, worker: str) -> bool:
        """Whether somebody may put an object of another; never one that would pass for offered data."""
        if identity.name == owner or self.peers is None:
            return True
        return identity.role is Role.WORKER and identity.name in self.peers and owner != worker

    def may_send_to(self, worker: str) -> bool:
        """Whether objects may go to another worker at all."""
        return self.peers is None or worker in self.peers


def network_policy() -> Policy:
    """The policy of a worker that strangers reach and that has no policy file.

    Private data never leaves; offered data can be searched, used and fetched, plans run within
    `NETWORK_QUOTA`, and there are no peers.
    """
    return Policy(peers=frozenset(), default=NETWORK_RIGHTS)
