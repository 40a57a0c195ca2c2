"""Scaled dot product attention and its gradient: torch's fused kernel on CPUs, its formula elsewhere."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, TensorType
from planc.ops.rules import broadcast, want_equal, want_floating, want_rank, want_shape
from planc.ops.schema import Bool, Float, OptFloat, OptTensor, Tensor
from planc.ops.table import op

aten = torch.ops.aten
_FORWARD = aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _scores(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, scale: float | None
) -> tuple[torch.Tensor, float]:
    """scale * query @ key^T, -inf where hidden: [batch, heads, queries, keys]."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores if mask is None else scores + mask), factor


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by its formula, as the kernel returns it: the output and the log of each softmax's sum."""
    scores, _ = _scores(query, key, mask, is_causal, scale)
    sums = scores.logsumexp(-1)
    weights = (
        (scores - sums.unsqueeze(-1)).exp().nan_to_num(0.0)
    )  # a row with every key hidden attends to none
    return weights @ value, sums


def attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by query, key and value (Dao et al.: FlashAttention, 2022, appendix B)."""
    scores, factor = _scores(query, key, mask, is_causal, scale)
    weights = (scores - sums.unsqueeze(-1)).exp().nan_to_num(0.0)
    by_weights = grad @ value.transpose(-2, -1)
    by_scores = weights * (by_weights - (grad * out).sum(-1, keepdim=True)) * factor
    return by_scores @ key, by_scores.transpose(-2, -1) @ query, weights.transpose(-2, -1) @ grad


T = TypeVar("T", torch.Tensor, torch.Tensor | None)


def _packed(tensor: T) -> T:
    """The tensor with rows without gaps, as torch's kernel takes for granted: it reads beyond others."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if query.is_cpu:
        query, key, value, attn_mask = _packed(query), _packed(key), _packed(value), _packed(attn_mask)
        return _FORWARD(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return attend(query, key, value, attn_mask, is_causal, scale)


def _attention_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if query.is_cpu:
        return _BACKWARD(
            _packed(grad_out),
            _packed(query),
            _packed(key),
            _packed(value),
            _packed(out),
            logsumexp.contiguous(),
            dropout_p,
            is_causal,
            attn_mask=_packed(attn_mask),
            scale=scale,
        )
    return attend_backward(grad_out, query, key, value, out, logsumexp, attn_mask, is_causal, scale)


def _flops(products: int, first: int) -> Any:
    """The cost of so many matrix products; ``first`` is the number of the query among the operands."""

    def flops(operands: tuple[Any, ...], _attrs: Any, _results: Any) -> Dim:
        return operands[first].numel * operands[first + 1].shape[2] * 2 * products

    return flops


def _check(
    query: TensorType, key: TensorType, value: TensorType, mask: TensorType | None, dropout_p: float
) -> tuple[TensorType, TensorType]:
    for what, t in {"query": query, "key": key, "value": value}.items():
        want_rank(what, t, 4)
        want_shape(what, t, (*query.shape[:2], t.shape[2], query.shape[3]))
    want_floating("query, key, value and attn_mask", query, key, value, mask)
    want_equal("the numbers of keys and values", key.shape[2], value.shape[2])
    if dropout_p:
        raise TypeCheckError(f"dropout_p must be 0: a random op takes a key, got {dropout_p}")
    scores = (*query.shape[:3], key.shape[2])
    if mask is not None and (mask.rank not in (2, 4) or broadcast(mask.shape, scores) != scores):
        raise TypeCheckError(
            f"attn_mask must have rank 2 or 4 and broadcast to {TensorType(query.dtype, scores)}, got {mask}"
        )
    wide = DType.F32 if query.dtype in (DType.F16, DType.BF16) else query.dtype
    return query, TensorType(wide, query.shape[:3])


@op(
    "aten.attention",
    _attention,
    flops=_flops(2, 0),
    targets=("aten._scaled_dot_product_flash_attention_for_cpu.default",),
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: OptTensor = None,
    *,
    dropout_p: Float = 0.0,
    is_causal: Bool = False,
    scale: OptFloat = None,
) -> tuple[TensorType, TensorType]:
    """softmax(scale * query @ key^T + attn_mask) @ value; and the log of the softmax's sums, for gradients.

    Operands are [batch, heads, length, size]. ``scale`` None means 1/sqrt(size); ``is_causal`` hides keys
    after the query.
    """
    return _check(query, key, value, attn_mask, dropout_p)


@op(
    "aten.attention_backward",
    _attention_backward,
    flops=_flops(5, 1),
    targets=("aten._scaled_dot_product_flash_attention_for_cpu_backward.default",),
)
def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    attn_mask: OptTensor = None,
    *,
    dropout_p: Float = 0.0,
    is_causal: Bool = False,
    scale: OptFloat = None,
) -> tuple[TensorType, TensorType, TensorType]:
    """Gradients by query, key and value."""
    output, sums = _check(query, key, value, attn_mask, dropout_p)
    want_floating("gradient, query, and output", grad_out, query, out)
    want_floating("logsumexp", logsumexp)
    want_shape("grad_out", grad_out, output.shape)
    want_shape("out", out, output.shape)
    want_shape("logsumexp", logsumexp, sums.shape)
    return query, key, value
