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
from typing import TypeVar

import msgspec
import torch

from planc.errors import DecodeError, InputError
from planc.ir import from_torch
from planc.lower.transfer import to_device, wait
from runtime.access.approvals import Approvals
from runtime.access.standing import Standing, Standings
from runtime.access.usage import Usage
from runtime.audit.log import AuditLog
from runtime.call import Call, Site
from runtime.channels.base import Channel
from runtime.durable import DurableStore
from runtime.errors import (
    ObjectExists,
    PermissionDenied,
    QuotaExceeded,
    RequestSkipped,
    StoreFull,
    WorkerError,
    to_failure,
)
from runtime.executor import Executor, Runner
from runtime.handlers import HANDLERS
from runtime.identity import Identity
from runtime.keeping import Keeping
from runtime.limits import WorkerLimits
from runtime.messages import MAX_ID, Answer, Failure, Names, Reply, Request, Run, Text
from runtime.peers import Peers
from runtime.policy import PUBLIC, Policy, Right, Secrecy
from runtime.replay import Answered, Pending, Replays
from runtime.reservations import Reservations
from runtime.shelf import Shelf
from runtime.store import Store, Stored
from runtime.wire import Frame, decode, encode, encode_frame

_log = logging.getLogger(__name__)
_Encoded = TypeVar("_Encoded")


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
        self._peers = Peers(id, peers, durable=durable is not None)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._reserved = Reservations()
        self._replays = Replays(limits.replay_window, limits.replay_bytes, limits.sessions, limits.clients)
        place = torch.device(device)
        policy = policy or Policy()
        self._standings = Standings(policy, id)
        self._site = Site(
            worker=id,
            device=place,
            store=Store(limits.store_bytes),
            shelf=Shelf(limits.plan, limits.plans, limits.plan_bytes),
            policy=policy,
            executor=Executor(place, limits.run, limits.executable_bytes, runner),
            approvals=Approvals(id),
            usage=Usage(),
            send=self._peers.send,
            unlocked=self._unlocked,
            computing=self._computing,
            audit_head=lambda: audit.head if audit is not None else None,
            reply_bytes=limits.wire.frame_bytes,
        )
        accounts, shelf = self._site.store.accounts, self._site.shelf
        accounts.limit = self._bytes_allowed
        accounts.besides = lambda client: sum(plan.nbytes for plan in shelf.of(client))
        self._keeping = Keeping(self._site, self._replays, durable, audit)

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self._site.device

    @property
    def nbytes(self) -> int:
        """Bytes of its objects."""
        with self._lock:  # to look at a store may change it
            return self._site.store.nbytes

    def __len__(self) -> int:
        """How many objects it holds."""
        with self._lock:
            return len(self._site.store)

    def approve(self, plan_id: str) -> None:
        """Let the results of a plan on private originals be public. For the owner of the data."""
        with self._lock:
            self._site.approvals.approve(plan_id)
            self._keeping.decided("approve", plan_id)

    def disapprove(self, plan_id: str) -> None:
        """Take an approval back. Results that are public already stay so."""
        with self._lock:
            self._site.approvals.disapprove(plan_id)
            self._keeping.decided("disapprove", plan_id)

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
        value = to_device(tensor.detach(), self.device, copy=True)
        wait(self.device)
        id = _id_of(self.id, name) if name else secrets.randbelow(MAX_ID) + 1
        with self._lock:
            if self._site.store.get(id) is not None:
                raise ObjectExists(f"there is data of the name {name!r} already, as object {id}")
            self._site.store.commit({id: Stored(value, self.id, tuple(tags), description, secrecy)})
            if self._keeping.durable is not None:
                self._keeping.durable.offer(id, value)
            self._keeping.persist()
        return id

    def handle_frame(
        self, frame: bytearray | memoryview | bytes, identity: Identity | None = None
    ) -> bytearray:
        """The reply to a frame, as a frame. Never raises: garbage gets a `Failure`.

        Args:
            frame: the worker's from then on: stored tensors may share its memory.
            identity: who sent it; where not given, whoever the request says.
        """
        return self._encoded(encode, self._answer(frame, identity))

    def message_bytes(self, identity: Identity) -> int | None:
        """The most bytes that somebody's request may have; None for no limit but the wire's own."""
        return self._standings.of(identity).rights.quota.message_bytes

    def handle_large_frame(
        self, frame: bytearray | memoryview | bytes, identity: Identity | None = None
    ) -> Frame:
        """As `handle_frame`, for a channel that sends large replies a piece at a time."""
        return self._encoded(encode_frame, self._answer(frame, identity))

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
        known = self._standings
        return self._handle(
            request, tensors, known.unvouched(request.client) if identity is None else known.of(identity)
        )

    def _handle(self, request: Request, tensors: Sequence[torch.Tensor], standing: Standing) -> Answered:
        if standing.name != request.client:
            return self._turned_away(
                request, standing, f"{standing.name!r} may not send requests as {request.client!r}"
            )
        if standing.refused is not None:
            return self._turned_away(request, standing, standing.refused)
        with self._lock:
            try:
                before = self._begin(request)
            except WorkerError as error:
                return Reply(request.request_id, self._failure(error)), []
            if before is not None:
                return before
            try:
                answered = self._apply(request, tensors, standing)
                self._replays.end(request, answered)
                self._keeping.persist(request)
            except WorkerError as error:  # not durable or not logged, so not done: a repeat tries again
                self._replays.abandon(request)
                self._keeping.undo()
                self._keeping.undone(request, standing.identity, error)
                return Reply(request.request_id, self._failure(error)), []
            except BaseException:  # an interrupt: nobody may wait for this reply for ever
                self._replays.abandon(request)
                self._keeping.undo()
                raise
            finally:
                if self._waiting:
                    self._changed.notify_all()
            return answered

    def close(self) -> None:
        """Close the channels to its peers, the log, and the folder that keeps what it holds."""
        with self._lock:
            self._keeping.close()
        self._peers.close()

    def _answer(self, frame: bytearray | memoryview | bytes, identity: Identity | None) -> Answered:
        number = 0
        try:
            standing = None if identity is None else self._standings.of(identity)
            if standing is not None:  # before anything is made of the bytes
                _check_size(frame, standing)
            message, tensors = decode(frame, self.limits.wire)
            if not isinstance(message, Request):
                raise DecodeError(f"expected a request, got a {type(message).__name__}")
            number = message.request_id
            if standing is None:
                standing = self._standings.unvouched(message.client)
                _check_size(frame, standing)
            return self._handle(message, tensors, standing)
        except Exception as error:
            return Reply(number, self._failure(error)), []

    def _encoded(
        self, encoding: Callable[[Reply, Sequence[torch.Tensor]], _Encoded], answered: Answered
    ) -> _Encoded:
        """A reply as a frame; a failure in its place where the machine has no room for it."""
        reply, tensors = answered
        try:
            return encoding(reply, tensors)
        except (MemoryError, RuntimeError) as error:  # torch raises the latter where it cannot allocate
            nbytes = sum(tensor.nbytes for tensor in tensors)
            full = StoreFull(f"there is no room for a reply of {nbytes} bytes ({type(error).__name__})")
            return encoding(Reply(reply.request_id, self._failure(full)), [])

    def _begin(self, request: Request) -> Answered | None:
        """The reply to a request that came before; None if it is new and nothing hinders it any more."""
        before = self._replays.begin(request)
        while isinstance(before, Pending):
            self._wait()
            before = self._replays.begin(request)
        if before is None:
            try:
                while self._reserved.ids and self._reserved.hinder(request):
                    self._wait()
            except BaseException:
                self._replays.abandon(request)
                raise
        return before

    def _wait(self) -> None:
        """Until another request is done. The lock is open meanwhile."""
        self._waiting += 1
        try:
            self._changed.wait()
        finally:
            self._waiting -= 1

    def _apply(self, request: Request, tensors: Sequence[torch.Tensor], standing: Standing) -> Answered:
        call = Call(self._site, standing, tensors, request)
        right, result, start = Right.OWN, "ok", time.perf_counter()
        if self._keeping.logs:
            self._keeping.begin(call, request)
        call.taken = self._site.usage.enter(call.client, request.session)
        try:
            if request.release:
                self._release(call, request.release)
            if request.behind and self._replays.failed(request):
                raise RequestSkipped(f"request {request.behind} before it failed")
            call.right = right = standing.admit(request.body)
            if right is Right.USE or type(request.body) is Run:
                call.taken.require_time(call.rights.quota)
            body: Answer = HANDLERS[type(request.body)](call, request.body)
        except Exception as error:
            body = self._failure(error)
            call.back, result = [], body.kind
            if result == "internal":  # nobody knows how far it came
                self._keeping.undo()
        self._keeping.record(call, request, right, result, time.perf_counter() - start)
        # What is kept for a repeat must not hold more than the elements: no autograd graph.
        return Reply(request.request_id, body), [tensor.detach() for tensor in call.back]

    def _turned_away(self, request: Request, standing: Standing, why: str) -> Answered:
        """The reply to somebody who may not ask for anything."""
        failure = self._failure(PermissionDenied(why))
        with self._lock:
            try:
                self._keeping.refused(request, standing, failure.kind)
            except WorkerError as unlogged:
                failure = self._failure(unlogged)
        return Reply(request.request_id, failure), []

    def _bytes_allowed(self, client: str) -> int | None:
        if client == self.id:  # what the worker itself offers
            return None
        return self._standings.client(client).rights.quota.bytes

    def _release(self, call: Call, ids: Sequence[int]) -> None:
        """Delete what the client no longer needs. What is gone already, or another's, is passed over."""
        store = self._site.store
        may_change, client = self._site.policy.may_change, call.client
        store.drop([id for id in ids if (owner := store.owner_of(id)) and may_change(client, owner)])

    def _failure(self, error: Exception) -> Failure:
        failure = to_failure(error, self.id)
        if failure.kind == "internal":
            _log.error("worker %r: unexpected %s", self.id, type(error).__name__, exc_info=error)
        return failure

    @contextmanager
    def _unlocked(self) -> Generator[None]:
        self._keeping.persist()  # what was released: a request that comes in between must not answer for it
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    @contextmanager
    def _computing(self, written: Iterable[int]) -> Generator[None]:
        """Open the worker to other requests but those that name what is going to be written."""
        self._keeping.persist()  # as in `_unlocked`: to wait opens the worker too
        reserved = self._reserved
        ids = set(written)
        reserved.ids |= ids
        try:
            while reserved.running >= self.limits.concurrent_runs:
                self._wait()
            reserved.running += 1
            try:
                with self._unlocked():
                    yield
            finally:
                reserved.running -= 1
        finally:
            reserved.ids -= ids


def _check_size(frame: bytearray | memoryview | bytes, standing: Standing) -> None:
    allowed = standing.rights.quota.message_bytes
    if allowed is not None and len(frame) > allowed:
        raise QuotaExceeded(
            f"a message of {len(frame)} bytes: {standing.name!r} may send at most {allowed} at once "
            "here; send less at a time, or ask the worker's owner for more (quota.message_bytes)"
        )


def _id_of(worker: str, name: str) -> int:
    """The id of a worker's own data of this name."""
    digest = hashlib.sha256(f"{worker}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % MAX_ID + 1
