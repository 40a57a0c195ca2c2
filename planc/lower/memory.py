"""Where each value of a graph lives: in memory planned ahead, in its operand's, or in what its op allocates.

Planned memory is a few slots that values take turns in. What a function returns is never planned. It decides
only; `planc.lower.emit` writes it down.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from planc.ir import Graph, Value
from planc.lower.calls import Call, static
from planc.lower.kernels import overwrites, writable
from planc.lower.layout import Layout, Layouts
from planc.lower.liveness import copied_outputs, memory_ends, roots
from planc.lower.optimizers import has_update
from planc.ops import Trait

LARGEST = 2**20
"""Bytes of the largest planned value: above, an allocation costs nothing beside what fills it."""
_MODEST = 2**16
_MANY = 2**23
"""A graph that makes so many bytes is bound by computing: only modest values are planned there, so that its
memory peaks no higher than without planned values."""
_STATIC = 2**16
"""Bytes of the largest value that is computed once because it depends on no input."""


class Place(Enum):
    """Where a value lives."""

    GIVEN = "given"
    """An input: the caller's memory."""
    OWNED = "owned"
    """Allocated during the run, or an input that the caller gave up: it may be written over."""
    STATIC = "static"
    """Computed once, before any run."""
    PLANNED = "planned"
    """A slot's memory."""
    WINDOW = "window"
    """A view of planned memory, made once."""
    VIEW = "view"
    """A view made in each run."""


@dataclass
class Memory:
    """The decisions for one function.

    Attributes:
        place: of each value.
        slot: of each planned value.
        slots: the bytes of each slot.
        onto: the operand that a call's result takes the place of, by the call's number.
        updated: the calls of optimizers that may write over their state.
        copied: for each output, whether it is copied when the function returns.
    """

    place: dict[int, Place] = field(default_factory=dict[int, Place])
    slot: dict[int, int] = field(default_factory=dict[int, int])
    slots: list[int] = field(default_factory=list[int])
    onto: dict[int, Value] = field(default_factory=dict[int, Value])
    updated: set[int] = field(default_factory=set[int])
    copied: list[bool] = field(default_factory=list[bool])


class Planner:
    """Decides for one graph at concrete sizes; use once.

    Args:
        graph: the graph.
        calls: its calls.
        layouts: of its values, as far as they are known.
        bindings: the sizes of its dims.
        device: where it runs.
        owned: inputs that the caller gives up.
        fixed: inputs that are the same in every run.
    """

    def __init__(
        self,
        graph: Graph,
        calls: Sequence[Call],
        layouts: Layouts,
        bindings: Mapping[str, int],
        device: torch.device,
        owned: Collection[int] = (),
        fixed: Collection[int] = (),
    ) -> None:
        self._graph, self._calls, self._layouts, self._bindings = graph, calls, layouts, bindings
        self._device, self._owned, self._fixed = device, owned, fixed
        self._roots = roots(graph, calls, layouts)
        self._ends = memory_ends(graph, calls, self._roots)
        made = sum(self._bytes(result) for call in calls for result in call.results)
        self._largest = LARGEST if made < _MANY else _MODEST
        self._memory = Memory()
        self._free: list[int] = []
        self._holder: dict[int, int] = {}
        self._dying: dict[int, list[int]] = {}
        for value, number in self._ends.items():
            self._dying.setdefault(number, []).append(value)

    def plan(self) -> Memory:
        memory = self._memory
        for port in self._graph.inputs:
            index = port.value.index
            memory.place[index] = (
                Place.OWNED if index in self._owned else Place.STATIC if index in self._fixed else Place.GIVEN
            )
        for constant in self._graph.constants:
            memory.place[constant.value.index] = Place.STATIC
        self._find_static()
        kept = {v for v, place in memory.place.items() if place in (Place.GIVEN, Place.STATIC)}
        memory.copied = copied_outputs(self._graph, self._roots, kept)
        returned = {
            port.value.index
            for port, copied in zip(self._graph.outputs, memory.copied, strict=True)
            if not copied
        }
        for number, call in enumerate(self._calls):
            for result in call.results:
                if result.index not in memory.place:
                    memory.place[result.index] = self._place(number, call, result, returned)
            if has_update(call, self._device) and self._may_update(number, call):
                memory.updated.add(number)
            self._release(number)
        return memory

    def _find_static(self) -> None:
        """Mark the small values that depend on no input."""
        place = self._memory.place
        for call in self._calls:
            drawn = call.has(Trait.RANDOM) or call.has(Trait.OPTIMIZER)
            if call.definition is None or drawn:
                continue
            small = call.has(Trait.VIEW) or all(self._bytes(r) <= _STATIC for r in call.results)
            if small and all(place.get(v.index) is Place.STATIC for v in call.values()):
                place |= {result.index: Place.STATIC for result in call.results}

    def _place(self, number: int, call: Call, result: Value, returned: Collection[int]) -> Place:
        memory, layout = self._memory, self._layouts.get(result.index)
        if call.has(Trait.VIEW):
            if layout is None or layout.shared:
                base = memory.place[next(call.values()).index]
                planned = base in (Place.PLANNED, Place.WINDOW) and layout is not None
                return Place.WINDOW if planned else Place.VIEW
            return Place.OWNED
        if layout is None or not layout.dense or layout.device != self._device or not writable(call):
            return Place.OWNED
        victim = self._victim(number, call, result, layout)
        if victim is not None:
            where = memory.place[victim.index]
            if where is Place.OWNED:
                memory.onto[number] = victim
                return where
            if result.index not in returned:
                memory.onto[number] = victim
                self._hold(memory.slot[victim.index], result)
                return where
        if result.index in returned or self._bytes(result) > self._largest:
            return Place.OWNED
        self._hold(self._take(self._bytes(result)), result)
        return Place.PLANNED

    def _hold(self, slot: int, value: Value) -> None:
        self._memory.slot[value.index] = slot
        self._holder[slot] = value.index

    def _victim(self, number: int, call: Call, result: Value, layout: Layout) -> Value | None:
        """An operand that dies here and whose memory the result can take."""
        if not overwrites(call):
            return None
        values = list(call.values())
        for value in values:
            root = self._roots[value.index]
            if (
                root == value.index
                and self._memory.place[root] in (Place.OWNED, Place.PLANNED)
                and self._ends[root] == number
                and self._layouts.get(value.index) == layout
                and static(value.type, self._bindings) == static(result.type, self._bindings)
                and all(v.index == root or self._roots[v.index] != root for v in values)
            ):
                return value
        return None

    def _may_update(self, number: int, call: Call) -> bool:
        """Whether every tensor of an optimizer's state dies here, is ours, and has the new one's layout."""
        groups = [operand for operand in call.operands if isinstance(operand, tuple)]
        state = [v for group in (groups[0], *groups[2:]) for v in group if isinstance(v, Value)]
        read = [self._roots[v.index] for v in call.values()]
        return len(state) == len(call.results) and all(
            self._memory.place[old.index] is Place.OWNED
            and self._ends[old.index] == number
            and read.count(old.index) == 1
            and (layout := self._layouts.get(old.index)) is not None
            and layout == self._layouts.get(new.index)
            for old, new in zip(state, call.results, strict=True)
        )

    def _take(self, size: int) -> int:
        """A slot of at least so many bytes: the smallest free one, the largest made larger, or a new one."""
        slots = self._memory.slots
        fitting = [s for s in self._free if slots[s] >= size]
        if fitting:
            chosen = min(fitting, key=slots.__getitem__)
        elif self._free:
            chosen = max(self._free, key=slots.__getitem__)
            slots[chosen] = size
        else:
            slots.append(size)
            return len(slots) - 1
        self._free.remove(chosen)
        return chosen

    def _release(self, number: int) -> None:
        """Free the slots whose last value dies at this call."""
        for value in self._dying.get(number, ()):
            slot = self._memory.slot.get(value)
            if slot is not None and self._holder[slot] == value:
                self._free.append(slot)

    def _bytes(self, value: Value) -> int:
        return math.prod(value.type.at(self._bindings)) * value.type.dtype.itemsize


__all__ = ["LARGEST", "Memory", "Place", "Planner"]
