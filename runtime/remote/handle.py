"""`WorkerHandle`: what a caller holds of a worker, whichever channel leads to it."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from planc.errors import DecodeError, InputError
from planc.ir import TensorType, type_of
from planc.plans import Buildable, Plan, plan_of
from runtime.channels.base import Connection
from runtime.errors import RemoteInputError
from runtime.messages import (
    Answer,
    Apply,
    Backward,
    Body,
    Clear,
    Copy,
    Done,
    FetchPlan,
    Found,
    Get,
    Grad,
    Handle,
    Install,
    List,
    ObjectInfo,
    PlanBytes,
    Plans,
    PlansFound,
    Pointer,
    Put,
    PutItem,
    RequireGrad,
    Search,
    Slot,
    Step,
    Steps,
    Transfer,
    ZeroGrad,
)
from runtime.remote.pointer import RemotePointer
from runtime.remote.recording import Pending
from runtime.remote.releases import RELEASER
from runtime.remote.tensor import RemoteTensor

if TYPE_CHECKING:
    from runtime.remote.plan import RemotePlan

_POSTED = (Apply, Backward, RequireGrad, Step, Steps, ZeroGrad)
"""Messages that are answered by Done and whose results need not be there yet to be used."""


def _draw_ids() -> None:
    """Begin where no ids of other callers at the same worker are: at a random number, far from others."""
    global _ids
    _ids = itertools.count((secrets.randbits(30) << 32) + 1)


_draw_ids()
if hasattr(os, "register_at_fork"):  # a forked process is another caller
    os.register_at_fork(after_in_child=_draw_ids)


class WorkerHandle:
    """A worker as its callers see it.

    Attributes:
        id: the worker's name.
        connection: the way to it.
        in_process: whether the worker computes in the caller's own threads.
        pending: operations that were recorded for it and not sent yet; ``pending_lock`` guards them.
    """

    pending: Pending | None = None
    in_process = False

    def __init__(self, id: str, connection: Connection) -> None:
        self.id = id
        self.connection = connection
        self.pending_lock = threading.RLock()
        self._installed: set[str] = set()
        RELEASER.watch(connection)

    @property
    def owner(self) -> WorkerHandle:
        """The caller as a worker: who holds the handles."""
        from runtime.remote.virtual import me

        return me()

    # -- data ------------------------------------------------------------------------------------------------

    def send(
        self,
        tensor: torch.Tensor | RemoteTensor,
        private: bool = False,
        tags: Sequence[str] = (),
        description: str = "",
        allowed_users: Sequence[str] = (),
    ) -> Any:
        """Put a tensor at the worker; returns the handle to it. One message.

        Args:
            tensor: a local tensor (every send makes a value of its own), or a remote one, of which the worker
                then gets a pointer.
            private: it can be computed with, but neither it nor what is computed from it can be fetched.
            tags: words to find it by; objects with tags are visible to all clients.
            description: for people.
            allowed_users: the clients that may fetch it although it is private.

        Raises:
            InputError: the tensor's dtype is none that plans have.
            WorkerError: the worker refused it.
        """
        if isinstance(tensor, RemoteTensor):
            return self.receive_pointer(tensor)
        return self.send_all([tensor], private, tags, description, allowed_users)[0]

    def send_all(
        self,
        tensors: Sequence[torch.Tensor],
        private: bool = False,
        tags: Sequence[str] = (),
        description: str = "",
        allowed_users: Sequence[str] = (),
    ) -> list[RemoteTensor]:
        """As `send`, for several tensors in one message: all of them or none."""
        types = [tensor_type(tensor) for tensor in tensors]
        ids = [self.new_id() for _ in tensors]
        items = tuple(
            PutItem(
                id,
                Slot(i),
                tuple(tags),
                description,
                private,
                tensor.requires_grad,
                tuple(allowed_users),
            )
            for i, (id, tensor) in enumerate(zip(ids, tensors, strict=True))
        )
        self.request(Put(items), [tensor.detach() for tensor in tensors])
        return [
            self._handle(id, type, tensor.requires_grad, tags, description)
            for id, type, tensor in zip(ids, types, tensors, strict=True)
        ]

    def fetch(self, ids: Sequence[int], delete: bool) -> list[torch.Tensor]:
        """The tensors with these ids, in one message; gone from the worker if ``delete``."""
        if not ids:
            return []
        values = self.values(Get(tuple(ids), delete))
        if len(values) != len(ids):
            raise DecodeError(f"worker {self.id!r} answered with {len(values)} values for {len(ids)}")
        out: list[torch.Tensor] = []
        for id, value in zip(ids, values, strict=True):
            if isinstance(value, Pointer):
                raise InputError(f"object {id} at {self.id!r} is a pointer to {value.worker!r}, not a tensor")
            out.append(value.clone() if len(ids) > 1 else value)  # each in memory of its own
        return out

    def copy_objects(self, tensors: Sequence[RemoteTensor]) -> list[RemoteTensor]:
        """A second value of each, at the worker. One message."""
        ids = [self.new_id() for _ in tensors]
        self.request(Copy(tuple(t.id for t in tensors), tuple(ids)))
        return [
            RemoteTensor(self, id, t.tensor_type, requires_grad=t.requires_grad)
            for id, t in zip(ids, tensors, strict=True)
        ]

    def transfer(self, tensors: Sequence[RemoteTensor], worker: WorkerHandle) -> None:
        """Let the worker send values straight to another, under the same ids; the handles follow.

        One message.
        """
        ids = tuple(t.id for t in tensors)
        self.request(Transfer(ids, worker.id, ids))
        for tensor in tensors:
            tensor.moved_to(worker)

    def receive_pointer(self, tensor: RemoteTensor) -> RemotePointer:
        """Put a pointer to a remote tensor at this worker. One message."""
        id = self.new_id()
        self.request(Put((PutItem(id, Pointer(tensor.location.id, tensor.id)),)))
        return RemotePointer(self, id, tensor)

    def search(self, *tags: str) -> list[RemoteTensor]:
        """Handles to the tensors that have all of these tags. One message.

        They do not free what they show.
        """
        found = self.infos(Search(tuple(tags)))
        return [
            self._handle(
                info.id,
                TensorType(info.dtype, info.shape),
                info.requires_grad,
                info.tags,
                info.description,
                owned=False,
            )
            for info in found
            if info.dtype is not None
        ]

    @property
    def objects(self) -> dict[int, ObjectView]:
        """What the worker holds and shows to this caller, by id. One message."""
        return {info.id: ObjectView(self.id, info) for info in self.infos(List())}

    def clear_objects(self) -> None:
        """Delete all objects of this caller at the worker. One message."""
        self.request(Clear())

    # -- autograd --------------------------------------------------------------------------------------------

    def backward(
        self, tensor: RemoteTensor, gradient: torch.Tensor | RemoteTensor | None, retain: bool
    ) -> None:
        """See `RemoteTensor.backward`."""
        if not tensor.requires_grad:
            raise InputError(f"{tensor!r} does not require grad, nor does what it was computed from")
        if gradient is None and tensor.numel() != 1:
            raise InputError(f"expected a gradient for the elements of {tensor!r}: only one needs none")
        if gradient is None:
            self.request(Backward(tensor.id, None, retain))
        elif isinstance(gradient, RemoteTensor):
            self.request(Backward(tensor.id, Handle(gradient.id), retain))
        else:
            self.request(Backward(tensor.id, Slot(0), retain), [gradient.detach()])

    def gradient(self, tensor: RemoteTensor) -> RemoteTensor | None:
        """See `RemoteTensor.grad`."""
        id = self.new_id()
        try:
            self.request(Grad(tensor.id, id))
        except RemoteInputError:  # no backward pass reached it
            return None
        handle = RemoteTensor(self, id, tensor.tensor_type)
        handle.is_gradient = True
        return handle

    def require_grad(self, tensors: Sequence[RemoteTensor], value: bool) -> None:
        """Let tensors require grad, or no longer. One message."""
        self.request(RequireGrad(tuple(t.id for t in tensors), value))

    def zero_grad(self, tensors: Sequence[RemoteTensor]) -> None:
        """Forget the gradients of tensors. One message."""
        self.request(ZeroGrad(tuple(t.id for t in tensors)))

    # -- plans -----------------------------------------------------------------------------------------------

    def receive_plan(self, plan: Plan, tags: Sequence[str] = (), description: str = "") -> RemotePlan:
        """Install a plan, and put its state here. One message each; none for what is there already.

        Args:
            plan: the plan.
            tags: words to find it by; plans with tags are visible to all clients.
            description: for people.
        """
        from runtime.remote.plan import RemotePlan

        self.install(plan, tags, description)
        return RemotePlan.place(plan, self)

    def plan(self, plan_id: str) -> RemotePlan:
        """A plan that is installed here, to be called without having its source: see `search_plans`.

        One message.

        It has no state yet: give it some with `RemotePlan.with_state`.

        Raises:
            PlanNotFound: there is none.
        """
        from runtime.remote.plan import RemotePlan

        return RemotePlan(self.fetch_plan(plan_id), self, {})

    def install(self, plan: Plan | Buildable, tags: Sequence[str] = (), description: str = "") -> None:
        """Send a plan, unless it was sent before. One message at most."""
        plan = plan_of(plan)
        if plan.id in self._installed and not tags:
            return
        names = list(plan.constants)
        slots = {name: Slot(i) for i, name in enumerate(names)}
        self.request(
            Install(plan.id, plan.bytes, slots, tuple(tags), description), [plan.constants[n] for n in names]
        )
        self._installed.add(plan.id)

    def fetch_plan(self, plan_id: str) -> Plan:
        """A plan that is installed here, by id, without its state. One message.

        Raises:
            PlanNotFound: there is none.
            DecodeError: what came is not that plan.
        """
        from planc.codec import decode
        from planc.ir.program import Program

        answer, tensors = self.connection.call(FetchPlan(plan_id))
        if not isinstance(answer, PlanBytes):
            raise DecodeError(f"expected a plan, got a {type(answer).__name__}")
        constants = {name: tensors[slot.index] for name, slot in answer.constants.items()}
        plan = Plan(Program(decode(answer.plan), constants))
        if plan.id != plan_id:
            raise DecodeError(f"asked for plan {plan_id}, got {plan.id}")
        return plan

    def search_plans(self, *tags: str) -> Mapping[str, str]:
        """The ids and names of the installed plans that have all of these tags. One message."""
        answer = self.request(Plans(tuple(tags)))
        if not isinstance(answer, PlansFound):
            raise DecodeError(f"expected plans, got a {type(answer).__name__}")
        return {info.plan_id: info.name for info in answer.items}

    # -- plumbing --------------------------------------------------------------------------------------------

    def request(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> Answer:
        """Send one message and wait for its answer.

        Over a network, eager operations are not waited for: an error of theirs is raised by a later message.

        Raises:
            WorkerError: what went wrong there.
        """
        if self.pending is not None:
            self.flush()
        if type(body) in _POSTED:
            self.connection.post(body, tensors)
            return Done()
        return self.connection.call(body, tensors)[0]

    def values(self, body: Body, tensors: Sequence[torch.Tensor] = ()) -> list[torch.Tensor | Pointer]:
        """As `request`, for a message that is answered by values."""
        if self.pending is not None:
            self.flush()
        return self.connection.values(body, tensors)

    def flush(self) -> None:
        """Send what was recorded for this worker: see `runtime.record`."""
        with self.pending_lock:
            pending = self.pending
            if pending is not None and not pending.sending:
                try:
                    pending.send(self)
                finally:
                    self.pending = None
                    pending.release(self.connection)

    def settle(self) -> None:
        """Wait until everything that was sent is done: eager operations over a network are not waited for.

        Raises:
            WorkerError: one of them went wrong; nothing that was sent behind it was applied.
        """
        self.flush()
        self.connection.settle()

    def infos(self, body: Search | List) -> Sequence[ObjectInfo]:
        answer = self.request(body)
        if not isinstance(answer, Found):
            raise DecodeError(f"expected objects, got a {type(answer).__name__}")
        return answer.items

    def _handle(
        self,
        id: int,
        type: TensorType,
        requires_grad: bool,
        tags: Sequence[str],
        description: str,
        owned: bool = True,
    ) -> RemoteTensor:
        handle = RemoteTensor(self, id, type, requires_grad=requires_grad, owned=owned)
        if tags or description:
            handle.tags, handle.description = tuple(tags), description
        return handle

    def new_id(self) -> int:
        """An id for a new object."""
        return next(_ids)

    def release(self, id: int) -> None:
        """Let the worker forget an object, with the next message there, or after a while without one."""
        pending = self.pending
        if pending is None:
            self.connection.release(id)
            return
        # No lock: this is called by destructors, which may run while their thread holds any.
        pending.given_up.append(id)
        if self.pending is not pending:  # it was sent meanwhile
            pending.release(self.connection)

    def close(self) -> None:
        """Close the way to the worker."""
        RELEASER.forget(self.connection)
        self.connection.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} id:{self.id}>"


class ObjectView:
    """One entry of `WorkerHandle.objects`: as its worker describes it; elements only if public and few."""

    def __init__(self, worker: str, info: ObjectInfo) -> None:
        self.worker = worker
        self.info = info

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    def __repr__(self) -> str:
        info = self.info
        if info.pointer is not None:
            return f"[pointer {self.worker}:{info.id} -> {info.pointer.worker}:{info.pointer.id}]"
        if info.preview:
            return info.preview
        assert info.dtype is not None
        private = " private" if info.private else ""
        return f"<{TensorType(info.dtype, info.shape)}{private}{''.join(' ' + tag for tag in info.tags)}>"


def tensor_type(tensor: torch.Tensor) -> TensorType:
    """The type of a local tensor.

    Raises:
        InputError: it is no tensor, or its dtype is none that plans have.
    """
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"expected a torch tensor, got a {type(tensor).__name__}")
    found = type_of(tensor)
    if found is None:
        raise InputError(f"a tensor of dtype {tensor.dtype} cannot be sent to a worker")
    return found


__all__ = ["ObjectView", "WorkerHandle", "tensor_type"]
