"""Where values die, and which outputs share memory with something else. Pure analysis of a graph."""

from __future__ import annotations

from planc.ir import Graph
from planc.ops import Trait, lookup


def last_uses(graph: Graph) -> dict[int, list[int]]:
    """For each node's number, the values that nothing reads after it.

    A result that nothing reads at all dies at the node that makes it; outputs never die.
    """
    end: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in (*node.values(), *node.results):
            end[value.index] = index
    for port in graph.outputs:
        end.pop(port.value.index, None)
    out: dict[int, list[int]] = {}
    for value, index in end.items():
        out.setdefault(index, []).append(value)
    return out


def roots(graph: Graph) -> dict[int, int]:
    """For each value, the value whose memory it may be a view of; itself where it has its own.

    A ``call`` may return its arguments, so its results count as views of all of them: of value -1.
    """
    root = {port.value.index: port.value.index for port in graph.inputs}
    root |= {constant.value.index: constant.value.index for constant in graph.constants}
    for node in graph.nodes:
        base = None
        if node.op in ("call", "scan"):
            base = -1
        elif lookup(node.op).has(Trait.VIEW):
            base = next(node.values()).index
        for result in node.results:
            root[result.index] = result.index if base is None else base if base < 0 else root[base]
    return root


def shares_memory(graph: Graph) -> list[bool]:
    """For each output, whether it must be copied so that the caller's tensor is ordinary memory of its own.

    It must where it is a view (of an input, a constant, another output, or a value that may be larger or
    strided), or where an earlier output is the same value.
    """
    root = roots(graph)
    seen: set[int] = set()
    out: list[bool] = []
    for port in graph.outputs:
        index = port.value.index
        made_here = any(index == r.index for node in graph.nodes for r in node.results)
        own = made_here and root[index] == index and index not in seen
        out.append(not own)
        seen.add(root[index])
    return out
