"""Builds a Graph value by value, keeping the numbering rule. Does no type inference: see `planc.ops`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from planc.ir.graph import Constant, DimVar, Graph, Input, Node, Operand, Output, Role, Value
from planc.ir.structure import Tree
from planc.ir.types import TensorType


class GraphBuilder:
    """Collects inputs, constants, nodes and outputs in that order, and makes the Graph."""

    def __init__(self, name: str, dims: Iterable[DimVar] = ()) -> None:
        self.name = name
        self.dims = list(dims)
        self.inputs: list[Input] = []
        self.constants: list[Constant] = []
        self.nodes: list[Node] = []
        self.outputs: list[Output] = []
        self.subplans: list[Graph] = []
        self._next = 0

    @property
    def next_index(self) -> int:
        """The number that the next value gets."""
        return self._next

    def input(
        self, name: str, type: TensorType, role: Role = Role.ARGUMENT, path: str | None = None
    ) -> Value:
        """Declare an input; all inputs come before all constants and nodes."""
        assert not self.constants
        assert not self.nodes
        value = self._value(type)
        self.inputs.append(Input(value, name, role, name if path is None else path))
        return value

    def constant(self, type: TensorType, digest: str) -> Value:
        """Declare a constant; all constants come before all nodes."""
        assert not self.nodes
        value = self._value(type)
        self.constants.append(Constant(value, digest))
        return value

    def add(self, node: Node) -> tuple[Value, ...]:
        """Append a node whose results are numbered from `next_index`."""
        assert not node.results or node.results[0].index == self._next
        self.nodes.append(node)
        self._next += len(node.results)
        return node.results

    def output(self, value: Value, name: str, role: Role = Role.ARGUMENT, path: str | None = None) -> None:
        self.outputs.append(Output(value, name, role, name if path is None else path))

    def subplan(self, graph: Graph) -> int:
        """Add a subplan (once, however often this very object is used) and return its index."""
        for index, known in enumerate(self.subplans):
            if known is graph:  # not ==, which takes an attribute 1 for 1.0
                return index
        self.subplans.append(graph)
        return len(self.subplans) - 1

    def build(self, takes: Tree | None = None, gives: Tree | None = None) -> Graph:
        return Graph(
            self.name,
            tuple(self.dims),
            tuple(self.inputs),
            tuple(self.nodes),
            tuple(self.outputs),
            tuple(self.constants),
            tuple(self.subplans),
            takes,
            gives,
        )

    def _value(self, type: TensorType) -> Value:
        value = Value(self._next, type)
        self._next += 1
        return value


def map_operand(operand: Operand, f: Callable[[Value], Value]) -> Operand:
    """The operand with ``f`` applied to each value in it."""
    if isinstance(operand, Value):
        return f(operand)
    if isinstance(operand, tuple):
        return tuple(None if item is None else f(item) for item in operand)
    return operand
