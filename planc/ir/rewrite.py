"""Rebuild a graph node by node, renumbering values: the one way in which passes change a graph."""

from __future__ import annotations

from dataclasses import replace

from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.facts import Facts
from planc.ir.graph import Graph, Node, Operand, Value


class Rewriter:
    """Copies a graph's ports into a builder and maps old values to new ones.

    >>> rewriter = Rewriter(graph)
    >>> for node in graph.nodes:
    ...     rewriter.copy(node)          # or rewriter.replace(node, values), or drop it
    >>> rewriter.finish()
    """

    def __init__(self, graph: Graph, subplans: tuple[Graph, ...] | None = None) -> None:
        self.source = graph
        self.builder = GraphBuilder(graph.name, graph.dims)
        self.builder.subplans = list(graph.subplans if subplans is None else subplans)
        self._map: dict[int, Value] = {}
        for port in graph.inputs:
            self._map[port.value.index] = self.builder.input(port.name, port.value.type, port.role, port.path)
        for constant in graph.constants:
            self._map[constant.value.index] = self.builder.constant(constant.value.type, constant.digest)

    def __call__(self, value: Value) -> Value:
        """The new value that stands for an old one."""
        return self._map[value.index]

    def operands(self, node: Node) -> tuple[Operand, ...]:
        """The node's operands as new values."""
        return tuple(map_operand(operand, self) for operand in node.operands)

    def copy(self, node: Node) -> tuple[Value, ...]:
        """Append the node as it is, on new values."""
        start = self.builder.next_index
        results = tuple(Value(start + i, r.type) for i, r in enumerate(node.results))
        self.builder.add(Node(node.op, self.operands(node), node.attrs, results, node.loc))
        self.replace(node, results)
        return results

    def add(self, node: Node) -> tuple[Value, ...]:
        """Append a new node, made on new values and numbered from ``builder.next_index``."""
        return self.builder.add(node)

    def replace(self, node: Node, values: tuple[Value, ...]) -> None:
        """Let new ``values`` stand for the node's results."""
        for old, new in zip(node.results, values, strict=True):
            self._map[old.index] = new

    def stand_for(self, old: Value, new: Value) -> None:
        """Let a new value stand for one old one."""
        self._map[old.index] = new

    def finish(self) -> Graph:
        """The new graph, with the source's outputs."""
        for port in self.source.outputs:
            self.builder.output(self(port.value), port.name, port.role, port.path)
        return self.builder.build(self.source.takes, self.source.gives)


def unified(graph: Graph) -> Graph:
    """The graph with every dim that others define written as what it equals, in the types of its inputs.

    It takes the same tensors and does the same with them, and says so without relations between its dims. The
    range of a dim that is gone narrows that of the one dim that it was a line in; other such ranges are gone.
    """
    facts = Facts.of(graph.dims)
    if not facts.definitions:
        return graph
    written = {port.value: Value(port.value.index, facts.type(port.value.type)) for port in graph.inputs}

    def plain(value: Value) -> Value:
        return written.get(value, value)

    return replace(
        graph,
        dims=tuple(
            replace(var, lo=facts.ranges[var.name][0], hi=facts.ranges[var.name][1])
            for var in graph.dims
            if var.equals is None
        ),
        inputs=tuple(replace(port, value=plain(port.value)) for port in graph.inputs),
        nodes=tuple(
            replace(node, operands=tuple(map_operand(operand, plain) for operand in node.operands))
            for node in graph.nodes
        ),
        outputs=tuple(replace(port, value=plain(port.value)) for port in graph.outputs),
    )
