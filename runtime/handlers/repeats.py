"""Runs like one before them: what was found out about that one holds again, as long as its objects do.

An object never changes: a store replaces it. So the very same objects at the inputs have the same owners,
secrecy, types and layouts as before, and a run on them needs no second look. Inputs in front of the state may
be others each time, batches of data for example, and are looked at. All other runs are bound by `runs`.

Small state that such a run replaces is put into the store when something else wants to see it, not before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from planc.ir import Graph
from planc.lower import Kind, kind_of
from runtime.call import Call
from runtime.executor import Prepared
from runtime.messages import Handle, Pointer, Run, Slot
from runtime.policy import PUBLIC
from runtime.store import Store, Stored

_SMALL = 4 * 2**20
"""Bytes of state up to which putting it may be deferred: until then the elements before are kept as well."""


class Repeat:
    """The last run of a plan by a client, on public objects of their own and tensors that came along.

    It owns none of the objects: those that the client lets go of are gone.

    Attributes:
        form: what becomes of its outputs.
        prepared: the plan at the sizes of that run.
        updated: the ids of the objects that it replaces, in the order of ``form.updated``.
        ids: the same.
    """

    __slots__ = (
        "_fixed",
        "_kinds",
        "_places",
        "_seen",
        "_small",
        "_state",
        "_state_ids",
        "_wishes",
        "form",
        "ids",
        "prepared",
        "updated",
    )

    def __init__(
        self,
        body: Run,
        arguments: int,
        form: Any,
        stored: Sequence[Stored | None],
        prepared: Prepared,
    ) -> None:
        self.form = form
        self.prepared = prepared
        self._kinds = prepared.kinds[:arguments]
        self._wishes = [type(wish) for wish in body.results], [type(wish) for wish in body.updates]
        self._state = body.inputs[arguments:]
        self._state_ids = [argument.id for argument in self._state if isinstance(argument, Handle)]
        self._places = [i for _, i in form.updated]
        self._fixed = [
            (arguments + k, id) for k, id in enumerate(self._state_ids) if arguments + k not in self._places
        ]
        self.updated = [self._state_ids[i - arguments] for i in self._places]
        self.ids = frozenset(self.updated)
        self._small = bool(self._places) and sum(_nbytes(stored[i]) for i in self._places) <= _SMALL
        self._seen = [_ref(found) for found in stored]
        """The object at each input, for as long as it lives; of a tensor that came along, nothing."""

    @classmethod
    def of(
        cls, body: Run, graph: Graph, form: Any, stored: Sequence[Stored | None], prepared: Prepared
    ) -> Repeat | None:
        """Of a run that went well; None where tensors of state came along, or stand before arguments."""
        arguments = next((i for i, port in enumerate(graph.inputs) if port.role.is_state), len(graph.inputs))
        if any(type(argument) is not Handle for argument in body.inputs[arguments:]):
            return None
        return cls(body, arguments, form, stored, prepared)

    def inputs(self, call: Call, body: Run) -> list[Any] | None:
        """The tensors that a run takes, where what is known of the last one holds for it; else None.

        Raises:
            DecodeError: a tensor is named that did not come along.
        """
        kinds, inputs, seen, store = self._kinds, body.inputs, self._seen, call.site.store
        count = len(kinds)
        if body.grad or len(inputs) != len(seen) or inputs[count:] != self._state or not self._wants(body):
            return None
        tensors: list[Any] = []
        for i in range(count):
            argument = inputs[i]
            if type(argument) is Handle:
                found = store.get(argument.id)
                if found is None:
                    return None
                if found is not seen[i]():
                    if not _alike(call, found, kinds[i]):
                        return None
                    seen[i] = _ref(found)
                tensors.append(found.value)
            elif type(argument) is Slot:
                tensors.append(call.slot(argument))
                if kind_of(tensors[i]) != kinds[i]:
                    return None
                seen[i] = _ref(None)
            else:
                return None
        for i, id in self._fixed:
            found = store.get(id)
            if found is None or found is not seen[i]():
                return None
        state = store.deferred(self)
        if state is not None:
            return [*tensors, *state]
        for id, ref in zip(self._state_ids, seen[count:], strict=True):
            found = store.get(id)
            if found is None or found is not ref():
                return None
            tensors.append(found.value)
        return tensors

    def _wants(self, body: Run) -> bool:
        """Whether a run asks for the same of each output."""
        results, updates = self._wishes
        if [type(wish) for wish in body.results] != results:
            return False
        return not (body.updates or updates) or [type(wish) for wish in body.updates] == updates

    def replaces(self, stored: Sequence[Stored]) -> bool:
        """Whether these are the objects that the run replaces, as it knows them."""
        return all(found is self._seen[i]() for i, found in zip(self._places, stored, strict=True))

    def replaced(self) -> list[Stored]:
        """The objects that the run replaces. Where putting was deferred, they have the elements of before."""
        return [found for i in self._places if (found := self._seen[i]()) is not None]

    def replace(self, puts: Mapping[int, Stored]) -> None:
        """Know the objects that came in the place of others."""
        for i, id in zip(self._places, self.updated, strict=True):
            self._seen[i] = _ref(puts[id])

    def may_defer(self, store: Store) -> bool:
        """Whether what the run replaces need not be put into the store at once."""
        return self._small and store.may_defer

    def defer(
        self,
        store: Store,
        kept: Mapping[int, Stored],
        tensors: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """Put what a run on these inputs keeps and replaces when something wants to see it.

        Raises:
            StoreFull, QuotaExceeded: there is no room for what it keeps.
        """
        after = list(tensors)
        for output, i in self.form.updated:
            after[i] = outputs[output]
        store.defer(kept, self, after[len(self._kinds) :])

    def settle(self, values: Sequence[torch.Tensor]) -> Mapping[int, Stored]:
        """As `Deferred.settle`; the values are the tensors of all state after the last run."""
        start = len(self._kinds)
        puts: dict[int, Stored] = {}
        for i, id in zip(self._places, self.updated, strict=True):
            old = self._seen[i]()
            assert old is not None  # it is in the store
            puts[id] = old.updated(values[i - start], PUBLIC)
        self.replace(puts)
        return puts


def _nothing() -> None:
    """There is no object."""


def _ref(stored: Stored | None) -> Callable[[], Stored | None]:
    return _nothing if stored is None else weakref.ref(stored)


def _alike(call: Call, found: Stored, kind: Kind) -> bool:
    """Whether an object may stand where one of this kind stood."""
    value = found.value
    return (
        found.owner == call.client
        and not found.secrecy.private
        and not isinstance(value, Pointer)
        and kind_of(value) == kind
    )


def _nbytes(stored: Stored | None) -> int:
    return stored.value.nbytes if stored is not None and isinstance(stored.value, torch.Tensor) else 0


__all__ = ["Repeat"]
