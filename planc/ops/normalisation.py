"""Batch, layer and group normalisation, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, Shape, TensorType
from planc.ir.dims import product, show
from planc.ops.masks import Types, masked, wanted
from planc.ops.rules import show_shape, want_elements, want_floating, want_rank, want_shape
from planc.ops.schema import Bool, Bools, DimAttr, Dims, Float, Int, OptTensor, Tensor
from planc.ops.table import op

aten = torch.ops.aten


def _norm_flops(operands: tuple[Any, ...], _attrs: Any, _results: Types) -> Dim:
    return operands[0].numel * 8


def _channel(what: str, t: TensorType | None, x: TensorType) -> None:
    want_rank("the input", x, *range(2, 65))
    want_floating("the input", x)
    if t is not None:
        want_shape(what, t, (x.shape[1],))
        _want_parameter(what, t, x)


def _want_parameter(what: str, t: TensorType, x: TensorType) -> None:
    """Half-precision inputs may have parameters of single precision."""
    if t.dtype not in (x.dtype, _wide(x)):
        raise TypeCheckError(f"{what} must have the dtype of the input {x}, got {t}")


def _statistics(x: TensorType, shape: Shape, *parameters: TensorType | None) -> TensorType:
    """Statistics have the dtype of the parameters where there are some, else the input's (on CPUs)."""
    given = [t.dtype for t in parameters if t is not None]
    return TensorType(given[0] if given else x.dtype, shape)


def _wide(x: TensorType) -> DType:
    """What is summed in: single precision for half-precision elements."""
    return DType.F32 if x.dtype in (DType.F16, DType.BF16) else x.dtype


def _batch_norm(
    input: torch.Tensor,
    weight: Any,
    bias: Any,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    # As torch.nn.functional.batch_norm does before it calls this: one value has no variance, and the kernel
    # would make the running one NaN without a word.
    if training and input.numel() == input.shape[1]:
        raise ValueError(f"expected more than 1 value per channel when training, got {list(input.shape)}")
    return aten._native_batch_norm_legit_functional.default(
        input, weight, bias, running_mean, running_var, training, momentum, eps
    )


@op(
    "aten.batch_norm",
    _batch_norm,
    flops=_norm_flops,
    targets=("aten._native_batch_norm_legit_functional.default",),
)
def batch_norm(
    input: Tensor,
    weight: OptTensor,
    bias: OptTensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: Bool,
    momentum: Float,
    eps: Float,
) -> Types:
    """Normalised input; saved mean and reciprocal deviation; updated running mean and variance."""
    for what, t in {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }.items():
        _channel(what, t, input)
    saved = _statistics(input, (input.shape[1],) if training else (0,), weight, bias, running_mean)
    return input, saved, saved, running_mean, running_var


def _batch_norm_eval(
    input: torch.Tensor,
    weight: Any,
    bias: Any,
    mean: torch.Tensor,
    var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    return aten._native_batch_norm_legit_no_training.default(input, weight, bias, mean, var, momentum, eps)


@op(
    "aten.batch_norm_eval",
    _batch_norm_eval,
    flops=_norm_flops,
    targets=("aten._native_batch_norm_legit_no_training.default",),
)
def batch_norm_eval(
    input: Tensor,
    weight: OptTensor,
    bias: OptTensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    momentum: Float,
    eps: Float,
) -> Types:
    """Input normalised by the running statistics; two empty results stand where training saves its own."""
    for what, t in {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }.items():
        _channel(what, t, input)
    empty = _statistics(input, (0,), weight, bias, running_mean)
    return input, empty, empty


@op(
    "aten.batch_norm_no_stats",
    aten._native_batch_norm_legit.no_stats,
    flops=_norm_flops,
    targets=("aten._native_batch_norm_legit.no_stats",),
)
def batch_norm_no_stats(
    input: Tensor, weight: OptTensor, bias: OptTensor, *, training: Bool, momentum: Float, eps: Float
) -> Types:
    """Batch normalisation without running statistics (InstanceNorm arrives as this)."""
    if not training:
        raise TypeCheckError("without running statistics there is only training")
    want_elements("the input", input)
    _channel("weight", weight, input)
    _channel("bias", bias, input)
    saved = _statistics(input, (input.shape[1],), weight, bias)
    return input, saved, saved


@op("aten.native_batch_norm_backward", masked(aten.native_batch_norm_backward.default), flops=_norm_flops)
def native_batch_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    weight: OptTensor,
    running_mean: OptTensor,
    running_var: OptTensor,
    save_mean: OptTensor,
    save_invstd: OptTensor,
    *,
    train: Bool,
    eps: Float,
    output_mask: Bools,
) -> Types:
    """Gradients by input, weight and bias; only those that ``output_mask`` wants are results."""
    want_floating("gradient and input", grad_out, input)
    want_shape("grad_out", grad_out, input.shape)
    for what, t in {"weight": weight, "running_mean": running_mean, "running_var": running_var}.items():
        _channel(what, t, input)
    used = (save_mean, save_invstd) if train else (running_mean, running_var)
    if any(t is None for t in used):
        raise TypeCheckError("saved statistics are needed where train, running ones where not")
    if train:  # without, they are the empty ones that evaluation returns
        _channel("save_mean", save_mean, input)
        _channel("save_invstd", save_invstd, input)
    channel = weight or TensorType(input.dtype, (input.shape[1],))
    return wanted((input, channel, channel), output_mask)


def _group_statistics(
    x: TensorType, N: Dim, C: Dim, HxW: Dim, group: int, *parameters: TensorType | None
) -> TensorType:
    want_rank("the input", x, *range(2, 65))
    want_elements("the input", x)
    if x.shape[:2] != (N, C) or product(x.shape[2:]) != HxW:
        raise TypeCheckError(f"N, C and HxW must be those of {x}, got {show_shape((N, C, HxW))}")
    if group < 1 or C % group != 0:
        raise TypeCheckError(f"{show(C)} channels do not make {group} groups")
    return _statistics(x, (N, group), *parameters)


@op("aten.native_group_norm", aten.native_group_norm.default, flops=_norm_flops)
def native_group_norm(
    input: Tensor,
    weight: OptTensor,
    bias: OptTensor,
    *,
    N: DimAttr,
    C: DimAttr,
    HxW: DimAttr,
    group: Int,
    eps: Float,
) -> Types:
    """Input normalised within groups of channels, mean and reciprocal deviation of each group."""
    _channel("weight", weight, input)
    _channel("bias", bias, input)
    saved = _group_statistics(input, N, C, HxW, group, weight, bias)
    return input, saved, saved


@op("aten.native_group_norm_backward", masked(aten.native_group_norm_backward.default), flops=_norm_flops)
def native_group_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: OptTensor,
    *,
    N: DimAttr,
    C: DimAttr,
    HxW: DimAttr,
    group: Int,
    output_mask: Bools,
) -> Types:
    """Gradients by input, weight and bias; only those that ``output_mask`` wants are results."""
    want_floating("gradient and input", grad_out, input)
    want_shape("grad_out", grad_out, input.shape)
    _channel("weight", weight, input)
    saved = _group_statistics(input, N, C, HxW, group)
    _want_saved(mean, rstd, saved)
    channel = weight or TensorType(input.dtype, (C,))
    return wanted((input, channel, channel), output_mask)


def _want_saved(mean: TensorType, rstd: TensorType, saved: TensorType) -> None:
    want_shape("mean", mean, saved.shape)
    want_shape("rstd", rstd, saved.shape)
    want_floating("mean and rstd", mean, rstd)


def _want_norms(v: TensorType, g: TensorType, dim: int) -> None:
    # ATen's kernel takes the first or last dim; torch.nn.utils decomposes the others itself.
    if dim not in (0, v.rank - 1) or not v.rank:
        raise TypeCheckError(f"dim must be the first or last of {v}, got {dim}")
    want_shape("g", g, tuple(d if i == dim else 1 for i, d in enumerate(v.shape)))
    want_floating("v and g", v, g)
    want_elements("v", v)


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    # torch's kernel takes it for granted that there are no gaps, and reads beyond them.
    return aten._weight_norm_interface.default(v.contiguous(), g.contiguous(), dim)


def _weight_norm_backward(*operands: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return aten._weight_norm_interface_backward.default(*(x.contiguous() for x in operands), dim)


@op(
    "aten.weight_norm",
    _weight_norm,
    flops=_norm_flops,
    targets=("aten._weight_norm_interface.default",),
)
def weight_norm(v: Tensor, g: Tensor, *, dim: Int = 0) -> Types:
    """g * v / norm(v), the norm over every dim but ``dim``; and the norms."""
    _want_norms(v, g, dim)
    return v, TensorType(_wide(g), g.shape)


@op(
    "aten.weight_norm_backward",
    _weight_norm_backward,
    flops=_norm_flops,
    targets=("aten._weight_norm_interface_backward.default",),
)
def weight_norm_backward(
    grad_w: Tensor, saved_v: Tensor, saved_g: Tensor, saved_norms: Tensor, *, dim: Int
) -> Types:
    """Gradients by v and g."""
    _want_norms(saved_v, saved_g, dim)
    want_floating("gradient and v", grad_w, saved_v)
    want_floating("the norms", saved_norms)
    want_shape("grad_w", grad_w, saved_v.shape)
    want_shape("saved_norms", saved_norms, saved_g.shape)
    return saved_v, saved_g


def _layer_shapes(x: TensorType, normalized_shape: Sequence[Dim]) -> tuple[Shape, Shape]:
    want_floating("the input", x)
    n = len(normalized_shape)
    if not n or x.rank < n or x.shape[-n:] != tuple(normalized_shape):
        raise TypeCheckError(f"normalized_shape {show_shape(normalized_shape)} is not the end of {x}")
    return tuple(normalized_shape), (*x.shape[:-n], *(1,) * n)


def _layer_norm(
    input: torch.Tensor, weight: Any, bias: Any, normalized_shape: Sequence[int], eps: float
) -> tuple[torch.Tensor, ...]:
    return aten.native_layer_norm.default(input, list(normalized_shape), weight, bias, eps)


@op("aten.native_layer_norm", _layer_norm, flops=_norm_flops)
def native_layer_norm(
    input: Tensor, weight: OptTensor, bias: OptTensor, *, normalized_shape: Dims, eps: Float
) -> Types:
    """Normalised input, mean and reciprocal deviation."""
    inner, outer = _layer_shapes(input, normalized_shape)
    for what, t in {"weight": weight, "bias": bias}.items():
        if t is not None:
            want_shape(what, t, inner)
            _want_parameter(what, t, input)
    saved = _statistics(input, outer, weight, bias)
    return input, saved, saved


def _layer_norm_backward(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: Any,
    bias: Any,
    normalized_shape: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor, ...]:
    return aten.native_layer_norm_backward.default(
        grad_out, input, list(normalized_shape), mean, rstd, weight, bias, list(output_mask)
    )


@op("aten.native_layer_norm_backward", masked(_layer_norm_backward), flops=_norm_flops)
def native_layer_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: OptTensor,
    bias: OptTensor,
    *,
    normalized_shape: Dims,
    output_mask: Bools,
) -> Types:
    """Gradients by input, weight and bias; only those that ``output_mask`` wants are results."""
    inner, outer = _layer_shapes(input, normalized_shape)
    want_floating("gradient and input", grad_out, input)
    want_shape("grad_out", grad_out, input.shape)
    _want_saved(mean, rstd, _statistics(input, outer))
    for what, t in {"weight": weight, "bias": bias}.items():
        if t is not None:
            want_shape(what, t, inner)
            _want_parameter(what, t, input)
    return wanted((input, TensorType(input.dtype, inner), TensorType(input.dtype, inner)), output_mask)
