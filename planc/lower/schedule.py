"""The order of a graph's calls: large results come late where that lowers the peak of memory.

A gradient of weights is often larger than what it is computed from, and waits long for the optimizer. Calls
are pure, so any order that makes operands first gives the same bits. It runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from planc.ir import Graph, Value
from planc.lower.calls import Call
from planc.lower.liveness import memory_ends, roots
from planc.ops import Trait

MANY = 2**23
"""Bytes that a graph has to make for its order to matter; a smaller one keeps its own."""
_LARGE = 2**16
"""Bytes of the smallest result that is moved."""

Sizes = Mapping[int, int]
"""Bytes of each value that calls allocate, by its number; views, inputs and constants have none."""


def scheduled(graph: Graph, calls: Sequence[Call], bindings: Mapping[str, int]) -> tuple[Call, ...]:
    """The calls in the order in which to run them."""
    root = roots(graph, calls, {})
    sizes = {
        result.index: math.prod(result.type.at(bindings)) * result.type.dtype.itemsize
        for call in calls
        for result in call.results
        if root[result.index] == result.index
    }
    if sum(sizes.values()) < MANY:
        return tuple(calls)
    later = _sunk(graph, calls, root, sizes)
    better = peak(graph, later, root, sizes) < peak(graph, calls, root, sizes)
    return tuple(later if better else calls)


def peak(graph: Graph, calls: Sequence[Call], root: Mapping[int, int], sizes: Sizes) -> int:
    """The most bytes that results take at once, where elementwise results lie in operands that die."""
    ends = memory_ends(graph, calls, root)
    live = most = 0
    for number, call in enumerate(calls):
        dying = {root[v.index] for v in call.values() if ends[root[v.index]] == number}
        made = sum(sizes.get(result.index, 0) for result in call.results)
        over = call.has(Trait.ELEMENTWISE) and any(sizes.get(r, 0) == made for r in dying)
        live += made
        most = max(most, live - made if over else live)
        ended = dying | {r.index for r in call.results if ends[root[r.index]] == number}
        live -= sum(sizes.get(r, 0) for r in ended)
    return most


def _sunk(graph: Graph, calls: Sequence[Call], root: Mapping[int, int], sizes: Sizes) -> list[Call]:
    """Each large result behind what it waits for, unless its operands, which wait too then, are larger."""
    order = list(calls)
    for call in reversed(calls):
        if not _movable(call, sizes):
            continue
        (result,) = call.results
        start = next(n for n, other in enumerate(order) if other is call)
        reader = next((n for n in range(start + 1, len(order)) if _reads(order[n], result)), len(order))
        if reader == start + 1:
            continue
        needed = {root[port.value.index] for port in graph.outputs}
        needed |= {root[v.index] for other in order[reader:] for v in other.values()}
        waiting = {root[v.index] for v in call.values()} - needed
        if sizes[result.index] > sum(sizes.get(r, 0) for r in waiting):
            order.insert(reader - 1, order.pop(start))
    return order


def _movable(call: Call, sizes: Sizes) -> bool:
    return (
        call.definition is not None
        and not call.has(Trait.OPTIMIZER)
        and len(call.results) == 1
        and sizes.get(call.results[0].index, -1) >= _LARGE
    )


def _reads(call: Call, value: Value) -> bool:
    return any(v.index == value.index for v in call.values())


__all__ = ["MANY", "peak", "scheduled"]
