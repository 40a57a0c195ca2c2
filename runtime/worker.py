"""A worker: `handle(request) -> reply`, all there is to it, pure of I/O. Channels call `handle_frame`.

Requests are handled one at a time, under one lock: each sees the store before or after another, never within.
Two open the lock for a while: a plan that runs (who names what it is going to write waits), and a transfer
while its peer takes the objects (two workers that send to each other would wait for ever). Releases are
applied first; a handler that fails has changed nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import torch

from planc.errors import DecodeError, InputError
from planc.ir import from_torch
from planc.limits import Limits
from runtime.access.admission import admit, enter
from runtime.access.approvals import Approvals, Decisions
from runtime.access.usage import Usage
from runtime.audit.entries import REFUSALS, Audit
from runtime.audit.log import AuditLog
from runtime.call import Call, Site
from runtime.channels.base import Channel, Connection
from runtime.durable import DurableStore
from runtime.errors import (
    AuditFailed,
    ConnectionLost,
    ObjectExists,
    PermissionDenied,
    QuotaExceeded,
    RequestSkipped,
    WorkerError,
    to_failure,
)
from runtime.executor import Executor, RunBounds, Runner
from runtime.handlers import HANDLERS
from runtime.identity import Identity
from runtime.messages import MAX_ID, Answer, Body, Failure, Names, Reply, Request, Run, Text
from runtime.policy import PUBLIC, Policy, Right, Secrecy
from runtime.replay import Answered, Pending, Replays
from runtime.reservations import Reservations
from runtime.shelf import Shelf
from runtime.store import Store, Stored
from runtime.wire import Frame, WireLimits, decode, encode, encode_frame

_log = logging.getLogger(__name__)
_APPROVALS = "approvals"
"""The kind of the durable records of what the owner decided."""


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
        durable: the folder that keeps what it holds, which the worker closes; without it all is gone with the
            process. What was kept there is there again at once.
        audit: the log of who did what, which the worker closes; without it there is none.

    Raises:
        StorageError: what is in the folder cannot be read, or is not what was written.
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
        durable: DurableStore | None = None,
        audit: AuditLog | None = None,
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
            approvals=Approvals(id),
            usage=Usage(),
            send=self._send,
            unlocked=self._unlocked,
            computing=self._computing,
            audit_head=lambda: audit.head if audit is not None else None,
            reply_bytes=limits.wire.frame_bytes,
        )
        accounts, shelf = self._site.store.accounts, self._site.shelf
        accounts.limit = self._bytes_allowed
        accounts.besides = lambda client: sum(plan.nbytes for plan in shelf.of(client))
        self._audit = Audit(audit) if audit is not None else None
        if audit is not None and durable is None:  # what cannot be logged is taken back
            self._site.store.record()
            shelf.record()
        self._durable = durable
        if durable is not None:
            durable.attach(id, place, self._site.store, self._site.shelf, self._replays)
            self._keep_approvals(durable)

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
            self._site.approvals.approve(plan_id)
            self._decided("approve", plan_id)

    def disapprove(self, plan_id: str) -> None:
        """Take an approval back. Results that are public already stay so."""
        with self._lock:
            self._site.approvals.disapprove(plan_id)
            self._decided("disapprove", plan_id)

    def add(
        self,
        tensor: torch.Tensor,
        *,
        tags: Sequence[str] = (),
        description: str = "",
        private: bool = False,
        allowed: Sequence[str] = (),
        name: str = "",
    ) -> int:
        """Offer data of the worker's own owner: all clients find it, none can change it. Returns its id.

        A durable store does not keep it: its owner offers it again at every start, under the same name.

        Args:
            tensor: the data; copied.
            tags: what it is found by.
            description: for people.
            private: whether its elements may not leave.
            allowed: the clients and workers that may have them all the same.
            name: the same name has the same id after every start; without one the id is random.

        Raises:
            InputError: the tensor's dtype is not one that plans have, or a text is too long.
            ObjectExists: there is data of this name already.
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
        id = _id_of(self.id, name) if name else secrets.randbelow(MAX_ID) + 1
        with self._lock:
            if self._site.store.get(id) is not None:
                raise ObjectExists(f"there is data of the name {name!r} already, as object {id}")
            self._site.store.commit({id: Stored(value, self.id, tuple(tags), description, secrecy)})
            if self._durable is not None:
                self._durable.offer(id, value)
            self._persist()
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

    def message_bytes(self, identity: Identity) -> int | None:
        """The most bytes that somebody's request may have; None for no limit but the wire's own."""
        return self._site.policy.rights(identity).quota.message_bytes

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
        vouched = identity is not None
        if identity is None:
            identity = self._site.policy.unvouched(request.client)
        elif identity.name != request.client:
            error = PermissionDenied(f"{identity.name!r} may not send requests as {request.client!r}")
            return self._turned_away(request, identity, error)
        try:
            enter(self._site.policy, identity, self.id, vouched=vouched)
        except PermissionDenied as error:
            return self._turned_away(request, identity, error)
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
                self._persist(request)
            except WorkerError as error:  # not durable or not logged, so not done: a repeat tries again
                self._replays.abandon(request)
                self._undo()
                if self._audit is not None and not isinstance(error, AuditFailed):
                    self._audit.undone(request, identity)
                return Reply(request.request_id, self._failure(error)), []
            except BaseException:  # an interrupt: nobody may wait for this reply for ever
                self._replays.abandon(request)
                self._undo()
                raise
            finally:
                self._changed.notify_all()
            return answered

    def close(self) -> None:
        """Close the channels to its peers, and the folder that keeps what it holds."""
        with self._lock:
            connections, self._connections = self._connections, {}
            if self._audit is not None:
                self._audit.close()
            if self._durable is not None:
                self._durable.close()
        for connection in connections.values():
            connection.close()

    def _answer(self, frame: bytearray | memoryview | bytes, identity: Identity | None) -> Answered:
        number = 0
        try:
            if identity is not None:  # before anything is made of the bytes
                self._check_size(frame, identity)
            message, tensors = decode(frame, self.limits.wire)
            if not isinstance(message, Request):
                raise DecodeError(f"expected a request, got a {type(message).__name__}")
            number = message.request_id
            if identity is None:
                self._check_size(frame, self._site.policy.unvouched(message.client))
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
        call = Call(self._site, identity, tensors, request=request)
        right, result, start = Right.OWN, "ok", time.perf_counter()
        if (audit := self._audit) is not None:
            call.log_leaving = lambda: audit.leaving(call, request)
        self._site.usage.enter(call.client, request.session)
        try:
            self._release(call, request.release)
            if request.behind and self._replays.failed(request):
                raise RequestSkipped(f"request {request.behind} before it failed")
            call.right = right = admit(identity, call.rights, self.id, request.body)
            if right is Right.USE or isinstance(request.body, Run):
                self._site.usage.check_seconds(call.client, call.rights.quota)
            body: Answer = HANDLERS[type(request.body)](call, request.body)
        except Exception as error:
            body = self._failure(error)
            call.back, result = [], body.kind
        self._finish(call, request, right, result, time.perf_counter() - start)
        # What is kept for a repeat must not hold more than the elements: no autograd graph.
        return Reply(request.request_id, body), [tensor.detach() for tensor in call.back]

    def _finish(self, call: Call, request: Request, right: Right, result: str, seconds: float) -> None:
        """Charge the client for a request, and log it."""
        usage = self._site.usage
        # An operation holds the worker all the time that it takes; a plan only while it computes.
        usage.spend(call.client, seconds if right is Right.USE else call.spent)
        usage.of(call.client).refused += result in REFUSALS
        if self._audit is not None:
            self._audit.record(call, request, result, seconds)

    def _turned_away(self, request: Request, identity: Identity, error: PermissionDenied) -> Answered:
        """The reply to somebody who may not ask for anything."""
        failure = self._failure(error)
        if self._audit is not None:
            with self._lock:
                try:
                    self._audit.record(Call(self._site, identity, ()), request, failure.kind, 0.0)
                except WorkerError as unlogged:
                    failure = self._failure(unlogged)
        return Reply(request.request_id, failure), []

    def _check_size(self, frame: bytearray | memoryview | bytes, identity: Identity) -> None:
        allowed = self.message_bytes(identity)
        if allowed is not None and len(frame) > allowed:
            raise QuotaExceeded(
                f"a message of {len(frame)} bytes: {identity.name!r} may send at most {allowed} at once "
                "here; send less at a time, or ask the worker's owner for more (quota.message_bytes)"
            )

    def _bytes_allowed(self, client: str) -> int | None:
        if client == self.id:  # what the worker itself offers
            return None
        return self._site.policy.rights(Identity(client)).quota.bytes

    def _decided(self, kind: str, plan_id: str) -> None:
        """Log and keep what the owner decided in this process."""
        try:
            if self._audit is not None:
                self._audit.decided(kind, self.id, plan_id)
            self._persist()
        except WorkerError:
            self._undo()
            raise

    def _keep_approvals(self, durable: DurableStore) -> None:
        approvals, records = self._site.approvals, durable.records
        approvals.restore(records.items(_APPROVALS, Decisions))

        def keep(plan_id: str, decided: Decisions | None) -> None:
            if decided is None:
                records.delete(_APPROVALS, plan_id)
            else:
                records.put(_APPROVALS, plan_id, decided)

        approvals.keep = keep

    def _undo(self) -> None:
        """Take back what a request changed."""
        self._site.approvals.undo()
        if self._durable is not None:
            self._durable.undo()
        elif self._audit is not None:
            self._site.store.undo()
            self._site.shelf.undo()

    def _persist(self, request: Request | None = None) -> None:
        """Make durable what changed, and the reply to the request that did it; or take it back and raise."""
        if self._durable is not None:
            self._durable.commit(request)
        elif self._audit is not None:
            self._site.store.settle()
            self._site.shelf.settle()
        self._site.approvals.settle()

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

    def _send(
        self, to: str, body: Body, tensors: Sequence[torch.Tensor], request: Request | None = None
    ) -> None:
        """Deliver a message to a peer, and wait for it to be done.

        When a request comes again after this worker was started again, the peer still takes the message once.
        """
        if self._peers is None:
            raise ConnectionLost(f"there is no way from here to worker {to!r}: no peers are known")
        connection = self._connections.get(to)
        if connection is None:
            connection = Connection(self._peers(to), self.id, peer=True)
            connection = self._connections.setdefault(to, connection)
        if self._durable is not None and request is not None:
            connection = connection.as_session(_session_for(self.id, request))
        connection.call(body, tensors)

    @contextmanager
    def _unlocked(self) -> Generator[None]:
        self._persist()  # what was released: a request that comes in between must not answer for it
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    @contextmanager
    def _computing(self, written: Iterable[int]) -> Generator[None]:
        """Open the worker to other requests but those that name what is going to be written."""
        self._persist()  # as in `_unlocked`: to wait opens the worker too
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


def _session_for(worker: str, request: Request) -> int:
    """A session at a peer for what a worker sends there because of this very request."""
    text = f"{worker}\0{request.client}\0{request.session}\0{request.request_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % MAX_ID


def _id_of(worker: str, name: str) -> int:
    """The id of a worker's own data of this name."""
    digest = hashlib.sha256(f"{worker}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % MAX_ID + 1
