"""Literals as tensors: the data of a constant, from nested lists of numbers to a tensor and back."""

from __future__ import annotations

from typing import Any

import torch

from planc.ir import DType, TensorType
from planc.ir.constants import digest
from planc.text.syntax import Expr, ListOf, Literal, Problem
from planc.text.words import show_number

INLINE = 16
"""Constants of at most this many elements are printed with their data."""


def tensor_of(data: Expr, type: TensorType) -> torch.Tensor:
    """The tensor that nested lists of literals mean.

    Raises:
        Problem: the type has named dims, or the data do not fit it.
    """
    shape = tuple(dim for dim in type.shape if isinstance(dim, int))
    if len(shape) != type.rank:
        raise Problem(f"a constant's type has plain numbers as dims, got {type}", data.at)
    numbers: list[int | float | bool] = []
    _collect(data, shape, type, numbers)
    return torch.tensor(numbers, dtype=type.dtype.torch).reshape(shape)


def _collect(data: Expr, shape: tuple[int, ...], type: TensorType, out: list[int | float | bool]) -> None:
    if not shape:
        out.append(_element(data, type.dtype))
    elif not isinstance(data, ListOf) or len(data.items) != shape[0]:
        got = f"{len(data.items)}" if isinstance(data, ListOf) else "no list"
        raise Problem(f"{type} wants a list of {shape[0]} here, got {got}", data.at)
    else:
        for item in data.items:
            _collect(item, shape[1:], type, out)


def _element(data: Expr, dtype: DType) -> int | float | bool:
    value = data.value if isinstance(data, Literal) else None
    if value is None or isinstance(value, str):
        raise Problem(f"a constant is made of numbers, here of {dtype}", data.at)
    if dtype is DType.BOOL or isinstance(value, bool):
        fits = dtype is DType.BOOL and isinstance(value, bool)
    elif dtype.is_floating:
        fits = True
    else:
        limits = torch.iinfo(dtype.torch)
        fits = isinstance(value, int) and limits.min <= value <= limits.max
    if not fits:
        raise Problem(f"{show_number(value)} is not of {dtype}", data.at, _hint(dtype))
    return value


def _hint(dtype: DType) -> str:
    if dtype is DType.BOOL:
        return "write true or false"
    if dtype.is_floating:
        return ""
    limits = torch.iinfo(dtype.torch)
    return f"{dtype} holds integers from {limits.min} to {limits.max}"


def show_tensor(tensor: torch.Tensor, name: str) -> str | None:
    """The literal that means ``tensor`` exactly, or None where it is large or has no literal.

    Args:
        tensor: the data.
        name: their digest, which the literal must have again.
    """
    size = 1
    for dim in tensor.shape:
        size *= max(dim, 1)
    if size > INLINE or tensor.dim() > INLINE:
        return None
    if tensor.is_floating_point() and bool(tensor.isnan().any()):
        return None  # there are many NaNs, and the language has one
    nested: Any = tensor.detach().cpu().tolist()
    again = torch.tensor(nested, dtype=tensor.dtype).reshape(tensor.shape)
    return _show(nested) if digest(again) == name else None


def _show(nested: Any) -> str:
    if isinstance(nested, list):
        return f"[{', '.join(_show(item) for item in nested)}]"
    return show_number(nested)
