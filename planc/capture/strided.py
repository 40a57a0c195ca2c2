"""What ``aten.as_strided`` and its scatter mean where they only rearrange all elements of a tensor.

Plans have no memory layout, so a read by strides is imported as the permutes, views and expands that it comes
to, for every size of the named dims, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from planc.capture.importer import Entry, Importer
from planc.ir import Dim, Value
from planc.ir.dims import evaluate, names, product

_SAMPLE = 1009
"""Any size at which strides sort; what is found is then proved for all sizes."""


def as_strided(importer: Importer, n: torch.fx.Node, args: Mapping[str, Any]) -> Entry:
    """Elements in the order of their memory, read in another layout (pooling to one pixel does that)."""
    size, strides = importer.entry(args["size"]), importer.entry(args["stride"])
    source = _layout(importer, args["self"])
    found = _relaid(importer, importer.entry(args["self"]), source, (size, strides))
    return _checked(importer, n, found, args["storage_offset"])


def as_strided_scatter(importer: Importer, n: torch.fx.Node, args: Mapping[str, Any]) -> Entry:
    """A write to every element in a layout of its own: what is written, read in the layout of the target."""
    size, strides = importer.entry(args["size"]), importer.entry(args["stride"])
    target = _layout(importer, args["self"])
    found = _relaid(importer, importer.entry(args["src"]), (size, strides), target)
    return _checked(importer, n, found, args["storage_offset"])


Layout = tuple[Sequence[Dim], Sequence[Dim]]
"""Sizes and strides."""


def _layout(importer: Importer, n: torch.fx.Node) -> Layout:
    fake = n.meta["val"]
    return [importer.dim(d) for d in fake.shape], [importer.dim(d) for d in fake.stride()]


def _checked(importer: Importer, n: torch.fx.Node, found: Value | None, offset: Any) -> Value:
    if found is None or offset not in (None, 0):
        raise importer.fail(
            n,
            "reads memory by its layout, which plans do not have; use view, permute, expand or slices",
        )
    return found


def _relaid(importer: Importer, value: Value, source: Layout, target: Layout) -> Value | None:
    """``value``, which lies in memory as ``source``, read as ``target``; None if that is no rearrangement."""
    size, strides = target
    if value.type.shape == tuple(size) and all(
        d == 1 or a == b for d, a, b in zip(size, strides, source[1], strict=True)
    ):
        return value
    before, after = _memory_order(*source), _memory_order(*target)
    if before is None or after is None or any(s == 0 for s in source[1]):
        return None
    kept = [size[i] for i in after]
    if product(tuple(kept)) != value.type.numel:
        return None
    rest = [i for i in range(len(size)) if i not in after]
    value = _permuted(importer, value, [*before, *(i for i in range(value.type.rank) if i not in before)])
    shape = (*kept, *(1 for _ in rest))
    value = value if value.type.shape == shape else importer.emit("aten.view", value, size=shape)
    order = [*after, *rest]
    value = _permuted(importer, value, [order.index(i) for i in range(len(order))])
    return value if value.type.shape == tuple(size) else importer.emit("aten.expand", value, size=tuple(size))


def _permuted(importer: Importer, value: Value, order: list[int]) -> Value:
    return value if order == sorted(order) else importer.emit("aten.permute", value, dims=tuple(order))


def _memory_order(size: Sequence[Dim], strides: Sequence[Dim]) -> list[int] | None:
    """The dims that move through memory, outermost first; None unless they fill it without gaps."""
    moving = [i for i in range(len(size)) if size[i] != 1 and strides[i] != 0]
    order = sorted(moving, key=lambda i: _at_sample(strides[i]), reverse=True)
    step: Dim = 1
    for i in reversed(order):
        if strides[i] != step:
            return None
        step = step * size[i]
    return order


def _at_sample(dim: Dim) -> int:
    return evaluate(dim, dict.fromkeys(names(dim), _SAMPLE))
