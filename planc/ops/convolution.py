"""Convolution, plain and transposed, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, Shape, TensorType
from planc.ir.dims import product, show
from planc.ops.masks import Types, masked, wanted
from planc.ops.rules import pair, want_equal, want_floating, want_rank, want_same_dtype, want_shape, window
from planc.ops.schema import Bool, Bools, Int, Ints, OptInts, OptTensor, Tensor
from planc.ops.table import op

aten = torch.ops.aten


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
    want_floating("input and weight", x, weight)
    if any(d == 0 for d in (*weight.shape, *x.shape[1:])):
        raise TypeCheckError(f"there is nothing to convolve in {x} by {weight}")
    n = weight.rank - 2
    stride, padding = pair(stride, n, "stride"), pair(padding, n, "padding")
    dilation, output_padding = pair(dilation, n, "dilation"), pair(output_padding, n, "output_padding")
    if groups < 1:
        raise TypeCheckError(f"groups must be at least 1, got {groups}")
    kernel = weight.shape[2:]
    if not all(isinstance(k, int) for k in kernel):
        raise TypeCheckError(f"the kernel of {weight} must have a fixed size")
    sizes: list[Dim] = []
    for d, k, s, p, g, extra in zip(
        x.shape[2:], kernel, stride, padding, dilation, output_padding, strict=True
    ):
        assert isinstance(k, int)
        if s < 1 or p < 0 or g < 1 or extra < 0 or (extra and extra >= max(s, g)):
            raise TypeCheckError(
                f"stride {s}, padding {p}, dilation {g} and output_padding {extra}: strides and dilations "
                "are at least 1, paddings at least 0, output_padding below stride or dilation"
            )
        if transposed:
            sizes.append((d - 1) * s - 2 * p + g * (k - 1) + extra + 1)
        else:
            sizes.append(window(d, k, s, p, g))
    if transposed:
        want_equal(f"channels of {x} and of the weight {weight}", x.shape[1], weight.shape[0])
        if weight.shape[0] % groups != 0:
            raise TypeCheckError(f"{show(weight.shape[0])} channels do not make {groups} groups")
        return (x.shape[0], weight.shape[1] * groups, *sizes)
    if weight.shape[0] % groups != 0:
        raise TypeCheckError(f"{show(weight.shape[0])} channels do not make {groups} groups")
    want_equal(
        f"channels of {x} and channels times groups of the weight {weight}",
        x.shape[1],
        weight.shape[1] * groups,
    )
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
        want_same_dtype("input and bias", input, bias)
    return TensorType(input.dtype, shape)


@op("aten.convolution_backward", masked(aten.convolution_backward.default), flops=_convolution_backward_flops)
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
    want_same_dtype("gradient and input", grad_output, input)
    return wanted((input, weight, TensorType(weight.dtype, (shape[1],))), output_mask)
