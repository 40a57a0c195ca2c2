"""Backward ops that compute only the gradients that are wanted. Rules for them; no ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import TensorType

Types = tuple[TensorType, ...]


def masked(run: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """``run`` without the results that its ``output_mask`` leaves out, which ATen returns as None."""

    def call(*operands: Any, output_mask: Sequence[bool], **attrs: Any) -> tuple[torch.Tensor, ...]:
        results = run(*operands, output_mask=list(output_mask), **attrs)
        return tuple(r for r, kept in zip(results, output_mask, strict=True) if kept)

    return call


def wanted(types: Types, output_mask: Sequence[bool]) -> Types:
    if len(output_mask) != len(types) or not any(output_mask):
        raise TypeCheckError(
            f"output_mask must have {len(types)} entries, one at least true, got {list(output_mask)}"
        )
    return tuple(t for t, kept in zip(types, output_mask, strict=True) if kept)
