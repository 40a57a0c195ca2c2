"""Of a cohort: what each member's run takes, and what it may do. It looks at the store and runs nothing.

Members that have the same objects, or only public ones of the client's own, are cleared once together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch

from planc.errors import InputError, LimitError
from planc.ir import Graph
from planc.ir.binding import describe
from planc.lower import Kind, Kinds, kind_of, kinds_of
from runtime.access.approvals import Approval, Bound
from runtime.access.release import Clearance, clear
from runtime.call import Call
from runtime.cohorts import Begun, Cohort, CohortMember, Dropped, Filled, KeyOf, Own, PickedFrom, RowsOf
from runtime.errors import PermissionDenied, RemoteExecutionError
from runtime.messages import Handle, Slot
from runtime.policy import PUBLIC

MAX_PARTS = 2**19
"""Inputs of all members together that are not the same for all: they are looked up with the worker's lock."""
_NOTHING = torch.empty(0)
"""Stands where the input of a member is still to be set."""


class Part(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What stands at one input of one member: a tensor, or the rows of it that an index names."""

    tensor: torch.Tensor
    index: torch.Tensor | None = None

    def stand_in(self) -> torch.Tensor:
        """A tensor like that of `take`, by which to check what would be run; it has next to no memory."""
        if self.index is None:
            return self.tensor
        return self.tensor.new_empty(()).expand((len(self.index), *self.tensor.shape[1:]))

    def kind(self) -> Kind:
        """The kind of `take`, as executables tell inputs apart."""
        if self.index is None:
            return kind_of(self.tensor)
        return kind_of(self.tensor, (len(self.index), *self.tensor.shape[1:]))

    def take(self) -> torch.Tensor:
        """The tensor.

        Raises:
            RemoteExecutionError: the index names a row that is not there.
        """
        if self.index is None:
            return self.tensor
        try:
            return self.tensor.index_select(0, self.index)
        except (IndexError, RuntimeError) as error:  # the text quotes the index
            raise RemoteExecutionError(
                f"the index names a row that is not there: the data has {self.tensor.shape[0]} "
                f"({type(error).__name__})"
            ) from None


class Entrant(msgspec.Struct, frozen=True, eq=False):
    """A member whose inputs are known.

    Attributes:
        place: its place in the message.
        parts: what stands at the inputs that are not the same for all, in the order of `Membership.own`.
        clearance: what its run may do.
    """

    place: int
    member: CohortMember
    parts: list[Part]
    clearance: Clearance


@dataclass(frozen=True, slots=True)
class _Object:
    """An object that members name.

    ``plain``: it is public and the client's own, and no approval says what may stand there, so no rule is
    about it.
    """

    tensor: torch.Tensor
    bound: Bound
    plain: bool


class Membership:
    """The inputs of a cohort.

    Attributes:
        shared: the tensor at each input that is the same for all members; None at the others.
        own: the positions of these others, in order.
    """

    def __init__(self, call: Call, graph: Graph, body: Cohort) -> None:
        if len(body.inputs) != len(graph.inputs):
            raise InputError(f"plan {graph.name!r} takes {len(graph.inputs)} inputs, got {len(body.inputs)}")
        if len(body.outputs) != len(graph.outputs):
            raise InputError(f"plan {graph.name!r} has {len(graph.outputs)} outputs, got {len(body.outputs)}")
        self._call, self._graph, self._body = call, graph, body
        self._objects: dict[tuple[str, int, bool], _Object] = {}
        self._cleared: dict[tuple[int | None, ...], Clearance] = {}
        self.own: list[int] = []
        self.shared: list[torch.Tensor | None] = []
        self._bounds: list[Bound] = []
        self._initial: dict[int, Part] = {}
        self._keys: dict[int, Sequence[Part]] = {}
        self._rows: dict[int, Sequence[Part]] = {}
        approved = call.site.approvals.of(body.plan_id).approved
        self._named = {path for approval in approved for path in approval.inputs}
        self._data = self._states = 0
        self._fresh = not any(any(member.state) for member in body.members)
        self._require_few()
        self._leaves = [
            port.path
            for port, wish in zip(graph.outputs, body.outputs, strict=True)
            if not isinstance(wish, Dropped)
        ]
        call.require_room(sum(self._filled_bytes(i) for i in range(len(body.inputs))))
        for i in range(len(body.inputs)):
            self._prepare(i)
        self._stateless = (0,) * self._states
        self._kinds = kinds_of(self.bare())

    def entrants(self) -> list[Entrant]:
        """All members, each with what its run may do.

        Raises:
            InputError: a member has not what the inputs want, or rows that are not there.
            ObjectNotFound, WrongWorker: an object is not there.
            PermissionDenied: the client may not have the results for a member.
        """
        return [self._entrant(place, member) for place, member in enumerate(self._body.members)]

    def bare(self) -> list[torch.Tensor]:
        """The inputs of a run, of which those that are a member's own are still to be set."""
        return [_NOTHING if tensor is None else tensor for tensor in self.shared]

    def kinds(self, own: Sequence[Any]) -> Kinds:
        """The kinds of a run's inputs, of which those of a member's own are given."""
        kinds = list(self._kinds)
        for i, kind in zip(self.own, own, strict=True):
            kinds[i] = kind
        return tuple(kinds)

    def spend(self, entrants: Sequence[Entrant]) -> None:
        """Use up one run of an approval for each member that needs one: all of them, or none.

        Raises:
            PermissionDenied: an approval is for fewer runs.
        """
        wanted: dict[int, tuple[Approval, int]] = {}
        for entrant in entrants:
            approval = entrant.clearance.approval
            if approval is not None:
                wanted[id(approval)] = approval, wanted.get(id(approval), (approval, 0))[1] + 1
        for approval, runs in wanted.values():
            if approval.runs is not None and approval.runs < runs:
                raise PermissionDenied(
                    f"plan {self._graph.name!r} is approved for {approval.runs} runs more, {runs} members "
                    f"take one each: ask for fewer, or ask the owner of worker {self._call.site.worker!r}"
                )
        for approval, runs in wanted.values():
            self._call.site.approvals.spend(self._body.plan_id, approval, runs)

    def _require_few(self) -> None:
        """Refuse a message of few bytes that is about very many tensors."""
        shared = (Handle, Slot, Begun, Filled) if self._fresh else (Handle, Slot)
        own = sum(not isinstance(source, shared) for source in self._body.inputs)
        members = len(self._body.members)
        if own * members > MAX_PARTS:
            raise LimitError(
                f"plan {self._graph.name!r}: {members} members with {own} inputs of their own each, "
                f"{MAX_PARTS} inputs in all are allowed: ask for fewer members at a time"
            )

    def _filled_bytes(self, i: int) -> int:
        if not isinstance(self._body.inputs[i], Filled):
            return 0
        type = self._graph.inputs[i].value.type
        if not type.is_static:
            raise InputError(
                f"plan {self._graph.name!r}: input {describe(self._graph.inputs[i])} has no fixed shape"
            )
        nbytes = type.nbytes
        assert isinstance(nbytes, int)
        return nbytes

    def _prepare(self, i: int) -> None:
        """One input: its tensor if all members share it, else what its members' are made of."""
        source, port = self._body.inputs[i], self._graph.inputs[i]
        call = self._call
        if isinstance(source, (Handle, Slot)):
            given = call.given(source)
            self.shared.append(given.tensor.detach())
            id = source.id if isinstance(source, Handle) else None
            stored = None if id is None else call.site.store.get(id)
            self._bounds.append(Bound(port.path, id, stored, given.secrecy))
            return
        if isinstance(source, (Begun, Filled)):
            self._states += 1
            if self._fresh:  # nobody has any yet, so all begin with the same
                self.shared.append(self._begun(i, source))
                self._bounds.append(Bound(port.path, None, None, PUBLIC))
                return
        self.own.append(i)
        self.shared.append(None)
        self._bounds.append(Bound(port.path, None, None, PUBLIC))
        if isinstance(source, Own):
            self._data += 1
        elif isinstance(source, KeyOf):
            self._keys[i] = self._keys_in(source.index)
        else:
            self._initial[i] = Part(self._begun(i, source))

    def _keys_in(self, slot: int) -> Sequence[Part]:
        found = self._rows.get(slot)
        if found is None:
            keys = self._call.slot(Slot(slot)).cpu()  # numbers are drawn there
            if not keys.dim() or len(keys) != len(self._body.members):
                raise InputError(
                    f"the keys of {len(self._body.members)} members were expected as rows of one tensor, got "
                    f"shape {list(keys.shape)}"
                )
            found = self._rows[slot] = [Part(row) for row in keys.unbind()]
        return found

    def _begun(self, i: int, source: Begun | Filled) -> torch.Tensor:
        if isinstance(source, Begun):
            return self._call.slot(source.initial)
        type = self._graph.inputs[i].value.type
        try:
            return torch.full(
                type.at({}), source.value, dtype=type.dtype.torch, device=self._call.site.device
            )
        except (RuntimeError, OverflowError):
            raise InputError(
                f"plan {self._graph.name!r}: {source.value} does not fit input "
                f"{describe(self._graph.inputs[i])}"
            ) from None

    def _entrant(self, place: int, member: CohortMember) -> Entrant:
        if len(member.data) != self._data or len(member.state) not in (0, self._states):
            raise InputError(
                f"member {place} of the cohort: expected {self._data} tensors of data and no state or "
                f"{self._states} ids, got {len(member.data)} and {len(member.state)}"
            )
        data, states = iter(member.data), iter(member.state or self._stateless)
        parts: list[Part] = []
        named: list[tuple[int, _Object]] = []
        for i in self.own:
            source = self._body.inputs[i]
            if isinstance(source, Own):
                parts.append(self._part(i, next(data), named))
            elif isinstance(source, KeyOf):
                parts.append(self._keys[i][place])
            elif id := next(states):
                parts.append(self._part(i, Handle(id), named))
            else:
                parts.append(self._initial[i])
        return Entrant(place, member, parts, self._clear(named))

    def _part(self, i: int, source: Handle | RowsOf | PickedFrom, named: list[tuple[int, _Object]]) -> Part:
        found = self._object(i, source.id, rows=not isinstance(source, Handle))
        named.append((i, found))
        if isinstance(source, Handle):
            return Part(found.tensor)
        start, stop = source.start, source.stop
        if isinstance(source, RowsOf):
            return Part(_rows(found.tensor, source.id, start, stop))
        other = self._object(i, source.index, rows=True, role="index")
        named.append((-1, other))
        if other.tensor.dtype is not torch.int64 or other.tensor.dim() != 1 or not found.tensor.dim():
            raise InputError(
                f"object {source.index} does not name rows of object {source.id}: expected i64 in one dim, "
                f"and data with rows, got {other.tensor.dtype} {list(other.tensor.shape)} and "
                f"{list(found.tensor.shape)}"
            )
        return Part(found.tensor, _rows(other.tensor, source.index, start, stop))

    def _object(self, i: int, id: int, *, rows: bool, role: str = "") -> _Object:
        """An object that may stand at an input, looked at once for all members that name it there."""
        path = self._graph.inputs[i].path
        key = f"{path} {role}" if role else path, id, rows
        found = self._objects.get(key)
        if found is None:
            call = self._call
            given = call.given(Handle(id))
            secrecy = given.secrecy
            if rows and secrecy.private:
                if not call.site.policy.may_have(call.client, secrecy):
                    raise PermissionDenied(
                        f"object {id} is private, and rows taken out of it are no original: whoever chose "
                        "them could have any single row. Put each client's data at the worker as objects of "
                        "its own, and have the plan approved on these"
                    )
                secrecy = replace(secrecy, derived=True)
            plain = given.owned and not secrecy.private and path not in self._named
            bound = Bound(key[0], id, call.site.store.get(id), secrecy)
            found = self._objects[key] = _Object(given.tensor.detach(), bound, plain)
        return found

    def _clear(self, named: Sequence[tuple[int, _Object]]) -> Clearance:
        key = tuple([None if found.plain else id(found) for _, found in named])
        known = self._cleared.get(key)
        if known is None:
            bounds = list(self._bounds)
            for i, found in named:
                if i < 0:
                    bounds.append(found.bound)
                else:
                    bounds[i] = found.bound
            known = clear(
                self._call, self._body.plan_id, self._graph.name, bounds, self._leaves, returns=True
            )
            self._cleared[key] = known
        return known


def _rows(tensor: torch.Tensor, id: int, start: int, stop: int) -> torch.Tensor:
    if not tensor.dim() or not start <= stop <= tensor.shape[0]:
        raise InputError(
            f"there are no rows {start} to {stop} in object {id}: its shape is {list(tensor.shape)}"
        )
    return tensor[start:stop]


__all__ = ["Entrant", "Membership", "Part"]
