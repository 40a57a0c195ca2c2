"""Straight-line Python for a graph at concrete sizes: one line a node, values dropped after their last use.

The source holds generated names only; callables, attributes and constants are bound as objects in its
namespace. Each subplan is a function of its own; a ``scan`` is a loop over its body's function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.errors import InputError, TypeCheckError
from planc.ir import Graph, Node, Operand, TensorType, Value
from planc.ir.binding import bind
from planc.lower.liveness import last_uses, shares_memory
from planc.ops import Trait, lookup
from planc.ops.apply import concrete
from planc.ops.structured import batch_name, scan_operands, subplan_of


@dataclass(frozen=True, slots=True)
class Origin:
    """The node that a generated line runs: its plan, its number there, itself."""

    plan: str
    index: int
    node: Node


@dataclass
class Source:
    """Generated functions, the objects that their names stand for, and the node behind each line."""

    lines: list[str] = field(default_factory=list[str])
    origins: dict[int, Origin] = field(default_factory=dict[int, Origin])
    namespace: dict[str, Any] = field(default_factory=dict[str, Any])
    _bound: dict[int, str] = field(default_factory=dict[int, str])

    def name_of(self, value: Any) -> str:
        """The name that stands for an object; bound on first use."""
        name = self._bound.get(id(value))
        if name is None:
            name = f"g{len(self._bound)}"
            self._bound[id(value)] = name
            self.namespace[name] = value  # which keeps it alive, so that its id stays its own
        return name

    def append(self, function: Function) -> None:
        offset = len(self.lines)
        self.lines.extend(function.lines)
        self.origins.update({offset + number: origin for number, origin in function.origins.items()})

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass
class Function:
    """The lines of one function in the making."""

    lines: list[str] = field(default_factory=list[str])
    origins: dict[int, Origin] = field(default_factory=dict[int, Origin])

    def add(self, indent: int, line: str, origin: Origin | None = None) -> None:
        self.lines.append("    " * indent + line)
        if origin is not None:
            self.origins[len(self.lines)] = origin


class Emitter:
    """Emits functions for a graph and its subplans into one `Source`."""

    def __init__(self, constants: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.source = Source()
        self._constants = constants
        self._device = device
        self._placed: dict[str, torch.Tensor] = {}
        self._made: dict[tuple[int, tuple[tuple[str, int], ...], bool], str] = {}

    def function(self, graph: Graph, bindings: Mapping[str, int], *, fresh: bool = False) -> str:
        """Emit a function from the graph's inputs to the tuple of its outputs; returns its name.

        With ``fresh``, every output has memory of its own, as what a caller may keep must.
        """
        key = (id(graph), tuple(sorted(bindings.items())), fresh)
        if key not in self._made:
            self._made[key] = f"plan_{len(self._made)}"
            self._emit(self._made[key], graph, bindings, fresh)
        return self._made[key]

    def _emit(self, name: str, graph: Graph, bindings: Mapping[str, int], fresh: bool) -> None:
        body = Function()
        names = {port.value.index: f"x{port.value.index}" for port in graph.inputs}
        for constant in graph.constants:
            names[constant.value.index] = self.source.name_of(self._constant(constant.digest))
        body.add(0, f"def {name}({', '.join(names[port.value.index] for port in graph.inputs)}):")
        last = last_uses(graph)
        for index, node in enumerate(graph.nodes):
            names.update({r.index: f"v{r.index}" for r in node.results})
            origin = Origin(graph.name, index, node)
            _check_sizes(origin, bindings)
            if node.op == "scan":
                self._scan(body, graph, node, names, bindings, origin)
            else:
                call = self._call(graph, node, names, bindings)
                body.add(1, f"{self._targets(node, names)}{call}", origin)
            gone = [names[v] for v in last.get(index, ()) if names[v].startswith("v")]
            if gone:
                body.add(1, f"del {', '.join(gone)}")
        shared = shares_memory(graph) if fresh else [False] * len(graph.outputs)
        outputs = [names[port.value.index] for port in graph.outputs]
        copy = self.source.name_of(_copy)
        outputs = [f"{copy}({o})" if needed else o for o, needed in zip(outputs, shared, strict=True)]
        body.add(1, f"return ({''.join(o + ', ' for o in outputs)})")
        self.source.append(body)

    def _targets(self, node: Node, names: Mapping[int, str]) -> str:
        results = [names[r.index] for r in node.results]
        if not results:
            return ""
        many = len(results) > 1 or node.op == "call"
        return f"{', '.join(results)}{',' if len(results) == 1 and many else ''} = "

    def _call(self, graph: Graph, node: Node, names: Mapping[int, str], bindings: Mapping[str, int]) -> str:
        if node.op == "call":
            plan = subplan_of(graph, node)
            args = node.operands[0]
            assert isinstance(args, tuple)
            inner = bind(plan, [_static(v.type, bindings) for v in args if v is not None])
            return f"{self.function(plan, inner)}({', '.join(names[v.index] for v in args if v is not None)})"
        definition = lookup(node.op)
        parts = [self._operand(operand, names, bindings) for operand in node.operands]
        attrs: dict[str, Any] = {}
        known = {p.name for p in definition.attrs}
        for key, value in node.attrs:
            # Names become source: they come from the op table, whether or not anyone verified the graph.
            if key not in known:
                raise TypeCheckError(f"{node.op} has no attribute {key!r}; it is {definition.signature()}")
            attrs[key] = concrete(value, bindings)
        if definition.has(Trait.FACTORY):
            attrs["device"] = self._device
        parts += [f"{key}={self._literal(value)}" for key, value in attrs.items()]
        call = f"{self.source.name_of(definition.run)}({', '.join(parts)})"
        single = len(node.results) == 1 and _returns_tuple(node)
        return f"{call}[0]" if single else call

    def _operand(self, operand: Operand, names: Mapping[int, str], bindings: Mapping[str, int]) -> str:
        if isinstance(operand, Value):
            return names[operand.index]
        if isinstance(operand, tuple):
            return f"[{', '.join('None' if v is None else names[v.index] for v in operand)}]"
        return self._literal(concrete(operand, bindings))

    def _literal(self, value: Any) -> str:
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return self.source.name_of(value)

    # -- scan -----------------------------------

    def _scan(
        self,
        body: Function,
        graph: Graph,
        node: Node,
        names: Mapping[int, str],
        bindings: Mapping[str, int],
        origin: Origin,
    ) -> None:
        carry, over, given = scan_operands(node)
        plan = subplan_of(graph, node)
        tag = node.results[0].index if node.results else origin.index
        carried = [f"c{tag}_{i}" for i in range(len(carry))]
        collected = [f"y{tag}_{i}" for i in range(len(plan.outputs) - len(carry))]
        size = int(concrete(node.attr("size", 0), bindings))
        rows = _static(over[0].type, bindings).shape[0] if over else 0
        assert isinstance(rows, int)
        for target, value in zip(carried, carry, strict=True):
            body.add(1, f"{target} = {names[value.index]}")
        for target in collected:
            body.add(1, f"{target} = []")

        def trip(indent: int, batches: Sequence[str], length: int) -> None:
            types = [_static(v.type, bindings) for v in carry]
            types += [TensorType(v.type.dtype, (length, *_static(v.type, bindings).shape[1:])) for v in over]
            types += [_static(v.type, bindings) for v in given]
            called = self.function(plan, bind(plan, types))
            arguments = [*carried, *batches, *(names[v.index] for v in given)]
            results = [*carried, *(f"t{tag}_{i}" for i in range(len(collected)))]
            targets = f"{''.join(r + ', ' for r in results)}= " if results else ""
            body.add(indent, f"{targets}{called}({', '.join(arguments)})", origin)
            for i, target in enumerate(collected):
                body.add(indent, f"{target}.append(t{tag}_{i})")

        if not over:
            body.add(1, f"for _ in range({int(concrete(node.attr('trips', 1), bindings))}):")
            trip(2, [], 0)
        else:
            whole = rows - rows % size
            if whole:
                body.add(1, f"for i in range(0, {whole}, {size}):")
                trip(2, [f"{names[v.index]}[i:i + {size}]" for v in over], size)
            if rows % size and not node.attr("drop_last", False):
                trip(1, [f"{names[v.index]}[{whole}:]" for v in over], rows % size)
        batch = batch_name(plan, len(carry), len(over))
        join, stack, empty = (self.source.name_of(f) for f in (torch.cat, torch.stack, torch.empty))
        values: list[str] = list(carried)
        for target, port, result in zip(
            collected, plan.outputs[len(carry) :], node.results[len(carry) :], strict=True
        ):
            shape = port.value.type.shape
            whole_batch = batch is not None and bool(shape) and str(shape[0]) == batch
            t = _static(result.type, bindings)
            if t.shape and t.shape[0] == 0:
                dtype, device = self.source.name_of(t.dtype.torch), self.source.name_of(self._device)
                values.append(f"{empty}({list(t.shape)}, dtype={dtype}, device={device})")
            else:
                values.append(f"{join if whole_batch else stack}({target})")
        if node.results:
            targets = [names[r.index] for r in node.results]
            body.add(
                1, f"{''.join(t + ', ' for t in targets)}= ({''.join(v + ', ' for v in values)})", origin
            )
        loose = [*carried, *collected]
        if loose:
            body.add(1, f"del {', '.join(loose)}")

    def _constant(self, digest: str) -> torch.Tensor:
        if digest not in self._placed:
            data = self._constants.get(digest)
            if data is None:
                raise InputError(
                    f"the data of constant sha256:{digest[:12]}... is missing; load it with the plan"
                )
            self._placed[digest] = data.to(self._device)
        return self._placed[digest]


def _check_sizes(origin: Origin, bindings: Mapping[str, int]) -> None:
    """Refuse sizes at which a result would have a negative dim, such as ``x[5:]`` of three rows."""
    for result in origin.node.results:
        shape = result.type.at(bindings)
        if any(size < 0 for size in shape):
            given = ", ".join(f"{name} = {size}" for name, size in bindings.items())
            raise InputError(
                f"plan {origin.plan!r}, node {origin.index}: with {given} the result of {origin.node.op}, "
                f"{result.type}, would have the shape {list(shape)}"
            )


def _static(t: TensorType, bindings: Mapping[str, int]) -> TensorType:
    return TensorType(t.dtype, t.at(bindings))


def _returns_tuple(node: Node) -> bool:
    """Whether the callable of a node with one result returns a tuple all the same."""
    definition = lookup(node.op)
    return definition.has(Trait.OPTIMIZER) or node.attr("output_mask") is not None or node.op in _LISTS


_LISTS = {"aten.split", "aten.split_with_sizes", "aten.unbind", "random.split"}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


__all__ = ["Emitter", "Function", "Origin", "Source"]
