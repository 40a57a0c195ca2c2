"""Tensors out of nothing but attributes. Uninitialised memory (``empty``) has no op on purpose."""

from __future__ import annotations

from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import DType, TensorType
from planc.ir.dims import floordiv
from planc.ops.schema import DimAttr, Dims, DTypeAttr, Int, ScalarAttr, Trait
from planc.ops.table import op

_F = Trait.FACTORY


def _full(size: Any, fill_value: Any, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    return torch.full(size, fill_value, dtype=dtype, device=device)


@op("aten.full", _full, _F, targets=())
def full(*, size: Dims, fill_value: ScalarAttr, dtype: DTypeAttr) -> TensorType:
    """One number everywhere. ``zeros``, ``ones``, ``full_like`` and ``scalar_tensor`` import as this."""
    return TensorType(dtype, size)


def _want_numbers(dtype: DType) -> None:
    if dtype is DType.BOOL:
        raise TypeCheckError("a sequence of numbers cannot be of bools")


def _arange(
    end: int, dtype: torch.dtype, start: int = 0, step: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    return torch.arange(start, end, step, dtype=dtype, device=device)


@op("aten.arange", _arange, _F, targets=())
def arange(*, end: DimAttr, dtype: DTypeAttr, start: DimAttr = 0, step: Int = 1) -> TensorType:
    """Integers from ``start`` up to ``end``, excluded."""
    if not 1 <= step < 2**31:
        raise TypeCheckError(f"step must be in 1..{2**31 - 1}, got {step}")
    _want_numbers(dtype)
    length = floordiv(end - start + (step - 1), step)
    if isinstance(length, int) and length < 0:
        raise TypeCheckError(f"start {start} lies beyond end {end}")
    return TensorType(dtype, (length,))


def _linspace(
    start: float, end: float, steps: int, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    return torch.linspace(start, end, steps, dtype=dtype, device=device)


@op("aten.linspace", _linspace, _F, targets=())
def linspace(*, start: ScalarAttr, end: ScalarAttr, steps: DimAttr, dtype: DTypeAttr) -> TensorType:
    """``steps`` numbers from ``start`` to ``end``, both included."""
    _want_numbers(dtype)
    if isinstance(steps, int) and steps < 0:
        raise TypeCheckError(f"steps must be at least 0, got {steps}")
    return TensorType(dtype, (steps,))


def _eye(n: int, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    return torch.eye(n, dtype=dtype, device=device)


@op("aten.eye", _eye, _F, targets=())
def eye(*, n: DimAttr, dtype: DTypeAttr) -> TensorType:
    """The identity matrix."""
    return TensorType(dtype, (n, n))
