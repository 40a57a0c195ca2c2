"""Convolution, pooling, padding and normalisation, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, Shape, TensorType
from planc.ir.dims import product
from planc.ops.rules import pair, show_shape, want_equal, want_rank, want_same_dtype, want_shape, window
from planc.ops.schema import Bool, Bools, Dims, Float, Int, Ints, OptInt, OptInts, OptTensor, Tensor
from planc.ops.table import op

aten = torch.ops.aten
Types = tuple[TensorType, ...]


def _masked(run: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """``run`` without the results that its ``output_mask`` leaves out, which ATen returns as None."""

    def masked(*operands: Any, output_mask: Sequence[bool], **attrs: Any) -> tuple[torch.Tensor, ...]:
        results = run(*operands, output_mask=list(output_mask), **attrs)
        return tuple(r for r, wanted in zip(results, output_mask, strict=True) if wanted)

    return masked


def _wanted(types: Types, output_mask: Sequence[bool]) -> Types:
    if len(output_mask) != len(types) or not any(output_mask):
        raise TypeCheckError(f"output_mask must have {len(types)} entries, one at least true, got {list(output_mask)}")
    return tuple(t for t, wanted in zip(types, output_mask, strict=True) if wanted)


# -- convolution ------------------------------------------------------------------------------------------------


def _convolution_flops(operands: tuple[Any, ...], attrs: Any, results: Types) -> Dim:
    weight = operands[1]
    moved = operands[0] if attrs["transposed"] else results[0]
    return product(moved.shape) * product(weight.shape[1:]) * 2


def _convolution_backward_flops(operands: tuple[Any, ...], attrs: Any, _results: Types) -> Dim:
    grad, x, weight = operands
    moved = x if attrs["transposed"] else grad
    return product(moved.shape) * product(weight.shape[1:]) * 2 * sum(attrs["output_mask"][:2])


def convolved(
    x: TensorType,
    weight: TensorType,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Shape:
    """The shape of a convolution's result.

    Raises:
        TypeCheckError: ranks, channels or groups do not fit.
    """
    want_rank("the weight", weight, 3, 4, 5)
    want_rank("the input", x, weight.rank)
    want_same_dtype("input and weight", x, weight)
    n = weight.rank - 2
    stride, padding = pair(stride, n, "stride"), pair(padding, n, "padding")
    dilation, output_padding = pair(dilation, n, "dilation"), pair(output_padding, n, "output_padding")
    if groups < 1:
        raise TypeCheckError(f"groups must be at least 1, got {groups}")
    kernel = weight.shape[2:]
    if not all(isinstance(k, int) for k in kernel):
        raise TypeCheckError(f"the kernel of {weight} must have a fixed size")
    sizes: list[Dim] = []
    for d, k, s, p, g, extra in zip(x.shape[2:], kernel, stride, padding, dilation, output_padding, strict=True):
        assert isinstance(k, int)
        if transposed:
            sizes.append((d - 1) * s - 2 * p + g * (k - 1) + extra + 1)
        else:
            sizes.append(window(d, k, s, p, g))
    if transposed:
        want_equal(f"channels of {x} and of the weight {weight}", x.shape[1], weight.shape[0])
        return (x.shape[0], weight.shape[1] * groups, *sizes)
    want_equal(f"channels of {x} and channels times groups of the weight {weight}", x.shape[1], weight.shape[1] * groups)
    return (x.shape[0], weight.shape[0], *sizes)


def _convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool = False,
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
) -> torch.Tensor:
    return torch.convolution(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )


@op("aten.convolution", _convolution, flops=_convolution_flops)
def convolution(
    input: Tensor,
    weight: Tensor,
    bias: OptTensor,
    *,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: Bool = False,
    output_padding: Ints = (0,),
    groups: Int = 1,
) -> TensorType:
    """N-dimensional convolution of [batch, channels, ...], plain or transposed."""
    shape = convolved(input, weight, stride, padding, dilation, transposed, output_padding, groups)
    if bias is not None:
        want_shape("bias", bias, (shape[1],))
    return TensorType(input.dtype, shape)


@op("aten.convolution_backward", _masked(aten.convolution_backward.default), flops=_convolution_backward_flops)
def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    bias_sizes: OptInts,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: Bool,
    output_padding: Ints,
    groups: Int,
    output_mask: Bools,
) -> Types:
    """Gradients by input, weight and bias; only those that ``output_mask`` wants are results."""
    shape = convolved(input, weight, stride, padding, dilation, transposed, output_padding, groups)
    want_shape("grad_output", grad_output, shape)
    return _wanted((input, weight, TensorType(weight.dtype, (shape[1],))), output_mask)


# -- pooling ----------------------------------------------------------------------------------------------------


def _pooled(
    x: TensorType,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    n: int,
) -> Shape:
    want_rank("the input", x, n + 1, n + 2)
    kernel = pair(kernel_size, n, "kernel_size")
    steps = pair(stride, n, "stride") if stride else kernel
    padding, dilation = pair(padding, n, "padding"), pair(dilation, n, "dilation")
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise TypeCheckError(f"padding {list(padding)} is more than half of the kernel {list(kernel)}")
    sizes = [
        window(d, k, s, p, g, ceil_mode)
        for d, k, s, p, g in zip(x.shape[-n:], kernel, steps, padding, dilation, strict=True)
    ]
    return (*x.shape[:-n], *sizes)


@op("aten.max_pool2d_with_indices", aten.max_pool2d_with_indices.default)
def max_pool2d_with_indices(
    self: Tensor,
    *,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    ceil_mode: Bool = False,
) -> tuple[TensorType, TensorType]:
    """The maximum of each window and its position in the flattened image (i64)."""
    shape = _pooled(self, kernel_size, stride, padding, dilation, ceil_mode, 2)
    return TensorType(self.dtype, shape), TensorType(DType.I64, shape)


def _max_pool2d_backward(
    grad_output: torch.Tensor, self: torch.Tensor, indices: torch.Tensor, **attrs: Any
) -> torch.Tensor:
    return aten.max_pool2d_with_indices_backward.default(grad_output, self, indices=indices, **attrs)


@op("aten.max_pool2d_with_indices_backward", _max_pool2d_backward)
def max_pool2d_with_indices_backward(
    grad_output: Tensor,
    self: Tensor,
    indices: Tensor,
    *,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: Bool,
) -> TensorType:
    shape = _pooled(self, kernel_size, stride, padding, dilation, ceil_mode, 2)
    want_shape("grad_output", grad_output, shape)
    want_shape("indices", indices, shape)
    return self


@op("aten.avg_pool2d", aten.avg_pool2d.default)
def avg_pool2d(
    self: Tensor,
    *,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    ceil_mode: Bool = False,
    count_include_pad: Bool = True,
    divisor_override: OptInt = None,
) -> TensorType:
    return TensorType(self.dtype, _pooled(self, kernel_size, stride, padding, (1,), ceil_mode, 2))


@op("aten.avg_pool2d_backward", aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    grad_output: Tensor,
    self: Tensor,
    *,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: Bool,
    count_include_pad: Bool,
    divisor_override: OptInt,
) -> TensorType:
    want_shape("grad_output", grad_output, _pooled(self, kernel_size, stride, padding, (1,), ceil_mode, 2))
    return self


@op("aten.adaptive_avg_pool2d", aten._adaptive_avg_pool2d.default, targets=("aten._adaptive_avg_pool2d.default",))
def adaptive_avg_pool2d(self: Tensor, *, output_size: Dims) -> TensorType:
    want_rank("the input", self, 3, 4)
    if len(output_size) != 2:
        raise TypeCheckError(f"output_size must have 2 entries, got {show_shape(output_size)}")
    return TensorType(self.dtype, (*self.shape[:-2], *output_size))


@op(
    "aten.adaptive_avg_pool2d_backward",
    aten._adaptive_avg_pool2d_backward.default,
    targets=("aten._adaptive_avg_pool2d_backward.default",),
)
def adaptive_avg_pool2d_backward(grad_output: Tensor, self: Tensor) -> TensorType:
    want_rank("the input", self, 3, 4)
    want_equal("ranks of gradient and input", grad_output.rank, self.rank)
    return self


# -- normalisation ----------------------------------------------------------------------------------------------


def _norm_flops(operands: tuple[Any, ...], _attrs: Any, _results: Types) -> Dim:
    return operands[0].numel * 8


def _channel(what: str, t: TensorType | None, x: TensorType) -> None:
    want_rank("the input", x, *range(2, 65))
    if t is not None:
        want_shape(what, t, (x.shape[1],))


def _statistics(x: TensorType, shape: Shape) -> TensorType:
    wide = DType.F32 if x.dtype in (DType.F16, DType.BF16) else x.dtype
    return TensorType(wide, shape)


@op(
    "aten.batch_norm",
    aten._native_batch_norm_legit_functional.default,
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
    for what, t in {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}.items():
        _channel(what, t, input)
    saved = _statistics(input, (input.shape[1],) if training else (0,))
    return input, saved, saved, running_mean, running_var


def _batch_norm_eval(
    input: torch.Tensor, weight: Any, bias: Any, mean: torch.Tensor, var: torch.Tensor, momentum: float, eps: float
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
    for what, t in {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}.items():
        _channel(what, t, input)
    empty = _statistics(input, (0,))
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
    _channel("weight", weight, input)
    _channel("bias", bias, input)
    saved = _statistics(input, (input.shape[1],))
    return input, saved, saved


@op("aten.native_batch_norm_backward", _masked(aten.native_batch_norm_backward.default), flops=_norm_flops)
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
    want_shape("grad_out", grad_out, input.shape)
    _channel("weight", weight, input)
    channel = weight or TensorType(input.dtype, (input.shape[1],))
    return _wanted((input, channel, channel), output_mask)


def _layer_shapes(x: TensorType, normalized_shape: Sequence[Dim]) -> tuple[Shape, Shape]:
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
    saved = _statistics(input, outer)
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


@op("aten.native_layer_norm_backward", _masked(_layer_norm_backward), flops=_norm_flops)
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
    inner, _outer = _layer_shapes(input, normalized_shape)
    want_shape("grad_out", grad_out, input.shape)
    return _wanted((input, TensorType(input.dtype, inner), TensorType(input.dtype, inner)), output_mask)
