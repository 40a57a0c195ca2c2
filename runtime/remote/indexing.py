"""``x[...]`` as op-table nodes: numbers, slices, None, Ellipsis and integer tensors, as torch reads them.

What is not among these (masks, lists) is left to capture.
"""

from __future__ import annotations

from typing import Any

from planc.errors import InputError
from planc.ir import DType, Node, TensorType, Value
from planc.ops import node


def index_nodes(value: Value, index: Any, first_index: int) -> tuple[list[Node], Value] | None:
    """The nodes of ``value[index]`` and the result, which is ``value`` where there is nothing to do.

    Values in ``index`` stand for tensors.

    Returns:
        None where the index holds something else, or numbers beside tensors.

    Raises:
        InputError: a number out of range, or more indices than dims.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(
        item is None or item is ... or _is_int(item) or isinstance(item, (slice, Value)) for item in items
    ):
        return None
    gathers = any(isinstance(item, Value) for item in items)
    if gathers and not _plain(items):
        return None
    items = _expand(items, value.type)
    taken = _Taken(value, first_index)
    for item in items:
        taken.take(item)
    if gathers:
        taken.gather([item if isinstance(item, Value) else None for item in items])
    return taken.nodes, taken.value


class _Taken:
    """A value while its dims are indexed one after the other."""

    def __init__(self, value: Value, first_index: int) -> None:
        self.value = value
        self.nodes: list[Node] = []
        self._first = first_index
        self._dim = 0
        self._taken = 0  # dims of the original

    def take(self, item: Any) -> None:
        """Index the next dim, or put one in."""
        if item is None:
            self._add("aten.unsqueeze", {"dim": self._dim})
            self._dim += 1
            return
        size = self.value.type.at({})[self._dim]
        if isinstance(item, slice):
            start, stop, step = item.indices(size)
            if step < 1:
                raise InputError(f"the step of a slice must be at least 1, got {item.step}")
            if (start, stop, step) != (0, size, 1):
                stop = max(start, stop)
                self._add("aten.slice", {"dim": self._dim, "start": start, "end": stop, "step": step})
            self._dim += 1
        elif isinstance(item, Value):
            self._dim += 1
        else:
            if not -size <= item < size:
                raise InputError(f"index {item} is out of range for dim {self._taken} of size {size}")
            self._add("aten.select", {"dim": self._dim, "index": item % size})
        self._taken += 1

    def gather(self, indices: list[Value | None]) -> None:
        """Index by tensors, each at its place."""
        last = max(i for i, item in enumerate(indices) if item is not None)
        self._add("aten.index", {}, tuple(indices[: last + 1]))

    def _add(self, op: str, attrs: dict[str, Any], *operands: Any) -> None:
        made = node(op, (self.value, *operands), attrs, self._first + len(self.nodes))
        self.nodes.append(made)
        (self.value,) = made.results


def _expand(items: list[Any], type: TensorType) -> list[Any]:
    """The items with an Ellipsis (one at the end, where there is none) replaced by whole slices."""
    used = sum(item is not None and item is not ... for item in items)
    if used > type.rank:
        raise InputError(f"too many indices: {used} for {type}")
    at = next((i for i, item in enumerate(items) if item is ...), len(items))
    rest = items[at + 1 :]
    if ... in [item for item in rest if not isinstance(item, Value)]:
        raise InputError("an index can have one Ellipsis only")
    return [*items[:at], *[slice(None)] * (type.rank - used), *rest]


def _plain(items: list[Any]) -> bool:
    """Whether tensors stand beside whole dims only, and are no masks."""
    return all(
        item is ...
        or isinstance(item, slice)
        or (isinstance(item, Value) and item.type.dtype is not DType.BOOL)
        for item in items
    )


def _is_int(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)
