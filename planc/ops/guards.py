"""Checks at run time of what some of torch's kernels trust: without them, a plan's data could write anywhere.

Inference cannot see values, nor sizes that depend on dims; kernels not named here check for themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

_FAR = 1e9


class _Vouching(threading.local):
    on = False


_vouching = _Vouching()


@contextmanager
def vouched() -> Generator[None]:
    """Let this thread's data pass `check_classes` and `planc.ops.bounds`: somebody has them checked."""
    before, _vouching.on = _vouching.on, True
    try:
        yield
    finally:
        _vouching.on = before


def is_vouched() -> bool:
    """Whether somebody vouches for the data."""
    return _vouching.on


def check_positions(indices: torch.Tensor, below: int) -> None:
    """Check that every index is in 0..below-1.

    Raises:
        IndexError: one is not.
    """
    if indices.numel():
        low, high = (int(bound) for bound in indices.aminmax())
        if low < 0 or high >= below:
            raise IndexError(f"indices must be in 0..{below - 1}, got {low if low < 0 else high}")


def check_classes(target: torch.Tensor, classes: int, ignored: int) -> None:
    """Check that every class number is in 0..classes-1, or the one that is ignored.

    Raises:
        IndexError: one is not.
    """
    if _vouching.on:
        return
    wrong = ((target < 0) | (target >= classes)) & (target != ignored)
    if bool(wrong.any()):
        raise IndexError(f"targets must be in 0..{classes - 1}, got {int(target[wrong][0])}")


def check_filled(*tensors: torch.Tensor) -> None:
    """Check that no tensor is empty.

    Raises:
        ValueError: one is.
    """
    for tensor in tensors:
        if not tensor.numel():
            raise ValueError(f"an operand of shape {list(tensor.shape)} has no elements")


def check_coordinates(grid: torch.Tensor) -> None:
    """Check that every coordinate is a number, and not so large that scaling it overflows.

    Raises:
        ValueError: one is not.
    """
    if grid.numel() and not bool((grid.abs() <= _FAR).all()):
        raise ValueError(f"coordinates must be numbers in -{_FAR:g}..{_FAR:g}")
