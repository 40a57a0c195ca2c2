"""A graph at concrete sizes as a list of calls: attributes evaluated, fused elementwise programs unrolled.

What records layouts, what places values in memory and what emits source all walk this list. It runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.errors import InputError, TypeCheckError
from planc.ir import Attribute, Graph, Node, Operand, TensorType, Value
from planc.ops import OpDef, Trait, lookup
from planc.ops.apply import concrete
from planc.ops.steps import Ref, parse_steps, step_types

STRUCTURED = ("call", "scan")


@dataclass(frozen=True, slots=True)
class Origin:
    """The node that a generated line runs: its plan, its number there, itself."""

    plan: str
    index: int
    node: Node


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an op's callable, or a structured node.

    Operands are values, tuples of values (and None), or what the callable takes as it is. A structured node
    has no definition; what it runs is read off its origin's node.
    """

    op: str
    definition: OpDef | None
    operands: tuple[Any, ...]
    attrs: dict[str, Any]
    results: tuple[Value, ...]
    origin: Origin
    unpack: bool = False
    """Whether the callable gives a tuple although there is one result."""

    def values(self) -> Iterator[Value]:
        """Every value that it reads, in order."""
        for operand in self.operands:
            if isinstance(operand, Value):
                yield operand
            elif isinstance(operand, tuple):
                for item in operand:
                    if isinstance(item, Value):
                        yield item

    def has(self, trait: Trait) -> bool:
        return self.definition is not None and self.definition.has(trait)

    @property
    def run(self) -> Callable[..., Any]:
        assert self.definition is not None
        return self.definition.run


Sizes = tuple[tuple[str, int], ...]
Key = tuple[int, Sizes]
"""A graph (by identity) and the sizes of its dims."""


def key_of(graph: Graph, bindings: Mapping[str, int]) -> Key:
    """What names a graph at these sizes, as long as the graph lives."""
    return id(graph), tuple(sorted(bindings.items()))


Order = Callable[[Graph, Sequence[Call], Mapping[str, int]], tuple[Call, ...]]


def _as_written(_graph: Graph, calls: Sequence[Call], _bindings: Mapping[str, int]) -> tuple[Call, ...]:
    return tuple(calls)


@dataclass
class Calls:
    """The calls of graphs at concrete sizes, made once for each, in the order that is asked for."""

    order: Order = _as_written
    _made: dict[Key, tuple[Call, ...]] = field(default_factory=dict[Key, tuple[Call, ...]])

    def of(self, graph: Graph, bindings: Mapping[str, int]) -> tuple[Call, ...]:
        """The calls of a graph.

        Raises:
            InputError: at these sizes a result would have a negative dim, or a dim is divided by 0.
            TypeCheckError: a node has an attribute that its op has not.
        """
        key = key_of(graph, bindings)
        if key not in self._made:
            try:
                self._made[key] = self.order(graph, list(_calls(graph, bindings)), bindings)
            except ZeroDivisionError:
                sizes = show_sizes(bindings)
                raise InputError(f"plan {graph.name!r}: with {sizes} a dim is divided by 0") from None
        return self._made[key]


@dataclass
class Constants:
    """The data of a program's constants, moved once to where it runs."""

    data: Mapping[str, torch.Tensor]
    device: torch.device
    _placed: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def __getitem__(self, digest: str) -> torch.Tensor:
        if digest not in self._placed:
            found = self.data.get(digest)
            if found is None:
                raise InputError(
                    f"the data of constant sha256:{digest[:12]}... is missing; load it with the plan"
                )
            self._placed[digest] = found.to(self.device)
        return self._placed[digest]


def static(t: TensorType, bindings: Mapping[str, int]) -> TensorType:
    """The type at these sizes."""
    return TensorType(t.dtype, t.at(bindings))


def show_sizes(bindings: Mapping[str, int]) -> str:
    """The sizes of dims, as messages show them."""
    return ", ".join(f"{name} = {size}" for name, size in bindings.items()) or "no dims"


def returns_tuple(node: Node) -> bool:
    """Whether the callable of a node with one result returns a tuple all the same."""
    definition = lookup(node.op)
    return definition.has(Trait.OPTIMIZER) or node.attr("output_mask") is not None or node.op in _LISTS


_LISTS = {"aten.split", "aten.split_with_sizes", "aten.unbind", "random.split"}


def _calls(graph: Graph, bindings: Mapping[str, int]) -> Iterator[Call]:
    unused = 1 + max((v.index for v in _all_values(graph)), default=-1)
    for index, node in enumerate(graph.nodes):
        origin = Origin(graph.name, index, node)
        _check_sizes(origin, bindings)
        if node.op in STRUCTURED:
            yield Call(node.op, None, node.operands, {}, node.results, origin)
        elif node.op == "fused.elementwise":
            yield from _steps(node, bindings, origin, unused)
            unused += len(parse_steps(str(node.attr("steps"))).steps)
        else:
            definition = lookup(node.op)
            operands = tuple(_operand(operand, bindings) for operand in node.operands)
            attrs = _attrs(definition, node.attrs, bindings)
            unpack = len(node.results) == 1 and returns_tuple(node)
            yield Call(node.op, definition, operands, attrs, node.results, origin, unpack)


def _steps(node: Node, bindings: Mapping[str, int], origin: Origin, first: int) -> Iterator[Call]:
    """The steps of an elementwise program, each a call: so each can write over what it reads last."""
    inputs = node.operands[0]
    assert isinstance(inputs, tuple)
    read = [value for value in inputs if value is not None]
    program = parse_steps(str(node.attr("steps")))
    types = step_types(program, [static(value.type, bindings) for value in read])
    made = [Value(first + i, t) for i, t in enumerate(types[:-1])] + [*node.results]
    for number, step in enumerate(program.steps):
        operands = tuple(
            ((made if item.made else read)[item.number]) if isinstance(item, Ref) else item
            for item in step.operands
        )
        definition = lookup(step.op)
        attrs = _attrs(definition, step.attrs, bindings)
        yield Call(step.op, definition, operands, attrs, (made[number],), origin)


def _operand(operand: Operand, bindings: Mapping[str, int]) -> Any:
    return operand if isinstance(operand, (Value, tuple)) else concrete(operand, bindings)


def _attrs(
    definition: OpDef, attrs: tuple[tuple[str, Attribute], ...], bindings: Mapping[str, int]
) -> dict[str, Any]:
    known = {p.name for p in definition.attrs}
    for key, _ in attrs:
        # Names become source: they come from the op table, whether or not anyone verified the graph.
        if key not in known:
            raise TypeCheckError(
                f"{definition.name} has no attribute {key!r}; it is {definition.signature()}"
            )
    return {key: concrete(value, bindings) for key, value in attrs}


def _all_values(graph: Graph) -> Iterator[Value]:
    yield from (port.value for port in graph.inputs)
    yield from (constant.value for constant in graph.constants)
    for node in graph.nodes:
        yield from node.results


def _check_sizes(origin: Origin, bindings: Mapping[str, int]) -> None:
    """Refuse sizes at which a result would have a negative dim, such as ``x[5:]`` of three rows."""
    for result in origin.node.results:
        shape = result.type.at(bindings)
        if any(size < 0 for size in shape):
            raise InputError(
                f"plan {origin.plan!r}, node {origin.index}: with {show_sizes(bindings)} the result of "
                f"{origin.node.op}, {result.type}, would have the shape {list(shape)}"
            )


__all__ = ["STRUCTURED", "Call", "Calls", "Constants", "Key", "Origin", "key_of", "show_sizes", "static"]
