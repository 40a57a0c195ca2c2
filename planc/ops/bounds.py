"""Checks of data before an op runs on an accelerator: indices, classes and probabilities within their bounds.

On the CPU torch's kernels check for themselves. On CUDA they end in an assertion on the device, after which
nothing in the process can use it any more. So they are kept from bad data; a check waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from planc.ops.guards import check_classes, check_positions, is_vouched

Operands = Sequence[Any]
Attrs = Mapping[str, Any]


def unchecked(device: torch.device) -> bool:
    """Whether kernels of this device trust their data."""
    return device.type != "cpu"


def check_bounds(op: str, operands: Operands, attrs: Attrs) -> None:
    """Check the data of an op's operands, given as its callable takes them.

    Raises:
        IndexError: an index or a class is outside of what it chooses from.
        ValueError: a probability is not in 0..1.
    """
    rule = _RULES.get(op)
    if rule is not None and not is_vouched():
        rule.check(operands, attrs)


def has_bounds(op: str) -> bool:
    """Whether there is anything to check for an op."""
    return op in _RULES


def looked_at(op: str) -> int | None:
    """The position of the operand whose data is checked, here or by the op's callable; None where none is.

    Of the other operands, shapes are enough for `check_ahead`.
    """
    rule = _RULES.get(op) or _OWN.get(op)
    return None if rule is None else rule.position


def check_ahead(op: str, operands: Operands, attrs: Attrs) -> None:
    """As `check_bounds`, for an op that `looked_at` knows; also where its callable does the checking."""
    (_RULES.get(op) or _OWN[op]).check(operands, attrs)


def guarded(op: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """An op's callable behind its check."""

    def checked(*operands: Any, **attrs: Any) -> Any:
        check_bounds(op, operands, attrs)
        return run(*operands, **attrs)

    return checked


def _along(operands: Operands, attrs: Attrs) -> None:
    """The second operand chooses along a dim of the first."""
    x, index = operands[:2]
    check_positions(index, x.shape[attrs["dim"]] if x.dim() else 1)


def _each(operands: Operands, _attrs: Attrs) -> None:
    """Indices of the first dims; negative ones count from the end. Masks choose what is there."""
    x, indices = operands[:2]
    dim = 0
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            if index is not None and index.numel():
                size = x.shape[dim]
                low, high = (int(bound) for bound in index.aminmax())
                if low < -size or high >= size:
                    wrong = low if low < -size else high
                    raise IndexError(f"indices must be in {-size}..{size - 1}, got {wrong}")
            dim += 1
        else:
            dim += index.dim()


def _words(operands: Operands, _attrs: Attrs) -> None:
    check_positions(operands[1], operands[0].shape[0])


def _words_backward(operands: Operands, attrs: Attrs) -> None:
    check_positions(operands[1], attrs["num_weights"])


def _places(operands: Operands, attrs: Attrs) -> None:
    check_positions(operands[1], math.prod(attrs["output_size"]))


def _probabilities(operands: Operands, _attrs: Attrs) -> None:
    x = operands[0]
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("probabilities must be in 0..1")


class _Rule(NamedTuple):
    check: Callable[[Operands, Attrs], None]
    position: int
    """Of the operand whose data it looks at."""


def _classes(scores: int) -> _Rule:
    """The classes that the operand after ``scores`` names."""

    def check(operands: Operands, attrs: Attrs) -> None:
        x, target = operands[scores : scores + 2]
        check_classes(target, x.shape[min(1, x.dim() - 1)], attrs.get("ignore_index", -100))

    return _Rule(check, scores + 1)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        [f"aten.{op}" for op in ("index_select", "gather", "scatter", "scatter_add", "index_add")],
        _Rule(_along, 1),
    ),
    "aten.index": _Rule(_each, 1),
    "aten.index_put": _Rule(_each, 1),
    "aten.embedding": _Rule(_words, 1),
    "aten.embedding_dense_backward": _Rule(_words_backward, 1),
    "aten.nll_loss_forward": _classes(0),
    "aten.nll_loss_backward": _classes(1),
    "aten.nll_loss2d_forward": _classes(0),
    "fused.cross_entropy": _classes(0),
    "aten.max_unpool2d": _Rule(_places, 1),
    "aten.binary_cross_entropy": _Rule(_probabilities, 0),
}
_OWN = {"aten.nll_loss2d_backward": _classes(1), "fused.cross_entropy_backward": _classes(1)}
"""What callables of the table check themselves, on every device."""

__all__ = ["check_ahead", "check_bounds", "guarded", "has_bounds", "looked_at", "unchecked"]
