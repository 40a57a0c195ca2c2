"""Copy one graph's nodes into another that is being built: how plans are composed without a ``call``."""

from __future__ import annotations

from collections.abc import Sequence

from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.graph import Graph, Node, Value


def inline(builder: GraphBuilder, graph: Graph, inputs: Sequence[Value]) -> list[Value]:
    """Append the graph's nodes on ``inputs``; returns what its outputs have become.

    The input types and dim names must be the builder's own already: nothing is renamed. The graph's constants
    must have been declared in the builder; its subplans are added to it.
    """
    values = {port.value.index: value for port, value in zip(graph.inputs, inputs, strict=True)}
    declared = {constant.digest: constant.value for constant in builder.constants}
    for constant in graph.constants:
        values[constant.value.index] = declared[constant.digest]
    shifted = [builder.subplan(sub) for sub in graph.subplans]
    for node in graph.nodes:
        start = builder.next_index
        results = tuple(Value(start + i, r.type) for i, r in enumerate(node.results))
        operands = tuple(map_operand(operand, lambda v: values[v.index]) for operand in node.operands)
        attrs = node.attrs
        if node.op in ("call", "scan"):
            attrs = tuple(
                (k, shifted[v] if k in ("plan", "body") and isinstance(v, int) else v) for k, v in attrs
            )
        builder.add(Node(node.op, operands, attrs, results, node.loc))
        values.update({old.index: new for old, new in zip(node.results, results, strict=True)})
    return [values[port.value.index] for port in graph.outputs]
