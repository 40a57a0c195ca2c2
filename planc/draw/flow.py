"""Which inputs of a graph each of its outputs is computed from. By dataflow alone: what could flow counts."""

from __future__ import annotations

from planc.ir import Graph, Node
from planc.ops.structured import scan_operands, subplan_of


def flow_of(graph: Graph) -> list[list[int]]:
    """The positions of the inputs that flow into each output, in order.

    Exact through ``call`` and ``scan``; any other op is taken to mix all its operands into all its results.
    """
    masks = _masks(graph, {})
    return [[i for i in range(len(graph.inputs)) if mask >> i & 1] for mask in masks]


def _masks(graph: Graph, known: dict[int, list[int]]) -> list[int]:
    """A bit an input, for each output. ``known`` keeps those of subplans, by identity."""
    if id(graph) in known:
        return known[id(graph)]
    flow = {port.value.index: 1 << i for i, port in enumerate(graph.inputs)}
    flow |= {constant.value.index: 0 for constant in graph.constants}
    for node in graph.nodes:
        given = [flow[value.index] for value in node.values()]
        for value, mask in zip(node.results, _results(graph, node, given, known), strict=True):
            flow[value.index] = mask
    known[id(graph)] = [flow[port.value.index] for port in graph.outputs]
    return known[id(graph)]


def _results(graph: Graph, node: Node, given: list[int], known: dict[int, list[int]]) -> list[int]:
    if node.op == "call":
        return [_through(mask, given) for mask in _masks(subplan_of(graph, node), known)]
    if node.op == "scan":
        below = _masks(subplan_of(graph, node), known)
        carried = len(scan_operands(node)[0])
        while True:
            # What one trip puts into the carry, the next trip reads.
            after = [_through(mask, given) for mask in below]
            carry = [before | new for before, new in zip(given[:carried], after[:carried], strict=True)]
            if carry == given[:carried]:
                return [*carry, *after[carried:]]
            given = [*carry, *given[carried:]]
    mixed = 0
    for mask in given:
        mixed |= mask
    return [mixed] * len(node.results)


def _through(mask: int, given: list[int]) -> int:
    """What flows in where a subplan's output reads the inputs of ``mask``."""
    out = 0
    for i, flowing in enumerate(given):
        if mask >> i & 1:
            out |= flowing
    return out


__all__ = ["flow_of"]
