"""Where values die, whose memory each may lie in, and which outputs need a copy. Pure analysis of calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from planc.ir import Graph
from planc.lower.calls import Call
from planc.lower.layout import Layouts
from planc.ops import Trait


def roots(graph: Graph, calls: Sequence[Call], layouts: Layouts) -> dict[int, int]:
    """For each value, the value whose memory it may be a view of; itself where it has its own.

    A view op whose result was seen to be a copy counts as one.
    """
    root = {port.value.index: port.value.index for port in graph.inputs}
    root |= {constant.value.index: constant.value.index for constant in graph.constants}
    for call in calls:
        base = next(call.values()).index if call.has(Trait.VIEW) else None
        for result in call.results:
            layout = layouts.get(result.index)
            copied = base is None or (layout is not None and not layout.shared)
            root[result.index] = result.index if copied or base is None else root[base]
    return root


def last_reads(graph: Graph, calls: Sequence[Call]) -> dict[int, list[int]]:
    """For each call's number, the values that nothing reads after it.

    A result that nothing reads at all dies at the call that makes it; outputs never die.
    """
    end: dict[int, int] = {}
    for number, call in enumerate(calls):
        for value in (*call.values(), *call.results):
            end[value.index] = number
    for port in graph.outputs:
        end.pop(port.value.index, None)
    out: dict[int, list[int]] = {}
    for value, number in end.items():
        out.setdefault(number, []).append(value)
    return out


def memory_ends(graph: Graph, calls: Sequence[Call], root: Mapping[int, int]) -> dict[int, int]:
    """For each root, the last call that reads its memory; ``len(calls)`` where an output does."""
    end: dict[int, int] = {}
    for number, call in enumerate(calls):
        for value in (*call.values(), *call.results):
            end[root[value.index]] = number
    for port in graph.outputs:
        end[root[port.value.index]] = len(calls)
    return end


def copied_outputs(graph: Graph, root: Mapping[int, int], kept: Collection[int]) -> list[bool]:
    """For each output, whether it must be copied so that it is ordinary memory of its own.

    It must where it is a view, where an earlier output is the same value, and where it is ``kept`` by others:
    an input that the caller keeps, or a constant.
    """
    seen: set[int] = set()
    out: list[bool] = []
    for port in graph.outputs:
        index = port.value.index
        out.append(index in kept or root[index] != index or index in seen)
        seen.add(index)
    return out


__all__ = ["copied_outputs", "last_reads", "memory_ends", "roots"]
