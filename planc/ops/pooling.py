"""Pooling over images and volumes, plain and adaptive, and its gradients. In one dim it arrives as in two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, Shape, TensorType
from planc.ir.dims import product
from planc.ops.guards import check_filled, check_positions
from planc.ops.rules import (
    pair,
    show_shape,
    want_elements,
    want_equal,
    want_floating,
    want_rank,
    want_same_dtype,
    want_shape,
    window,
)
from planc.ops.schema import Bool, Dims, Ints, OptInt, Tensor
from planc.ops.table import op

aten = torch.ops.aten


def _want_image(what: str, x: TensorType, n: int) -> None:
    want_rank(what, x, n + 1, n + 2)
    want_floating(what, x)
    want_elements(what, x)


def _want_indices(indices: TensorType, shape: Shape) -> None:
    if indices.dtype is not DType.I64:
        raise TypeCheckError(f"indices must be i64, got {indices}")
    want_shape("indices", indices, shape)


def _pooled(
    x: TensorType,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    n: int,
) -> Shape:
    _want_image("the input", x, n)
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


def _with_indices(overload: Callable[..., Any], n: int) -> Callable[..., Any]:
    """The gradient of max pooling over the last n dims, which trusts its indices."""

    def run(
        grad_output: torch.Tensor, self: torch.Tensor, indices: torch.Tensor, **attrs: Any
    ) -> torch.Tensor:
        check_filled(self)
        check_positions(indices, math.prod(self.shape[-n:]))
        return overload(grad_output, self, indices=indices, **attrs)

    return run


def _of_filled(overload: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of adaptive pooling, which trusts that there is something to pool."""

    def run(grad_output: torch.Tensor, self: torch.Tensor) -> torch.Tensor:
        check_filled(grad_output, self)
        return overload(grad_output, self)

    return run


def _window_flops(operands: tuple[Any, ...], attrs: Any, results: tuple[TensorType, ...]) -> Dim:
    n = operands[0].rank - 2 if len(attrs["kernel_size"]) == 1 else len(attrs["kernel_size"])
    return results[0].numel * product(pair(attrs["kernel_size"], max(n, 1), "kernel_size"))


def _want_divisor(divisor_override: int | None) -> None:
    if divisor_override == 0:
        raise TypeCheckError("divisor_override must not be 0")


def _pools(n: int) -> None:
    """Max and average pooling over the last n dims."""
    name = f"aten.max_pool{n}d_with_indices"
    forward = getattr(aten, f"max_pool{n}d_with_indices").default
    backward = getattr(aten, f"max_pool{n}d_with_indices_backward").default

    @op(name, forward, flops=_window_flops)
    def _(
        self: Tensor,
        *,
        kernel_size: Ints,
        stride: Ints = (),
        padding: Ints = (0,),
        dilation: Ints = (1,),
        ceil_mode: Bool = False,
    ) -> tuple[TensorType, TensorType]:
        """The maximum of each window and its position in the flattened image (i64)."""
        shape = _pooled(self, kernel_size, stride, padding, dilation, ceil_mode, n)
        return TensorType(self.dtype, shape), TensorType(DType.I64, shape)

    @op(f"{name}_backward", _with_indices(backward, n))
    def _(
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
        shape = _pooled(self, kernel_size, stride, padding, dilation, ceil_mode, n)
        want_shape("grad_output", grad_output, shape)
        want_same_dtype("gradient and input", grad_output, self)
        _want_indices(indices, shape)
        return self

    @op(f"aten.avg_pool{n}d", getattr(aten, f"avg_pool{n}d").default, flops=_window_flops)
    def _(
        self: Tensor,
        *,
        kernel_size: Ints,
        stride: Ints = (),
        padding: Ints = (0,),
        ceil_mode: Bool = False,
        count_include_pad: Bool = True,
        divisor_override: OptInt = None,
    ) -> TensorType:
        _want_divisor(divisor_override)
        return TensorType(self.dtype, _pooled(self, kernel_size, stride, padding, (1,), ceil_mode, n))

    @op(f"aten.avg_pool{n}d_backward", getattr(aten, f"avg_pool{n}d_backward").default)
    def _(
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
        _want_divisor(divisor_override)
        want_same_dtype("gradient and input", grad_output, self)
        want_shape(
            "grad_output", grad_output, _pooled(self, kernel_size, stride, padding, (1,), ceil_mode, n)
        )
        return self


def _adapted(x: TensorType, output_size: Sequence[Dim], n: int) -> Shape:
    _want_image("the input", x, n)
    if len(output_size) != n or any(isinstance(d, int) and d < 0 for d in output_size):
        raise TypeCheckError(
            f"output_size must have {n} entries of at least 0, got {show_shape(output_size)}"
        )
    return (*x.shape[:-n], *output_size)


def _want_pooled_gradient(grad_output: TensorType, x: TensorType, n: int) -> None:
    _want_image("the input", x, n)
    _want_image("grad_output", grad_output, n)
    want_same_dtype("gradient and input", grad_output, x)
    want_equal("ranks of gradient and input", grad_output.rank, x.rank)
    want_shape("grad_output", grad_output, (*x.shape[:-n], *grad_output.shape[-n:]))


def _adaptive_pools(n: int) -> None:
    """Adaptive pooling over the last n dims."""
    average = f"_adaptive_avg_pool{n}d"
    largest = f"adaptive_max_pool{n}d"

    @op(f"aten.adaptive_avg_pool{n}d", getattr(aten, average).default, targets=(f"aten.{average}.default",))
    def _(self: Tensor, *, output_size: Dims) -> TensorType:
        return TensorType(self.dtype, _adapted(self, output_size, n))

    @op(
        f"aten.adaptive_avg_pool{n}d_backward",
        _of_filled(getattr(aten, f"{average}_backward").default),
        targets=(f"aten.{average}_backward.default",),
    )
    def _(grad_output: Tensor, self: Tensor) -> TensorType:
        _want_pooled_gradient(grad_output, self, n)
        return self

    @op(f"aten.{largest}", getattr(aten, largest).default)
    def _(self: Tensor, *, output_size: Ints) -> tuple[TensorType, TensorType]:
        """The maximum of each window and its position in the flattened image (i64)."""
        shape = _adapted(self, output_size, n)
        return TensorType(self.dtype, shape), TensorType(DType.I64, shape)

    @op(f"aten.{largest}_backward", _with_indices(getattr(aten, f"{largest}_backward").default, n))
    def _(grad_output: Tensor, self: Tensor, indices: Tensor) -> TensorType:
        _want_pooled_gradient(grad_output, self, n)
        _want_indices(indices, grad_output.shape)
        return self


for _n in (2, 3):
    _pools(_n)
    _adaptive_pools(_n)


@op("aten.max_unpool2d", aten.max_unpool2d.default)
def max_unpool2d(self: Tensor, indices: Tensor, *, output_size: Dims) -> TensorType:
    """Zeros of ``output_size`` with the elements where max pooling found them."""
    _want_indices(indices, self.shape)
    return TensorType(self.dtype, _adapted(self, output_size, 2))
