"""Straight-line Python for a graph at concrete sizes: a line a call, results written where memory is planned.

Lines at the top of the module make what is made once: memory, views of it, values that depend on no input.
Each subplan is a function of its own, a ``scan`` a loop over its body's function. The source holds names of
its own only: callables, attributes and constants are bound as objects in its namespace.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from planc.ir import Graph, TensorType, Value
from planc.ir.binding import bind
from planc.lower import kernels
from planc.lower.calls import Call, Calls, Constants, Key, Origin, key_of, static
from planc.lower.direct import direct
from planc.lower.layout import Layout, Layouts
from planc.lower.liveness import last_reads
from planc.lower.memory import Memory, Place, Planner
from planc.lower.optimizers import has_update, update_of
from planc.lower.record import batch_types, copy, joined, late, own, trips_of
from planc.ops import Trait
from planc.ops.bounds import guarded, has_bounds, unchecked
from planc.ops.structured import scan_operands, subplan_of

_ALIGN = 64
"""Planned memory is a multiple of so many bytes."""
_BATCHES = 1024
"""Batches whose views are made at a time."""


@dataclass
class Source:
    """Generated functions, the objects that their names stand for, and the node behind each line."""

    setup: list[str] = field(default_factory=list[str])
    lines: list[str] = field(default_factory=list[str])
    origins: dict[int, Origin] = field(default_factory=dict[int, Origin])
    """By line of ``text``, counted from 1."""
    namespace: dict[str, Any] = field(default_factory=dict[str, Any])
    nbytes: int = 0
    """Bytes of the memory that the lines at the top allocate."""
    _bound: dict[int, str] = field(default_factory=dict[int, str])
    _names: int = 0

    def name_of(self, value: Any) -> str:
        """The name that stands for an object; bound on first use."""
        name = self._bound.get(id(value))
        if name is None:
            name = f"g{len(self._bound)}"
            self._bound[id(value)] = name
            self.namespace[name] = value  # which keeps it alive, so that its id stays its own
        return name

    def once(self, expression: str, origin: Origin | None = None, targets: Sequence[str] = ()) -> str:
        """Compute something when the module is made; returns its name, the last of ``targets`` if given."""
        if not targets:
            targets = (f"m{self._names}",)
            self._names += 1
        self.setup.append(f"{', '.join(targets)} = {expression}")
        if origin is not None:
            self.origins[-len(self.setup)] = origin
        return targets[-1]

    def fresh(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names - 1}"

    def append(self, function: Function) -> None:
        offset = len(self.lines)
        self.lines.extend(function.lines)
        self.origins.update({offset + number: origin for number, origin in function.origins.items()})

    def finish(self) -> tuple[str, dict[int, Origin]]:
        """The text, and the node behind each of its lines."""
        above = len(self.setup)
        origins = {above + n if n > 0 else -n: origin for n, origin in self.origins.items()}
        return "\n".join([*self.setup, *self.lines]) + "\n", origins


@dataclass
class Function:
    """The lines of one function in the making."""

    lines: list[str] = field(default_factory=list[str])
    origins: dict[int, Origin] = field(default_factory=dict[int, Origin])

    def add(self, indent: int, line: str, origin: Origin | None = None) -> None:
        self.lines.append("    " * indent + line)
        if origin is not None:
            self.origins[len(self.lines)] = origin


@dataclass
class Scope:
    """What is known while one function is emitted."""

    graph: Graph
    bindings: Mapping[str, int]
    layouts: Layouts
    memory: Memory
    names: dict[int, str]
    made: dict[int, Call]
    """The call that makes each value."""
    body: Function = field(default_factory=Function)
    slots: dict[int, str] = field(default_factory=dict[int, str])

    def name(self, value: Value) -> str:
        return self.names[value.index]

    def is_static(self, value: Value) -> bool:
        return self.memory.place[value.index] is Place.STATIC

    def static(self, values: Sequence[Value]) -> list[TensorType]:
        return [static(v.type, self.bindings) for v in values]


class Emitter:
    """Emits functions for a graph and its subplans into one `Source`.

    Args:
        calls: the calls of graphs at concrete sizes.
        constants: the data of their constants.
        layouts: what `planc.lower.record` found out; what is missing there is not planned.
        timed: whether to call ``clock`` of the namespace with each node's origin, for profiles.
    """

    look = 50
    """Calls between two looks at the clock."""

    def __init__(
        self, calls: Calls, constants: Constants, layouts: Mapping[Key, Layouts], *, timed: bool = False
    ) -> None:
        self.source = Source()
        self._calls = calls
        self._constants = constants
        self._device = constants.device
        self._layouts = layouts
        self._timed = timed
        self._made: dict[tuple[Key, frozenset[int], tuple[tuple[int, str], ...]], str] = {}
        self.source.namespace.update(now=time.perf_counter, late=_late, limit=float("inf"))

    def function(
        self,
        graph: Graph,
        bindings: Mapping[str, int],
        owned: frozenset[int] = frozenset(),
        fixed: tuple[tuple[int, str], ...] = (),
    ) -> str:
        """Emit a function from the graph's inputs to the list of its outputs; returns its name.

        Every output has memory of its own, as what a caller may keep must. An input that is ``owned`` may be
        written over; one that is ``fixed`` is what its name stands for, and no parameter.
        """
        key = (key_of(graph, bindings), owned, fixed)
        if key not in self._made:
            self._made[key] = f"plan_{len(self._made)}"
            self._emit(self._made[key], graph, bindings, owned, dict(fixed))
        return self._made[key]

    def _emit(
        self,
        name: str,
        graph: Graph,
        bindings: Mapping[str, int],
        owned: Collection[int],
        fixed: Mapping[int, str],
    ) -> None:
        calls = self._calls.of(graph, bindings)
        layouts = self._layouts.get(key_of(graph, bindings), {})
        memory = Planner(graph, calls, layouts, bindings, self._device, owned, fixed).plan()
        names = {port.value.index: f"x{port.value.index}" for port in graph.inputs} | dict(fixed)
        parameters = [f"x{port.value.index}" for port in graph.inputs if port.value.index not in fixed]
        for constant in graph.constants:
            names[constant.value.index] = self.source.name_of(self._constants[constant.digest])
        made = {result.index: call for call in calls for result in call.results}
        scope = Scope(graph, bindings, layouts, memory, names, made)
        allocate = self.source.name_of(_allocate)
        for number, size in enumerate(memory.slots):
            scope.slots[number] = self.source.once(f"{allocate}({size}, {self.source.name_of(self._device)})")
            self.source.nbytes += size
        body = scope.body
        body.add(0, f"def {name}({', '.join(parameters)}):")
        if self._timed:
            body.add(1, "clock(None)")
        last = last_reads(graph, calls)
        for number, call in enumerate(calls):
            if number % self.look == self.look - 1:
                body.add(1, "if now() > limit: late()")
            self._line(scope, number, call)
            gone = [names[v] for v in last.get(number, ()) if names[v].startswith("v")]
            if gone:
                body.add(1, f"del {', '.join(dict.fromkeys(gone))}")
        copied = self.source.name_of(copy)
        outputs = [names[port.value.index] for port in graph.outputs]
        outputs = [
            f"{copied}({o})" if needed else o for o, needed in zip(outputs, memory.copied, strict=True)
        ]
        body.add(1, f"return [{', '.join(outputs)}]")
        self.source.append(body)

    def _line(self, scope: Scope, number: int, call: Call) -> None:
        """The line or lines of one call; afterwards its results have names."""
        memory, names = scope.memory, scope.names
        places = [memory.place[r.index] for r in call.results]
        planned = places[0] if places else Place.OWNED
        if planned in (Place.STATIC, Place.WINDOW):
            targets = [self.source.fresh("k") for _ in call.results]
            names.update({r.index: target for r, target in zip(call.results, targets, strict=True)})
            self.source.once(self._called(scope, call), call.origin, targets)
            return
        if planned is Place.PLANNED:
            (result,) = call.results
            names[result.index] = self._buffer(scope, number, call)
            scope.body.add(1, self._called(scope, call, out=names[result.index]), call.origin)
        elif number in memory.onto:
            (result,) = call.results
            target = scope.name(memory.onto[number])
            names[result.index] = f"v{result.index}"
            scope.body.add(1, f"v{result.index} = {self._called(scope, call, out=target)}", call.origin)
        else:
            names.update({r.index: f"v{r.index}" for r in call.results})
            if call.op == "scan":
                self._scan(scope, call)
            else:
                update = number in memory.updated
                called = self._called(scope, call, update=update)
                scope.body.add(1, f"{_targets(call, names)}{called}", call.origin)
        if self._timed:
            scope.body.add(1, f"clock({self.source.name_of(call.origin)})")

    def _buffer(self, scope: Scope, number: int, call: Call) -> str:
        """The name of the tensor that a planned result is written to."""
        victim = scope.memory.onto.get(number)
        if victim is not None:
            return scope.name(victim)
        (result,) = call.results
        layout = scope.layouts[result.index]
        assert isinstance(layout, Layout)
        shape, dtype = result.type.at(scope.bindings), result.type.dtype.torch
        parts = [self.source.name_of(part) for part in (_window, dtype, shape, layout.strides)]
        slot = scope.slots[scope.memory.slot[result.index]]
        return self.source.once(f"{parts[0]}({slot}, {', '.join(parts[1:])})")

    def _called(self, scope: Scope, call: Call, out: str = "", update: bool = False) -> str:
        """The expression that makes a call's results; with ``out``, written there."""
        if call.op == "call":
            plan, values = subplan_of(scope.graph, call.origin.node), list(call.values())
            name = self.function(plan, bind(plan, scope.static(values)))
            return f"{name}({', '.join(scope.name(v) for v in values)})"
        first = next(call.values(), None)
        over = first is not None and scope.name(first) == out
        trusting = unchecked(self._device) and has_bounds(call.op)
        found = direct(call, scope.bindings, bool(out), over, scope.made)
        if found is not None and not trusting:
            parts = [self._argument(scope, item) for item in found.arguments]
            return self._spelled(call, found.run, parts, f"{found.out}={out}" if out and found.out else "")
        run, attrs = kernels.bare(call.run), call.attrs
        if (writer := kernels.writer(call.op) if out else None) is not None:
            run = writer
        elif has_update(call, self._device):
            run, attrs = update_of(call, update), {}
        if trusting:
            run = guarded(call.op, run)
        return self._spelled(call, run, self._operands(scope, call, attrs), f"out={out}" if out else "")

    def _spelled(self, call: Call, run: Any, parts: Sequence[str], out: str = "") -> str:
        arguments = ", ".join([*parts, out] if out else parts)
        return f"{self.source.name_of(run)}({arguments}){'[0]' if call.unpack else ''}"

    def _operands(self, scope: Scope, call: Call, attrs: Mapping[str, Any]) -> list[str]:
        """Operands in order, and attributes by name."""
        given = {**attrs, "device": self._device} if call.has(Trait.FACTORY) else attrs
        parts = [self._operand(scope, call, position) for position in range(len(call.operands))]
        return [*parts, *(f"{key}={self._literal(value)}" for key, value in given.items())]

    def _operand(self, scope: Scope, call: Call, position: int) -> str:
        tensor = kernels.as_tensor(call, position)
        return self._argument(scope, call.operands[position]) if tensor is None else self._literal(tensor)

    def _argument(self, scope: Scope, argument: Any) -> str:
        if isinstance(argument, Value):
            return scope.name(argument)
        if isinstance(argument, tuple):
            values: tuple[Value | None, ...] = argument
            return f"[{', '.join('None' if v is None else scope.name(v) for v in values)}]"
        return self._literal(argument)

    def _literal(self, value: Any) -> str:
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return self.source.name_of(value)

    # -- scan -----------------------------------

    def _scan(self, scope: Scope, call: Call) -> None:
        """A loop over the body's function; carried state is copied first and then ours to write over."""
        body, node, names = scope.body, call.origin.node, scope.names
        carry, over, given = scan_operands(node)
        plan, trips = subplan_of(scope.graph, node), trips_of(call, scope.bindings)
        tag = self.source.fresh("")
        carried = [f"c{tag}_{i}" for i in range(len(carry))]
        collected = [f"y{tag}_{i}" for i in range(len(plan.outputs) - len(carry))]
        batches = [f"b{tag}_{i}" for i in range(len(over))]
        for target, value in zip(carried, carry, strict=True):
            body.add(1, f"{target} = {self.source.name_of(own)}({scope.name(value)})")
        for target in collected:
            body.add(1, f"{target} = []")

        def trip(indent: int, length: int) -> None:
            types = [*scope.static(carry), *batch_types(scope.static(over), length), *scope.static(given)]
            bindings = bind(plan, types)
            known = self._layouts.get(key_of(plan, bindings), {})
            ours = [port.value.index for port in plan.inputs[: len(carry)]]
            owned = frozenset(i for i in ours if (layout := known.get(i)) is not None and layout.dense)
            ports = plan.inputs[len(carry) + len(over) :]
            same = {p.value.index: v for p, v in zip(ports, given, strict=True) if scope.is_static(v)}
            fixed = tuple((index, scope.name(value)) for index, value in same.items())
            called = self.function(plan, bindings, owned, fixed)
            loose = [v for p, v in zip(ports, given, strict=True) if p.value.index not in same]
            arguments = [*carried, *batches, *map(scope.name, loose)]
            results = [*carried, *(f"t{tag}_{i}" for i in range(len(collected)))]
            targets = f"{', '.join(results)}, = " if results else ""
            body.add(indent, f"{targets}{called}({', '.join(arguments)})", call.origin)
            for i, target in enumerate(collected):
                body.add(indent, f"{target}.append(t{tag}_{i})")
            body.add(indent, "if now() > limit: late()")

        rows = trips.whole * trips.size
        if not over:
            body.add(1, f"for _ in range({trips.whole}):")
            trip(2, 0)
        elif rows:
            listed = ", ".join(map(scope.name, over))
            split = f"{self.source.name_of(_batches)}([{listed}], {trips.size}, {rows})"
            body.add(1, f"for {', '.join(batches)}, in {split}:", call.origin)
            trip(2, trips.size)
        if trips.rest:
            for target, value in zip(batches, over, strict=True):
                body.add(1, f"{target} = {scope.name(value)}[{rows}:]")
            trip(1, trips.rest)
        values = [*carried, *self._collected(scope, call, collected)]
        if values:
            targets = [names[r.index] for r in node.results]
            body.add(1, f"{', '.join(targets)}, = {', '.join(values)},", call.origin)
            body.add(1, f"del {', '.join([*carried, *collected])}")

    def _collected(self, scope: Scope, call: Call, lists: Sequence[str]) -> list[str]:
        """For each collected output of a scan, the expression that makes one tensor of its list."""
        node = call.origin.node
        carry, over, _ = scan_operands(node)
        plan = subplan_of(scope.graph, node)
        out: list[str] = []
        for result, target, joins in zip(
            node.results[len(carry) :], lists, joined(call, plan, len(carry), len(over)), strict=True
        ):
            shape = result.type.at(scope.bindings)
            if shape and shape[0] == 0:
                parts = [self.source.name_of(part) for part in (torch.empty, shape, result.type.dtype.torch)]
                device = self.source.name_of(self._device)
                out.append(f"{parts[0]}({parts[1]}, dtype={parts[2]}, device={device})")
            else:
                out.append(f"{self.source.name_of(torch.cat if joins else torch.stack)}({target})")
        return out


def _targets(call: Call, names: Mapping[int, str]) -> str:
    results = [names[r.index] for r in call.results]
    comma = "," if len(results) == 1 and call.op == "call" else ""
    return f"{', '.join(results)}{comma} = " if results else ""


def _allocate(nbytes: int, device: torch.device) -> torch.Tensor:
    """Memory for planned values. What lies in it is never read before it is written.

    Whole elements of any dtype fit: kernels that clone a storage (`aten.slice_scatter`) insist on it.
    """
    return torch.empty(-(-nbytes // _ALIGN) * _ALIGN, dtype=torch.uint8, device=device)


def _window(
    slot: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> torch.Tensor:
    """A tensor in planned memory."""
    tensor = torch.empty(0, dtype=dtype, device=slot.device)
    return tensor.set_(slot.untyped_storage(), 0, shape, strides)


def _batches(tensors: Sequence[torch.Tensor], size: int, rows: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """The batches of the first rows of tensors; views made many at a time, but never all of a long scan's."""
    step = size * _BATCHES
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield from zip(*(tensor[start:stop].split(size) for tensor in tensors), strict=True)


def _late() -> NoReturn:
    raise late()


__all__ = ["Emitter", "Function", "Scope", "Source"]
