"""A worker: `handle(request) -> reply`, all there is to it, pure of I/O. Channels call `handle_frame`.

Requests are handled one at a time, under one lock: each sees the store before or after another, never within.
Two open the lock for a while: a plan that runs (who names what it is going to write waits), and a transfer
while its peer takes the objects (two workers that send to each other would wait for ever). Releases are
applied first; a handler that fails has changed nothing else.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import torch

from planc.errors import DecodeError, InputError
from planc.ir import from_torch
from planc.limits import Limits
from runtime.call import Call, Site
from runtime.channels.base import Channel, Connection
from runtime.errors import ConnectionLost, PermissionDenied, WorkerError, to_failure
from runtime.executor import Executor, RunBounds, Runner
from runtime.handlers import HANDLERS
from runtime.identity import Identity
from runtime.messages import MAX_ID, Answer, Body, Failure, Names, Reply, Request, Text
from runtime.policy import PUBLIC, Policy, Secrecy
from runtime.replay import Answered, Pending, Replays
from runtime.reservations import Reservations
from runtime.shelf import Shelf
from runtime.store import Store, Stored
from runtime.wire import Frame, WireLimits, decode, encode, encode_frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker accepts and keeps."""

    wire: WireLimits = field(default_factory=WireLimits)
    plan: Limits = field(default_factory=Limits)
    store_bytes: int = 64 * 2**30
    """Bytes of all objects."""
    run: RunBounds = field(default_factory=RunBounds)
    """Memory and work that one run of a plan may take; estimated before it starts."""
    concurrent_runs: int = 4
    """Plans that run at a time; more wait."""
    plans: int = 1024
    """Installed plans."""
    plan_bytes: int = 4 * 2**30
    """Bytes of all installed plans and their constants."""
    executable_bytes: int = 2**30
    """Bytes that compiled executables keep between runs."""
    replay_window: int = 1024
    """Requests of a session whose replies are remembered."""
    replay_bytes: int = 256 * 2**20
    """Bytes of tensors in the replies that are remembered for a session."""
    sessions: int = 64
    """Sessions of a client whose replies are remembered."""
    clients: int = 4096
    """Clients whose replies are remembered."""


class Worker:
    """Keeps objects and plans, and runs the ones on the others.

    Args:
        id: its name; peers and pointers use it.
        device: where its tensors live and its plans run.
        peers: the channel to another worker, by its id; without it nothing can be transferred.
        limits: what it accepts and keeps.
        policy: who may do what.
        runner: what runs plans; compiled executables where not given.
    """

    def __init__(
        self,
        id: str,
        device: str | torch.device = "cpu",
        *,
        peers: Callable[[str], Channel] | None = None,
        limits: WorkerLimits | None = None,
        policy: Policy | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.id = id
        self.limits = limits = limits or WorkerLimits()
        self._peers = peers
        self._connections: dict[str, Connection] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._reserved = Reservations()
        self._replays = Replays(limits.replay_window, limits.replay_bytes, limits.sessions, limits.clients)
        place = torch.device(device)
        self._site = Site(
            worker=id,
            device=place,
            store=Store(limits.store_bytes),
            shelf=Shelf(limits.plan, limits.plans, limits.plan_bytes),
            policy=policy or Policy(),
            executor=Executor(place, limits.run, limits.executable_bytes, runner),
            approved=set(),
            send=self._send,
            unlocked=self._unlocked,
            computing=self._computing,
        )

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self._site.device

    @property
    def nbytes(self) -> int:
        """Bytes of its objects."""
        return self._site.store.nbytes

    def __len__(self) -> int:
        """How many objects it holds."""
        return len(self._site.store)

    def approve(self, plan_id: str) -> None:
        """Let the results of a plan on private originals be public. For the owner of the data."""
        with self._lock:
            self._site.approved.add(plan_id)

    def disapprove(self, plan_id: str) -> None:
        """Take an approval back. Results that are public already stay so."""
        with self._lock:
            self._site.approved.discard(plan_id)

    def add(
        self,
        tensor: torch.Tensor,
        *,
        tags: Sequence[str] = (),
        description: str = "",
        private: bool = False,
        allowed: Sequence[str] = (),
    ) -> int:
        """Offer data of the worker's own owner: all clients find it, none can change it. Returns its id.

        Raises:
            InputError: the tensor's dtype is not one that plans have, or a text is too long.
            StoreFull: there is no room for it.
        """
        if from_torch(tensor.dtype) is None:
            raise InputError(f"a tensor of dtype {tensor.dtype} cannot be used by plans")
        try:  # what no message could carry would spoil every listing
            msgspec.convert((tuple(tags), description, tuple(allowed)), tuple[Names, Text, Names])
        except msgspec.ValidationError as error:
            raise InputError(f"tags, description or names that no message can carry: {error}") from None
        secrecy = Secrecy(private=True, allowed=frozenset(allowed)) if private else PUBLIC
        # A copy: what is stored is never written to, and the caller may go on writing to theirs.
        value = tensor.detach().to(self.device, copy=True)
        id = secrets.randbelow(MAX_ID) + 1
        with self._lock:
            self._site.store.commit({id: Stored(value, self.id, tuple(tags), description, secrecy)})
        return id

    def handle_frame(
        self, frame: bytearray | memoryview | bytes, identity: Identity | None = None
    ) -> bytearray:
        """The reply to a frame, as a frame. Never raises: garbage gets a `Failure`.

        Args:
            frame: the worker's from then on: stored tensors may share its memory.
            identity: who sent it; where not given, whoever the request says.
        """
        return encode(*self._answer(frame, identity))

    def handle_large_frame(
        self, frame: bytearray | memoryview | bytes, identity: Identity | None = None
    ) -> Frame:
        """As `handle_frame`, for a channel that sends large replies a piece at a time."""
        return encode_frame(*self._answer(frame, identity))

    def handle(
        self, request: Request, tensors: Sequence[torch.Tensor] = (), identity: Identity | None = None
    ) -> Answered:
        """The reply to a request and the tensors that go with it. What goes wrong is a `Failure` in it.

        A request that came before gets the reply that it got before, and is not applied again.

        Args:
            request: the message.
            tensors: those that its slots mean. They are the worker's from then on.
            identity: who sent it; where not given, whoever the request says.

        Returns:
            The reply, and tensors that may be the stored ones: to be read or copied, not written to.
        """
        if identity is None:
            identity = Identity(request.client)
        elif identity.name != request.client:
            error = PermissionDenied(f"{identity.name!r} may not send requests as {request.client!r}")
            return Reply(request.request_id, self._failure(error)), []
        with self._lock:
            try:
                before = self._begin(request)
            except WorkerError as error:
                return Reply(request.request_id, self._failure(error)), []
            if before is not None:
                return before
            try:
                answered = self._apply(request, tensors, identity)
                self._replays.end(request, answered)
            except BaseException:  # an interrupt: nobody may wait for this reply for ever
                self._replays.abandon(request)
                raise
            finally:
                self._changed.notify_all()
            return answered

    def close(self) -> None:
        """Close the channels to its peers."""
        with self._lock:
            connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.close()

    def _answer(self, frame: bytearray | memoryview | bytes, identity: Identity | None) -> Answered:
        number = 0
        try:
            message, tensors = decode(frame, self.limits.wire)
            if not isinstance(message, Request):
                raise DecodeError(f"expected a request, got a {type(message).__name__}")
            number = message.request_id
            return self.handle(message, tensors, identity)
        except Exception as error:
            return Reply(number, self._failure(error)), []

    def _begin(self, request: Request) -> Answered | None:
        """The reply to a request that came before; None if it is new and nothing hinders it any more."""
        before = self._replays.begin(request)
        while isinstance(before, Pending):
            self._changed.wait()
            before = self._replays.begin(request)
        if before is None:
            try:
                while self._reserved.hinder(request):
                    self._changed.wait()
            except BaseException:
                self._replays.abandon(request)
                raise
        return before

    def _apply(self, request: Request, tensors: Sequence[torch.Tensor], identity: Identity) -> Answered:
        call = Call(self._site, identity, tensors)
        try:
            self._release(call, request.release)
            body: Answer = HANDLERS[type(request.body)](call, request.body)
        except Exception as error:
            return Reply(request.request_id, self._failure(error)), []
        # What is kept for a repeat must not hold more than the elements: no autograd graph.
        return Reply(request.request_id, body), [tensor.detach() for tensor in call.back]

    def _release(self, call: Call, ids: Sequence[int]) -> None:
        """Delete what the client no longer needs. What is gone already, or another's, is passed over."""
        if not ids:
            return
        store = self._site.store
        mine = [id for id in ids if (stored := store.get(id)) is not None and call.owns(stored)]
        store.commit({}, mine)

    def _failure(self, error: Exception) -> Failure:
        failure = to_failure(error, self.id)
        if failure.kind == "internal":
            _log.error("worker %r: unexpected %s", self.id, type(error).__name__, exc_info=error)
        return failure

    def _send(self, to: str, body: Body, tensors: Sequence[torch.Tensor]) -> None:
        """Deliver a message to a peer, and wait for it to be done."""
        if self._peers is None:
            raise ConnectionLost(f"there is no way from here to worker {to!r}: no peers are known")
        connection = self._connections.get(to)
        if connection is None:
            connection = Connection(self._peers(to), self.id, peer=True)
            connection = self._connections.setdefault(to, connection)
        connection.call(body, tensors)

    @contextmanager
    def _unlocked(self) -> Generator[None]:
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    @contextmanager
    def _computing(self, written: Iterable[int]) -> Generator[None]:
        """Open the worker to other requests but those that name what is going to be written."""
        reserved = self._reserved
        ids = set(written)
        reserved.ids |= ids
        try:
            while reserved.running >= self.limits.concurrent_runs:
                self._changed.wait()
            reserved.running += 1
            try:
                with self._unlocked():
                    yield
            finally:
                reserved.running -= 1
        finally:
            reserved.ids -= ids
