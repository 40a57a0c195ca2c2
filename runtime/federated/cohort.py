"""`run_cohort`: one message to a worker runs a plan for many of its clients, and adds up what they learned.

Knows one worker and one cohort; rounds are `runtime.federated.federation`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from planc.errors import DecodeError, InputError
from planc.ir import DType, Graph, Input, Role, TensorType
from planc.plans import Plan
from runtime.cohorts import (
    MAX_MEMBERS,
    Begun,
    Cohort,
    CohortDone,
    CohortMember,
    Dropped,
    Each,
    Filled,
    KeptOwn,
    KeyOf,
    Mean,
    Own,
    PickedFrom,
    RowsOf,
    Sum,
)
from runtime.errors import WrongWorker
from runtime.federated.members import CohortResult, Member, Picked, Rows, Source
from runtime.messages import Handle, Slot
from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor
from runtime.sums import Grid

_From = Handle | Slot | Own | KeyOf | Begun | Filled
_NOTHING: Mapping[str, torch.Tensor] = {}


def run_cohort(
    worker: WorkerHandle,
    plan: Plan,
    model: Mapping[str, torch.Tensor],
    members: Sequence[Member],
    grid: Grid | None,
    *,
    arguments: Mapping[str, torch.Tensor] = _NOTHING,
    each: bool = False,
    hold: bool = False,
    seconds: float | None = None,
) -> CohortResult:
    """Run a plan for each member at their worker, one after another. One message, once the plan is there.

    A member that fails, or whose result is NaN or beyond the grid's limit, does not count and stops nobody.

    Args:
        worker: where the members' data is.
        plan: takes the data of a member, and has the model among its state.
        model: the state that all members start from, by path; it travels once.
        members: at least one; their clients differ.
        grid: of the round, to add the new models up on; None adds up nothing, as for an evaluation.
        arguments: further arguments of the plan that are the same for all members, by path.
        each: whether every member's own new model comes back too.
        hold: whether the sums stay at the worker.
        seconds: after this time no member is begun, and the one that runs is given up.

    Raises:
        InputError: members, model and arguments do not fit the plan.
        WrongWorker: data of a member is elsewhere.
        PermissionDenied: the client may not have the results on this data; nothing was computed.
        WorkerError: the worker refused it, or is gone.
    """
    _check(plan.graph, model, members, arguments)
    asked = _Asked(worker, plan, model, members, grid, arguments, each, hold)
    message = asked.message(seconds)
    worker.install(plan)
    if worker.pending is not None:
        worker.flush()
    answer, tensors = worker.connection.call(message, asked.tensors)
    if not isinstance(answer, CohortDone):
        raise DecodeError(f"expected what came of a cohort, got a {type(answer).__name__}")
    return asked.result(answer, tensors)


def _check(
    graph: Graph,
    model: Mapping[str, torch.Tensor],
    members: Sequence[Member],
    arguments: Mapping[str, torch.Tensor],
) -> None:
    if not 0 < len(members) <= MAX_MEMBERS:
        raise InputError(f"expected 1 to {MAX_MEMBERS} members in one cohort, got {len(members)}")
    if len({member.client for member in members}) != len(members):
        raise InputError("the clients of a cohort must differ: each counts once in a mean")
    for member in members:
        if not (member.weight > 0 and math.isfinite(member.weight)):
            raise InputError(f"client {member.client}: expected a weight above 0, got {member.weight}")
    for what, given, ports in (
        ("state", model, graph.state()),
        ("argument", arguments, graph.arguments()),
    ):
        unknown = given.keys() - {port.path for port in ports}
        if unknown:
            known = ", ".join(repr(port.path) for port in ports)
            raise InputError(f"plan {graph.name!r} has no {what} {min(unknown)!r}; it has {known or 'none'}")
    keys = [port.path for port in graph.state() if port.role is Role.KEY]
    if len(keys) > 1:
        raise InputError(f"plan {graph.name!r} has {len(keys)} random keys ({', '.join(keys)}): expected one")


@dataclass
class _Asked:
    """One cohort as it is asked for, and what its answer means then."""

    worker: WorkerHandle
    plan: Plan
    model: Mapping[str, torch.Tensor]
    members: Sequence[Member]
    grid: Grid | None
    arguments: Mapping[str, torch.Tensor]
    each: bool
    hold: bool
    tensors: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    kept: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])

    def __post_init__(self) -> None:
        graph = self.plan.graph
        # What is neither the model's nor a key is the members' own.
        self._data = [p.path for p in graph.arguments() if p.path not in self.arguments]
        self._state = [p.path for p in graph.state() if self._is_own(p.role, p.path)]
        self._updated = [p for p in graph.updates() if self._is_own(p.role, p.path)]
        self._keeps = any(member.keep for member in self.members)
        self._wishes = [self._output(port.role, port.path) for port in graph.outputs]
        outputs = zip(graph.outputs, self._wishes, strict=True)
        summed = [port.path for port, wish in outputs if isinstance(wish, Sum)]
        self._summed = summed
        self._held = [self.worker.new_id() for _ in summed] if self.hold else []

    def message(self, seconds: float | None) -> Cohort:
        return Cohort(
            self.plan.id,
            tuple(self._input(port) for port in self.plan.graph.inputs),
            tuple(self._wishes),
            tuple(self._member(member) for member in self.members),
            1.0 if self.grid is None else self.grid.limit,
            seconds,
            tuple(self._held),
        )

    def result(self, answer: CohortDone, tensors: Sequence[torch.Tensor]) -> CohortResult:
        """What an answer says.

        Raises:
            DecodeError: it is not an answer to this.
        """
        outputs, wishes, members = self.plan.graph.outputs, self._wishes, self.members
        ports = [p for p, wish in zip(outputs, wishes, strict=True) if _is_sent(wish)]
        sent = [port.path for port in ports]
        names = [p.name for p, wish in zip(outputs, wishes, strict=True) if isinstance(wish, Mean)]
        places = [*answer.done, *(unfit.member for unfit in answer.unfit), *answer.late]
        if sorted(places) != list(range(len(members))):
            raise DecodeError(f"the answer does not say of each of {len(members)} members what came of it")
        count = len(answer.done)
        summed = [] if self.hold or not count else self._summed
        found = _Tensors(tensors)
        sums = {
            path: found.get(slot, torch.int64, self.model[path].shape)
            for path, slot in zip(summed, answer.sums, strict=False)
        }
        rows = [
            found.get(slot, port.value.type.dtype.torch, (count, *self.model[port.path].shape))
            for slot, port in zip(answer.each, ports, strict=False)
        ]
        means = found.get(answer.means, torch.float64, (len(names), count))
        if len(answer.sums) != len(summed) or len(answer.each) != len(sent):
            raise DecodeError(
                f"expected {len(summed)} sums and {len(sent)} models, got {len(answer.sums)}, "
                f"{len(answer.each)}"
            )
        done = [members[place] for place in answer.done]
        return CohortResult(
            done=tuple(member.client for member in done),
            failed={members[unfit.member].client: f"{unfit.kind}: {unfit.reason}" for unfit in answer.unfit},
            late=tuple(members[place].client for place in sorted(answer.late)),
            weight=math.fsum(member.weight for member in done),
            # Each in memory of its own, so that none keeps the whole frame alive.
            sums={path: total.clone() for path, total in sums.items()},
            metrics=dict(zip(names, means.clone().unbind(), strict=True)),
            each={
                member.client: {path: row[i].clone() for path, row in zip(sent, rows, strict=True)}
                for i, member in enumerate(done)
            }
            if sent
            else {},
            state={member.client: self._handles(member) for member in done if member.client in self.kept},
            seconds=found.get(answer.seconds, torch.float64, (count,)).clone(),
            held={
                path: RemoteTensor(self.worker, id, TensorType(DType.I64, tuple(self.model[path].shape)))
                for path, id in zip(self._summed if count else [], self._held, strict=False)
            },
        )

    def _input(self, port: Input) -> _From:
        if port.role is Role.ARGUMENT:
            given = self.arguments.get(port.path)
            return Own() if given is None else self._slot(given)
        if port.path in self.model:
            return self._slot(self.model[port.path])
        if port.role is Role.KEY:
            keys = [member.key for member in self.members if member.key is not None]
            if len(keys) < len(self.members):
                raise InputError(
                    f"plan {self.plan.name!r} draws random numbers: expected a key for each member"
                )
            return KeyOf(self._slot(torch.stack(keys)).index)
        initial = self.plan.state.get(port.path)
        if initial is None:
            raise InputError(f"plan {self.plan.name!r} was given no value for its state {port.path!r}")
        return _filled(port, initial) or Begun(self._slot(initial))

    def _output(self, role: Role, path: str) -> Sum | Each | Mean | KeptOwn | Dropped:
        if not role.is_state:
            return Mean()
        if path not in self.model:
            return KeptOwn() if role is not Role.KEY and self._keeps else Dropped()
        if self.grid is None:
            return Each() if self.each else Dropped()
        exponent = self.grid.exponents.get(path)
        if exponent is None:
            raise InputError(f"the grid has no {path!r}: it was made for another model")
        return Sum(exponent, self.each)

    def _slot(self, tensor: torch.Tensor) -> Slot:
        self.tensors.append(tensor.detach())
        return Slot(len(self.tensors) - 1)

    def _is_own(self, role: Role, path: str) -> bool:
        return role is not Role.KEY and path not in self.model

    def _member(self, member: Member) -> CohortMember:
        if len(member.data) != len(self._data):
            raise InputError(
                f"client {member.client}: plan {self.plan.name!r} takes {len(self._data)} tensors of data "
                f"({', '.join(self._data)}), got {len(member.data)}"
            )
        state: tuple[int, ...] = ()
        if member.state:
            unknown = member.state.keys() - set(self._state)
            if unknown:
                raise InputError(
                    f"client {member.client}: plan {self.plan.name!r} has no own state {min(unknown)!r}"
                )
            given = [member.state.get(path) for path in self._state]
            state = tuple([0 if tensor is None else self._id(member, tensor) for tensor in given])
        keep: tuple[int, ...] = ()
        if member.keep:
            keep = self.kept[member.client] = tuple(self.worker.new_id() for _ in self._updated)
        data = tuple([self._source(member, source) for source in member.data])
        return CohortMember(float(member.weight), data, state, keep)

    def _source(self, member: Member, source: Source) -> Handle | RowsOf | PickedFrom:
        if isinstance(source, RemoteTensor):
            return Handle(self._id(member, source))
        if isinstance(source, Rows):
            return RowsOf(self._id(member, source.tensor), source.start, source.stop)
        if isinstance(source, Picked):
            data, index = self._id(member, source.tensor), self._id(member, source.index)
            return PickedFrom(data, index, source.start, source.stop)
        raise InputError(
            f"client {member.client}: expected a remote tensor, Rows or Picked as data, got a "
            f"{type(source).__name__}"
        )

    def _id(self, member: Member, tensor: RemoteTensor) -> int:
        if tensor.location is not self.worker:
            raise WrongWorker(
                f"a tensor of client {member.client} is at {tensor.location.id!r}, its cohort is at "
                f"{self.worker.id!r}"
            )
        return tensor.id

    def _handles(self, member: Member) -> dict[str, RemoteTensor]:
        return {
            port.path: RemoteTensor(self.worker, id, port.value.type)
            for port, id in zip(self._updated, self.kept[member.client], strict=True)
        }


@dataclass(frozen=True)
class _Tensors:
    """The tensors of an answer."""

    given: Sequence[torch.Tensor]

    def get(self, slot: Slot, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        if slot.index >= len(self.given):
            raise DecodeError(f"slot {slot.index}: {len(self.given)} tensors came along")
        tensor = self.given[slot.index]
        if tensor.dtype is not dtype or list(tensor.shape) != list(shape):
            raise DecodeError(f"expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")
        return tensor


def _is_sent(wish: Sum | Each | Mean | KeptOwn | Dropped) -> bool:
    return isinstance(wish, Each) or (isinstance(wish, Sum) and wish.each)


def _filled(port: Input, initial: torch.Tensor) -> Filled | None:
    """A state that is one number everywhere, as that of optimizers is when they begin, does not travel."""
    if not initial.numel() or not port.value.type.is_static or initial.dtype is torch.bool:
        return None
    first = initial.detach().reshape(-1)[0]
    value = first.item()
    if not math.isfinite(value) or not bool((initial == first).all()):
        return None
    if not value and initial.is_floating_point() and bool(initial.signbit().any()):
        return None  # a zero with a sign is another number
    return Filled(value)


__all__ = ["run_cohort"]
