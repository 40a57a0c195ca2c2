"""Reductions, scans along a dim, sorting, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, TensorType
from planc.ir.dims import show
from planc.ops.rules import axis, reduced, to_floating, want_elements, want_floating, want_shape
from planc.ops.schema import (
    Bool,
    DTypeAttr,
    Int,
    Ints,
    OptDType,
    OptInt,
    OptInts,
    OptScalar,
    ScalarAttr,
    Tensor,
)
from planc.ops.table import op

aten = torch.ops.aten


def _operand_elements(operands: tuple[Any, ...], _attrs: Any, _results: Any) -> Dim:
    return operands[0].numel


def _five_each(operands: tuple[Any, ...], _attrs: Any, _results: Any) -> Dim:
    return operands[0].numel * 5


def _sum(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return torch.sum(self, None if dim is None else tuple(dim), keepdim, dtype=dtype)


@op("aten.sum", _sum, flops=_operand_elements, targets=("aten.sum.default", "aten.sum.dim_IntList"))
def sum(self: Tensor, *, dim: OptInts = None, keepdim: Bool = False, dtype: OptDType = None) -> TensorType:
    """Integers and bools are summed as i64."""
    default = self.dtype if self.dtype.is_floating else DType.I64
    return TensorType(dtype or default, reduced(self.shape, dim, keepdim))


def _mean(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return torch.mean(self, None if dim is None else tuple(dim), keepdim, dtype=dtype)


@op("aten.mean", _mean, flops=_operand_elements, targets=("aten.mean.default", "aten.mean.dim"))
def mean(self: Tensor, *, dim: OptInts = None, keepdim: Bool = False, dtype: OptDType = None) -> TensorType:
    out = dtype or self.dtype
    if not out.is_floating:
        raise TypeCheckError(f"the mean wants floating-point elements, got {self}")
    return TensorType(out, reduced(self.shape, dim, keepdim))


@op("aten.amax", torch.amax, flops=_operand_elements)
def amax(self: Tensor, *, dim: Ints = (), keepdim: Bool = False) -> TensorType:
    want_elements("the operand", self)
    return TensorType(self.dtype, reduced(self.shape, dim, keepdim))


@op("aten.amin", torch.amin, flops=_operand_elements)
def amin(self: Tensor, *, dim: Ints = (), keepdim: Bool = False) -> TensorType:
    want_elements("the operand", self)
    return TensorType(self.dtype, reduced(self.shape, dim, keepdim))


@op("aten.max", torch.max, flops=_operand_elements)
def max(self: Tensor) -> TensorType:
    want_elements("the operand", self)
    return TensorType(self.dtype, ())


@op("aten.min", torch.min, flops=_operand_elements)
def min(self: Tensor) -> TensorType:
    want_elements("the operand", self)
    return TensorType(self.dtype, ())


def _along(self: TensorType, dim: int, keepdim: bool) -> tuple[TensorType, TensorType]:
    want_elements("the operand", self)
    shape = reduced(self.shape, (dim,), keepdim)
    return TensorType(self.dtype, shape), TensorType(DType.I64, shape)


@op(
    "aten.max_dim",
    lambda self, dim, keepdim=False: tuple(torch.max(self, dim, keepdim)),
    flops=_operand_elements,
    targets=("aten.max.dim",),
)
def max_dim(self: Tensor, *, dim: Int, keepdim: Bool = False) -> tuple[TensorType, TensorType]:
    """The largest along a dim, and where it stands."""
    return _along(self, dim, keepdim)


@op(
    "aten.min_dim",
    lambda self, dim, keepdim=False: tuple(torch.min(self, dim, keepdim)),
    flops=_operand_elements,
    targets=("aten.min.dim",),
)
def min_dim(self: Tensor, *, dim: Int, keepdim: Bool = False) -> tuple[TensorType, TensorType]:
    """The smallest along a dim, and where it stands."""
    return _along(self, dim, keepdim)


@op("aten.argmax", torch.argmax, flops=_operand_elements)
def argmax(self: Tensor, *, dim: OptInt = None, keepdim: Bool = False) -> TensorType:
    want_elements("the operand", self)
    if self.dtype is DType.BOOL:
        raise TypeCheckError(f"the operand must be of numbers, got {self}")
    return TensorType(DType.I64, reduced(self.shape, None if dim is None else (dim,), keepdim))


@op("aten.argmin", torch.argmin, flops=_operand_elements)
def argmin(self: Tensor, *, dim: OptInt = None, keepdim: Bool = False) -> TensorType:
    want_elements("the operand", self)
    if self.dtype is DType.BOOL:
        raise TypeCheckError(f"the operand must be of numbers, got {self}")
    return TensorType(DType.I64, reduced(self.shape, None if dim is None else (dim,), keepdim))


def _truth(self: TensorType) -> DType:
    return (
        DType.U8 if self.dtype is DType.U8 else DType.BOOL
    )  # torch kept bytes for truth from its early days


def _any(self: torch.Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    return torch.any(self, tuple(dim) or None, keepdim)


def _all(self: torch.Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    return torch.all(self, tuple(dim) or None, keepdim)


@op("aten.any", _any, flops=_operand_elements, targets=("aten.any.default", "aten.any.dims"))
def any(self: Tensor, *, dim: Ints = (), keepdim: Bool = False) -> TensorType:
    return TensorType(_truth(self), reduced(self.shape, dim, keepdim))


@op("aten.all", _all, flops=_operand_elements, targets=("aten.all.default", "aten.all.dims"))
def all(self: Tensor, *, dim: Ints = (), keepdim: Bool = False) -> TensorType:
    return TensorType(_truth(self), reduced(self.shape, dim, keepdim))


@op("aten.prod", torch.prod, flops=_operand_elements, targets=("aten.prod.dim_int",))
def prod(self: Tensor, *, dim: Int, keepdim: Bool = False, dtype: OptDType = None) -> TensorType:
    default = self.dtype if self.dtype.is_floating else DType.I64
    return TensorType(dtype or default, reduced(self.shape, (dim,), keepdim))


@op("aten.cumsum", torch.cumsum, flops=_operand_elements)
def cumsum(self: Tensor, *, dim: Int, dtype: OptDType = None) -> TensorType:
    axis(dim, self.rank)
    default = self.dtype if self.dtype.is_floating else DType.I64
    return TensorType(dtype or default, self.shape)


@op("aten.cumprod", torch.cumprod, flops=_operand_elements)
def cumprod(self: Tensor, *, dim: Int, dtype: OptDType = None) -> TensorType:
    axis(dim, self.rank)
    default = self.dtype if self.dtype.is_floating else DType.I64
    return TensorType(dtype or default, self.shape)


def _var(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    correction: float | None = None,
    keepdim: bool = False,
) -> torch.Tensor:
    return aten.var.correction(self, dim, correction=correction, keepdim=keepdim)


@op("aten.var", _var, flops=_five_each, targets=("aten.var.correction",))
def var(
    self: Tensor, *, dim: OptInts = None, correction: OptScalar = None, keepdim: Bool = False
) -> TensorType:
    """Variance; ``correction`` None means 1."""
    want_floating("the operand", self)
    return TensorType(self.dtype, reduced(self.shape, dim, keepdim))


def _var_mean(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    return aten.var_mean.correction(self, dim, correction=correction, keepdim=keepdim)


@op("aten.var_mean", _var_mean, flops=_five_each, targets=("aten.var_mean.correction",))
def var_mean(
    self: Tensor, *, dim: OptInts = None, correction: OptScalar = None, keepdim: Bool = False
) -> tuple[TensorType, TensorType]:
    want_floating("the operand", self)
    out = TensorType(self.dtype, reduced(self.shape, dim, keepdim))
    return out, out


@op(
    "aten.vector_norm",
    aten.linalg_vector_norm.default,
    flops=_operand_elements,
    targets=("aten.linalg_vector_norm.default",),
)
def vector_norm(
    self: Tensor, *, ord: ScalarAttr = 2, dim: OptInts = None, keepdim: Bool = False, dtype: OptDType = None
) -> TensorType:
    want_floating("the operand", self)
    if dtype is not None and dtype is not self.dtype and dtype is not DType.F64:
        raise TypeCheckError(f"dtype must be f64 or that of {self}, got {dtype}")
    return TensorType(dtype or self.dtype, reduced(self.shape, dim, keepdim))


@op("aten.logsumexp", torch.logsumexp, flops=_five_each)
def logsumexp(self: Tensor, *, dim: Ints, keepdim: Bool = False) -> TensorType:
    return TensorType(to_floating(self.dtype), reduced(self.shape, dim, keepdim))


@op(
    "aten.topk",
    lambda self, k, dim=-1, largest=True, sorted=True: tuple(torch.topk(self, k, dim, largest, sorted)),
    flops=_five_each,
)
def topk(
    self: Tensor, *, k: Int, dim: Int = -1, largest: Bool = True, sorted: Bool = True
) -> tuple[TensorType, TensorType]:
    at = axis(dim, self.rank)
    size = self.shape[at] if self.shape else 1
    if k < 0 or (isinstance(size, int) and k > size):
        raise TypeCheckError(f"k must be in 0..{show(size)}, got {k}")
    shape = (*self.shape[:at], k, *self.shape[at + 1 :]) if self.shape else ()
    return TensorType(self.dtype, shape), TensorType(DType.I64, shape)


@op(
    "aten.sort",
    lambda self, dim=-1, descending=False: tuple(torch.sort(self, dim=dim, descending=descending)),
    flops=_five_each,
)
def sort(self: Tensor, *, dim: Int = -1, descending: Bool = False) -> tuple[TensorType, TensorType]:
    axis(dim, self.rank)
    return self, TensorType(DType.I64, self.shape)


# -- softmax -------------------------------------------------------------------------------------------------


def _check_softmax(self: TensorType, dim: int, half_to_float: bool) -> TensorType:
    axis(dim, self.rank)
    if not self.dtype.is_floating:
        raise TypeCheckError(f"softmax wants floating-point elements, got {self}")
    if half_to_float:
        raise TypeCheckError("half_to_float exists on accelerators only; convert with aten.to first")
    return self


def _softmax(self: torch.Tensor, dim: int, half_to_float: bool = False) -> torch.Tensor:
    return torch.softmax(self, dim)


def _log_softmax(self: torch.Tensor, dim: int, half_to_float: bool = False) -> torch.Tensor:
    return torch.log_softmax(self, dim)


@op("aten.softmax", _softmax, flops=_five_each, targets=("aten._softmax.default",))
def softmax(self: Tensor, *, dim: Int, half_to_float: Bool = False) -> TensorType:
    return _check_softmax(self, dim, half_to_float)


@op(
    "aten.safe_softmax",
    lambda self, dim, dtype=None: aten._safe_softmax.default(self, dim, dtype),
    flops=_five_each,
    targets=("aten._safe_softmax.default",),
)
def safe_softmax(self: Tensor, *, dim: Int, dtype: OptDType = None) -> TensorType:
    """softmax, and zeros where every element is -inf."""
    _check_softmax(self, dim, False)
    if dtype is not None and not dtype.is_floating:
        raise TypeCheckError(f"dtype must be floating-point, got {dtype}")
    return TensorType(dtype or self.dtype, self.shape)


@op("aten.log_softmax", _log_softmax, flops=_five_each, targets=("aten._log_softmax.default",))
def log_softmax(self: Tensor, *, dim: Int, half_to_float: Bool = False) -> TensorType:
    return _check_softmax(self, dim, half_to_float)


@op(
    "aten.softmax_backward",
    aten._softmax_backward_data.default,
    flops=_five_each,
    targets=("aten._softmax_backward_data.default",),
)
def softmax_backward(grad_output: Tensor, output: Tensor, *, dim: Int, input_dtype: DTypeAttr) -> TensorType:
    axis(dim, output.rank)
    want_shape("grad_output", grad_output, output.shape)
    want_floating("gradient and output", grad_output, output)
    if input_dtype is not output.dtype:
        raise TypeCheckError(f"input_dtype must be that of {output}, got {input_dtype}")
    return output


@op(
    "aten.log_softmax_backward",
    aten._log_softmax_backward_data.default,
    flops=_five_each,
    targets=("aten._log_softmax_backward_data.default",),
)
def log_softmax_backward(
    grad_output: Tensor, output: Tensor, *, dim: Int, input_dtype: DTypeAttr
) -> TensorType:
    axis(dim, output.rank)
    want_shape("grad_output", grad_output, output.shape)
    want_floating("gradient and output", grad_output, output)
    if input_dtype is not output.dtype:
        raise TypeCheckError(f"input_dtype must be that of {output}, got {input_dtype}")
    return output
