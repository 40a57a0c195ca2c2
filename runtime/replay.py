"""The replies that a worker keeps for requests that may come again, so that none is applied twice.

Bounded by count and bytes. Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from runtime.cohorts import CohortDone
from runtime.errors import ReplayError
from runtime.messages import Failure, Found, PlansFound, Reply, Request, Values

Answered = tuple[Reply, list[torch.Tensor]]

_TENSOR = 512
_ENTRY = 64
"""Bytes that a tensor takes besides its elements, and an entry of a reply; one with texts is many."""
_TEXTS = 8
_ENTRIES: Mapping[type, Callable[[Any], int]] = {
    Values: lambda body: len(body.items),
    Found: lambda body: _TEXTS * len(body.items),
    PlansFound: lambda body: _TEXTS * len(body.items),
    CohortDone: lambda body: len(body.done) + len(body.late) + _TEXTS * len(body.unfit),
}
"""The entries of replies that may have many of them."""


class Pending:
    """Stands for the reply of a request that is being worked on."""


PENDING = Pending()


@dataclass(slots=True)
class _Session:
    """The requests of one session that were seen: by number, the reply, or None where it was given up."""

    highest: int = 0
    settled: int = 0
    nbytes: int = 0
    lasting: bool = False
    """It is written down somewhere: whoever did that is to be told when it is forgotten."""
    replies: OrderedDict[int, Answered | Pending | None] = field(
        default_factory=OrderedDict[int, "Answered | Pending | None"]
    )
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    """The bytes of the replies that take any."""

    def forget(self, number: int) -> None:
        """Let go of a reply, and of the request."""
        del self.replies[number]
        if self.sizes:
            self.nbytes -= self.sizes.pop(number, 0)

    def keep(self, number: int, answered: Answered) -> int:
        """Keep a reply; returns its bytes."""
        self.replies[number] = answered
        size = _nbytes(answered)
        if size:
            self.sizes[number] = size
            self.nbytes += size
        return size


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of a session: all requests up to ``settled``, or ``highest`` less the window, are over.

    ``replies`` are those above: the reply, or None where it is no longer kept.
    """

    highest: int
    settled: int
    replies: Mapping[int, Answered | None]


@dataclass(slots=True)
class Replays:
    """Sessions by client, each with its last replies.

    Attributes:
        window: the requests of a session that are remembered: one that is this much older than the newest
            is refused, whether it was applied or not.
        max_bytes: the bytes of the replies kept for a session. The newest reply is kept always.
        max_sessions: the sessions remembered for a client; the one that was quiet for longest is forgotten.
        max_clients: the clients remembered, likewise.
    """

    window: int
    max_bytes: int
    max_sessions: int
    max_clients: int
    _clients: OrderedDict[str, OrderedDict[int, _Session]] = field(
        default_factory=OrderedDict[str, "OrderedDict[int, _Session]"]
    )
    _forgotten: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    _last: tuple[str, int, _Session] = field(default_factory=lambda: ("", -1, _Session()))

    def begin(self, request: Request) -> Answered | Pending | None:
        """The reply to a request that came before, PENDING if it is being worked on, None if it is new.

        Raises:
            ReplayError: it came before and its reply is gone, or it is too old to tell.
        """
        session = self._session(request)
        if request.settled > session.settled:
            self._settle(session, request.settled)
        number = request.request_id
        if number in session.replies:
            reply = session.replies[number]
            if reply is None:
                raise ReplayError(f"request {number} was applied before; its reply is no longer kept")
            return reply
        if number <= session.settled or number <= session.highest - self.window:
            raise ReplayError(
                f"request {number} is too old: replies up to {session.settled} arrived, "
                f"and the newest request is {session.highest}"
            )
        session.highest = max(session.highest, number)
        session.replies[number] = PENDING
        if len(session.replies) > self.window:  # so that one at least is older
            for old in [n for n in session.replies if n <= session.highest - self.window]:
                session.forget(old)
        return None

    def failed(self, request: Request) -> bool:
        """Whether the request that one was sent behind did not succeed: its reply is not settled yet."""
        session = self._session(request)
        if not request.behind or request.behind <= session.settled:
            return False
        reply = session.replies.get(request.behind)
        return not isinstance(reply, tuple) or isinstance(reply[0].body, Failure)

    def end(self, request: Request, answered: Answered) -> None:
        """Keep the reply to a request that `begin` found to be new."""
        session = self._session(request)
        if request.request_id not in session.replies:  # pushed out of the window meanwhile
            return
        if not session.keep(request.request_id, answered):
            return
        for number in list(session.replies):
            if session.nbytes <= self.max_bytes:
                break
            if number != request.request_id and isinstance(session.replies[number], tuple):
                session.replies[number] = None
                session.nbytes -= session.sizes.pop(number, 0)

    def abandon(self, request: Request) -> None:
        """Forget a request that `begin` found to be new and that came to no reply."""
        session = self._session(request)
        if request.request_id in session.replies:
            session.forget(request.request_id)

    def remembered(self, client: str, session: int) -> Remembered:
        """What is known of a session, to be written down: `forgotten` says when that is obsolete."""
        found = self._clients[client][session]
        found.lasting = True
        replies = {n: r for n, r in found.replies.items() if not isinstance(r, Pending)}
        return Remembered(found.highest, found.settled, replies)

    def restore(self, client: str, session: int, known: Remembered) -> None:
        """Know what was written down of a session; those that were used last come last."""
        restored = self._touch(client, session)
        self._last = "", -1, restored  # it is the newest now
        restored.highest, restored.settled, restored.lasting = known.highest, known.settled, True
        for number, reply in known.replies.items():
            if reply is None:
                restored.replies[number] = None
            else:
                restored.keep(number, reply)

    @property
    def forgotten(self) -> Sequence[tuple[str, int]]:
        """The clients and sessions that were written down and are forgotten now."""
        return self._forgotten

    def settle_forgotten(self, count: int) -> None:
        """The first of `forgotten` are written down nowhere any more."""
        del self._forgotten[:count]

    def _session(self, request: Request) -> _Session:
        client, number, session = self._last
        if number == request.session and client == request.client:  # the newest already
            return session
        session = self._touch(request.client, request.session)
        self._last = request.client, request.session, session
        return session

    def _touch(self, client: str, number: int) -> _Session:
        sessions = self._clients.setdefault(client, OrderedDict())
        self._clients.move_to_end(client)
        session = sessions.setdefault(number, _Session())
        sessions.move_to_end(number)
        if len(sessions) > self.max_sessions:
            self._forget(client, *sessions.popitem(last=False))
        if len(self._clients) > self.max_clients:
            oldest, gone = self._clients.popitem(last=False)
            for number, old in gone.items():
                self._forget(oldest, number, old)
        return session

    def _forget(self, client: str, number: int, session: _Session) -> None:
        if session.lasting:
            self._forgotten.append((client, number))

    def _settle(self, session: _Session, settled: int) -> None:
        session.settled = settled
        for number in [n for n in session.replies if n <= settled]:
            session.forget(number)


def _nbytes(answered: Answered) -> int:
    """The memory of a reply, roughly: entries and tensors without elements take some too."""
    reply, tensors = answered
    entries = _ENTRIES.get(type(reply.body))
    nbytes = sum([tensor.nbytes for tensor in tensors]) + _TENSOR * len(tensors) if tensors else 0
    return nbytes if entries is None else nbytes + _ENTRY * entries(reply.body)
