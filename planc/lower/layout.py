"""How a value lies in memory: its strides, whether it fills its memory, whether it is a view. Data only."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """How a value lies in memory."""

    strides: tuple[int, ...]
    dense: bool
    """Its elements fill its memory, each its own place."""
    shared: bool
    """It is a view of the first operand of its node."""
    device: torch.device


Layouts = dict[int, Layout | None]
"""By a value's number; None where it was not always the same."""


def layout_of(tensor: torch.Tensor, base: torch.Tensor | None = None) -> Layout:
    """A tensor's layout; ``base`` is what it may be a view of."""
    memory = tensor.untyped_storage()
    dense = memory.nbytes() == tensor.numel() * tensor.itemsize and _fills(tensor)
    shared = (
        base is not None and tensor.numel() > 0 and memory.data_ptr() == base.untyped_storage().data_ptr()
    )
    return Layout(tensor.stride(), dense, shared, tensor.device)


def note(layouts: Layouts, index: int, layout: Layout | None) -> None:
    """Keep a value's layout; one that differs from before makes it unknown."""
    layouts[index] = layout if layouts.get(index, layout) == layout else None


def _fills(tensor: torch.Tensor) -> bool:
    """Whether the elements are those of a contiguous block, in whatever order of dims."""
    reached = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    ):
        if stride != reached:
            return False
        reached *= size
    return tensor.numel() > 0


__all__ = ["Layout", "Layouts", "layout_of", "note"]
