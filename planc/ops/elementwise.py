"""Elementwise ops: arithmetic, comparison, logic and functions of one number. No activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import DimExpr, DType, Scalar, TensorType
from planc.ops.rules import (
    broadcast,
    promote,
    scalar_dtype,
    shape_of,
    to_floating,
    want_choice,
    want_floating,
    want_rank,
)
from planc.ops.schema import (
    Number,
    OptDType,
    OptNumber,
    OptScalar,
    OptStr,
    ScalarAttr,
    Tensor,
    Trait,
)
from planc.ops.table import free, op

aten = torch.ops.aten
_E = Trait.ELEMENTWISE
_C = Trait.COMMUTATIVE


def joined(*args: Any, dtype: DType | None = None) -> TensorType:
    return TensorType(dtype or promote(*args), broadcast(*(shape_of(a) for a in args)))


def _scaled(self: TensorType, other: Number, alpha: Scalar | DimExpr) -> TensorType:
    """The result of a sum in which one operand is multiplied by ``alpha``."""
    out = joined(self, other)
    if scalar_dtype(alpha).category > out.dtype.category or (
        isinstance(alpha, bool) and out.dtype is not DType.BOOL
    ):
        raise TypeCheckError(f"alpha must be of the result's kind, {out.dtype}, got {alpha!r}")
    return out


def _difference(self: TensorType, other: Number, alpha: Scalar | DimExpr) -> TensorType:
    if (
        self.dtype is DType.BOOL
        or isinstance(other, bool)
        or (isinstance(other, TensorType) and other.dtype is DType.BOOL)
    ):
        raise TypeCheckError("bools cannot be subtracted; use logical_xor or logical_not")
    return _scaled(self, other, alpha)


def _overloads(name: str, *kinds: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}.{kind}" for kind in kinds)


# -- arithmetic ----------------------------------------------------------------------------------------------


@op("aten.add", torch.add, _E, _C, targets=_overloads("add", "Tensor", "Scalar"))
def add(self: Tensor, other: Number, *, alpha: ScalarAttr = 1) -> TensorType:
    return _scaled(self, other, alpha)


@op("aten.sub", torch.sub, _E, targets=_overloads("sub", "Tensor", "Scalar"))
def sub(self: Tensor, other: Number, *, alpha: ScalarAttr = 1) -> TensorType:
    return _difference(self, other, alpha)


@op("aten.rsub", torch.rsub, _E, targets=_overloads("rsub", "Tensor", "Scalar"))
def rsub(self: Tensor, other: Number, *, alpha: ScalarAttr = 1) -> TensorType:
    """other - self * alpha."""
    return _difference(self, other, alpha)


@op("aten.mul", torch.mul, _E, _C, targets=_overloads("mul", "Tensor", "Scalar"))
def mul(self: Tensor, other: Number) -> TensorType:
    return joined(self, other)


@op("aten.div", torch.div, _E, targets=_overloads("div", "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"))
def div(self: Tensor, other: Number, *, rounding_mode: OptStr = None) -> TensorType:
    """True division, or rounded to ``"floor"`` or ``"trunc"``."""
    want_choice("rounding_mode", rounding_mode, None, "floor", "trunc")
    dtype = promote(self, other)
    return joined(self, other, dtype=dtype if rounding_mode else to_floating(dtype))


@op("aten.pow", torch.pow, _E, targets=_overloads("pow", "Tensor_Tensor", "Tensor_Scalar", "Scalar"))
def pow(self: Number, exponent: Number) -> TensorType:
    if not (isinstance(self, TensorType) or isinstance(exponent, TensorType)):
        raise TypeCheckError("one operand at least must be a tensor")
    return joined(self, exponent)


@op("aten.addcmul", torch.addcmul, _E)
def addcmul(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: ScalarAttr = 1) -> TensorType:
    """self + value * tensor1 * tensor2."""
    return joined(self, tensor1, tensor2)


@op("aten.addcdiv", torch.addcdiv, _E)
def addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: ScalarAttr = 1) -> TensorType:
    """self + value * tensor1 / tensor2."""
    return joined(self, tensor1, tensor2)


@op("aten.lerp", torch.lerp, _E, targets=_overloads("lerp", "Tensor", "Scalar"))
def lerp(self: Tensor, end: Tensor, weight: Number) -> TensorType:
    """self + weight * (end - self)."""
    want_floating("operands", self, end, weight if isinstance(weight, TensorType) else None)
    return joined(self, end, weight, dtype=self.dtype)


def _binary(
    name: str, run: Callable[..., Any], *traits: Trait, kinds: tuple[str, ...] = ("default",)
) -> None:
    @op(f"aten.{name}", run, _E, *traits, targets=_overloads(name, *kinds))
    def _(self: Tensor, other: Number) -> TensorType:
        return joined(self, other)


def _tensors(name: str, run: Callable[..., Any], *, dtype: DType | None = None) -> None:
    @op(f"aten.{name}", run, _E, _C)
    def _(self: Tensor, other: Tensor) -> TensorType:
        return joined(self, other, dtype=dtype)


_TENSOR_SCALAR = ("Tensor", "Scalar")
_tensors("maximum", torch.maximum)
_tensors("minimum", torch.minimum)
_tensors("logaddexp", torch.logaddexp)
_tensors("hypot", torch.hypot)
_tensors("logical_and", torch.logical_and, dtype=DType.BOOL)
_tensors("logical_or", torch.logical_or, dtype=DType.BOOL)
_tensors("logical_xor", torch.logical_xor, dtype=DType.BOOL)
_binary("remainder", torch.remainder, kinds=_TENSOR_SCALAR)
_binary("fmod", torch.fmod, kinds=_TENSOR_SCALAR)
_binary("floor_divide", torch.floor_divide, kinds=("default", "Scalar"))


def _bitwise(name: str, run: Callable[..., Any]) -> None:
    @op(f"aten.{name}", run, _E, _C, targets=_overloads(name, *_TENSOR_SCALAR))
    def _(self: Tensor, other: Number) -> TensorType:
        out = joined(self, other)
        if out.dtype.is_floating:
            raise TypeCheckError("bits of floating-point numbers cannot be combined")
        return out


_bitwise("bitwise_and", torch.bitwise_and)
_bitwise("bitwise_or", torch.bitwise_or)
_bitwise("bitwise_xor", torch.bitwise_xor)


def _predicate(name: str, run: Callable[..., Any], *traits: Trait, kinds: tuple[str, ...]) -> None:
    @op(f"aten.{name}", run, _E, *traits, targets=_overloads(name, *kinds))
    def _(self: Tensor, other: Number) -> TensorType:
        return joined(self, other, dtype=DType.BOOL)


_predicate("eq", torch.eq, _C, kinds=_TENSOR_SCALAR)
_predicate("ne", torch.ne, _C, kinds=_TENSOR_SCALAR)
_predicate("lt", torch.lt, kinds=_TENSOR_SCALAR)
_predicate("le", torch.le, kinds=_TENSOR_SCALAR)
_predicate("gt", torch.gt, kinds=_TENSOR_SCALAR)
_predicate("ge", torch.ge, kinds=_TENSOR_SCALAR)


@op("aten.atan2", torch.atan2, _E)
def atan2(self: Tensor, other: Tensor) -> TensorType:
    return joined(self, other, dtype=to_floating(promote(self, other)))


@op("aten.xlogy", torch.xlogy, _E, targets=_overloads("xlogy", "Tensor", "Scalar_Self", "Scalar_Other"))
def xlogy(self: Number, other: Number) -> TensorType:
    """self * log(other), and 0 where self is 0."""
    if not (isinstance(self, TensorType) or isinstance(other, TensorType)):
        raise TypeCheckError("one operand at least must be a tensor")
    return joined(self, other, dtype=to_floating(promote(self, other)))


def _want_bool(what: str, t: TensorType) -> None:
    if t.dtype is not DType.BOOL:
        raise TypeCheckError(f"{what} must be of bools, got {t}")


@op("aten.where", torch.where, _E, targets=_overloads("where", "self", "ScalarSelf", "ScalarOther", "Scalar"))
def where(condition: Tensor, self: Number, other: Number) -> TensorType:
    _want_bool("condition", condition)
    return TensorType(promote(self, other), broadcast(condition.shape, shape_of(self), shape_of(other)))


@op("aten.masked_fill", torch.masked_fill, _E, targets=_overloads("masked_fill", "Scalar", "Tensor"))
def masked_fill(self: Tensor, mask: Tensor, value: Number) -> TensorType:
    _want_bool("mask", mask)
    if isinstance(value, TensorType):
        want_rank("value", value, 0)
    elif isinstance(value, float) and not self.dtype.is_floating and not value.is_integer():
        raise TypeCheckError(f"{value} is no element of {self}")
    return TensorType(self.dtype, broadcast(self.shape, mask.shape))


@op("aten.clamp", torch.clamp, _E, targets=_overloads("clamp", "default", "Tensor"))
def clamp(self: Tensor, min: OptNumber = None, max: OptNumber = None) -> TensorType:
    given = [a for a in (min, max) if a is not None]
    if not given or len({isinstance(a, TensorType) for a in given}) > 1:
        raise TypeCheckError("at least one bound is needed, and both must be tensors or both numbers")
    return joined(self, *given)


@op("aten.clamp_min", torch.clamp_min, _E, targets=_overloads("clamp_min", "default", "Tensor"))
def clamp_min(self: Tensor, min: Number) -> TensorType:
    return joined(self, min)


@op("aten.clamp_max", torch.clamp_max, _E, targets=_overloads("clamp_max", "default", "Tensor"))
def clamp_max(self: Tensor, max: Number) -> TensorType:
    return joined(self, max)


def _to_copy(self: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return self.to(dtype, copy=True)


@op("aten.to", _to_copy, _E, targets=())
def to(self: Tensor, *, dtype: OptDType) -> TensorType:
    """A copy in another dtype."""
    return TensorType(dtype or self.dtype, self.shape)


@op("aten.clone", lambda self: self.clone(), _E, targets=(), flops=free)
def clone(self: Tensor) -> TensorType:
    return self


@op(
    "aten.detach",
    lambda self: self.detach(),
    Trait.VIEW,
    targets=("aten.detach.default", "aten.alias.default"),
)
def detach(self: Tensor) -> TensorType:
    """The same value, cut from autograd."""
    return self


# -- functions of one tensor ---------------------------------------------------------------------------------


def unary(
    name: str, run: Callable[..., Any], *, floating: bool = False, dtype: DType | None = None, least: int = 0
) -> None:
    """Register a function of one tensor.

    Args:
        floating: whether its result is floating-point whatever its operand is.
        dtype: its result's dtype, where that is always the same.
        least: the lowest category (see `DType.category`) that the operand may have.
    """

    @op(f"aten.{name}", run, _E)
    def _(self: Tensor) -> TensorType:
        if self.dtype.category < least:
            raise TypeCheckError(
                f"the operand must be {'floating-point' if least > 1 else 'of numbers'}, got {self}"
            )
        return TensorType(dtype or (to_floating(self.dtype) if floating else self.dtype), self.shape)


for _name, _run in {
    "neg": torch.neg,
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "square": torch.square,
}.items():
    unary(_name, _run, least=1)
unary("frac", torch.frac, least=2)
for _name, _run in {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
}.items():
    unary(_name, _run, floating=True)


@op("aten.bitwise_not", torch.bitwise_not, _E)
def bitwise_not(self: Tensor) -> TensorType:
    if self.dtype.is_floating:
        raise TypeCheckError(f"bits of floating-point numbers cannot be inverted, got {self}")
    return self


unary("logical_not", torch.logical_not, dtype=DType.BOOL)
unary("isnan", torch.isnan, dtype=DType.BOOL)
unary("isinf", torch.isinf, dtype=DType.BOOL)
unary("isfinite", torch.isfinite, dtype=DType.BOOL)


@op("aten.nan_to_num", torch.nan_to_num, _E)
def nan_to_num(
    self: Tensor, *, nan: OptScalar = None, posinf: OptScalar = None, neginf: OptScalar = None
) -> TensorType:
    return self
