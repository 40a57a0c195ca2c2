"""Elementwise ops: arithmetic, comparison, logic, activations and the gradients of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planc.ir import DType, TensorType
from planc.ops.rules import broadcast, promote, shape_of, to_floating
from planc.ops.schema import Bool, Float, Number, OptDType, OptNumber, OptScalar, OptStr, ScalarAttr, Str, Tensor, Trait
from planc.ops.table import free, op

aten = torch.ops.aten
_E = Trait.ELEMENTWISE
_C = Trait.COMMUTATIVE


def _joined(*args: Any, dtype: DType | None = None) -> TensorType:
    return TensorType(dtype or promote(*args), broadcast(*(shape_of(a) for a in args)))


def _overloads(name: str, *kinds: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}.{kind}" for kind in kinds)


# -- arithmetic ------------------------------------------------------------------------------------------------


@op("aten.add", torch.add, _E, _C, targets=_overloads("add", "Tensor", "Scalar"))
def add(self: Tensor, other: Number, *, alpha: ScalarAttr = 1) -> TensorType:
    return _joined(self, other)


@op("aten.sub", torch.sub, _E, targets=_overloads("sub", "Tensor", "Scalar"))
def sub(self: Tensor, other: Number, *, alpha: ScalarAttr = 1) -> TensorType:
    return _joined(self, other)


@op("aten.rsub", torch.rsub, _E, targets=_overloads("rsub", "Tensor", "Scalar"))
def rsub(self: Tensor, other: Number, *, alpha: ScalarAttr = 1) -> TensorType:
    """other - self * alpha."""
    return _joined(self, other)


@op("aten.mul", torch.mul, _E, _C, targets=_overloads("mul", "Tensor", "Scalar"))
def mul(self: Tensor, other: Number) -> TensorType:
    return _joined(self, other)


@op("aten.div", torch.div, _E, targets=_overloads("div", "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"))
def div(self: Tensor, other: Number, *, rounding_mode: OptStr = None) -> TensorType:
    """True division, or rounded to ``"floor"`` or ``"trunc"``."""
    dtype = promote(self, other)
    return _joined(self, other, dtype=dtype if rounding_mode else to_floating(dtype))


@op("aten.pow", torch.pow, _E, targets=_overloads("pow", "Tensor_Tensor", "Tensor_Scalar", "Scalar"))
def pow(self: Number, exponent: Number) -> TensorType:
    return _joined(self, exponent)


@op("aten.addcmul", torch.addcmul, _E)
def addcmul(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: ScalarAttr = 1) -> TensorType:
    """self + value * tensor1 * tensor2."""
    return _joined(self, tensor1, tensor2)


@op("aten.addcdiv", torch.addcdiv, _E)
def addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: ScalarAttr = 1) -> TensorType:
    """self + value * tensor1 / tensor2."""
    return _joined(self, tensor1, tensor2)


@op("aten.lerp", torch.lerp, _E, targets=_overloads("lerp", "Tensor", "Scalar"))
def lerp(self: Tensor, end: Tensor, weight: Number) -> TensorType:
    """self + weight * (end - self)."""
    return _joined(self, end, weight, dtype=self.dtype)


def _binary(name: str, run: Callable[..., Any], *traits: Trait, kinds: tuple[str, ...] = ("default",)) -> None:
    @op(f"aten.{name}", run, _E, *traits, targets=_overloads(name, *kinds))
    def _(self: Tensor, other: Number) -> TensorType:
        return _joined(self, other)


def _tensors(name: str, run: Callable[..., Any], *, dtype: DType | None = None) -> None:
    @op(f"aten.{name}", run, _E, _C)
    def _(self: Tensor, other: Tensor) -> TensorType:
        return _joined(self, other, dtype=dtype)


_TENSOR_SCALAR = ("Tensor", "Scalar")
_tensors("maximum", torch.maximum)
_tensors("minimum", torch.minimum)
_tensors("logical_and", torch.logical_and, dtype=DType.BOOL)
_tensors("logical_or", torch.logical_or, dtype=DType.BOOL)
_tensors("logical_xor", torch.logical_xor, dtype=DType.BOOL)
_binary("remainder", torch.remainder, kinds=_TENSOR_SCALAR)
_binary("fmod", torch.fmod, kinds=_TENSOR_SCALAR)
_binary("floor_divide", torch.floor_divide, kinds=("default", "Scalar"))
_binary("bitwise_and", torch.bitwise_and, _C, kinds=_TENSOR_SCALAR)
_binary("bitwise_or", torch.bitwise_or, _C, kinds=_TENSOR_SCALAR)
_binary("bitwise_xor", torch.bitwise_xor, _C, kinds=_TENSOR_SCALAR)


def _predicate(name: str, run: Callable[..., Any], *traits: Trait, kinds: tuple[str, ...]) -> None:
    @op(f"aten.{name}", run, _E, *traits, targets=_overloads(name, *kinds))
    def _(self: Tensor, other: Number) -> TensorType:
        return _joined(self, other, dtype=DType.BOOL)


_predicate("eq", torch.eq, _C, kinds=_TENSOR_SCALAR)
_predicate("ne", torch.ne, _C, kinds=_TENSOR_SCALAR)
_predicate("lt", torch.lt, kinds=_TENSOR_SCALAR)
_predicate("le", torch.le, kinds=_TENSOR_SCALAR)
_predicate("gt", torch.gt, kinds=_TENSOR_SCALAR)
_predicate("ge", torch.ge, kinds=_TENSOR_SCALAR)


@op("aten.atan2", torch.atan2, _E)
def atan2(self: Tensor, other: Tensor) -> TensorType:
    return _joined(self, other, dtype=to_floating(promote(self, other)))


@op("aten.where", torch.where, _E, targets=_overloads("where", "self", "ScalarSelf", "ScalarOther", "Scalar"))
def where(condition: Tensor, self: Number, other: Number) -> TensorType:
    return TensorType(promote(self, other), broadcast(condition.shape, shape_of(self), shape_of(other)))


@op("aten.masked_fill", torch.masked_fill, _E, targets=_overloads("masked_fill", "Scalar", "Tensor"))
def masked_fill(self: Tensor, mask: Tensor, value: Number) -> TensorType:
    return TensorType(self.dtype, broadcast(self.shape, mask.shape))


@op("aten.clamp", torch.clamp, _E, targets=_overloads("clamp", "default", "Tensor"))
def clamp(self: Tensor, min: OptNumber = None, max: OptNumber = None) -> TensorType:
    given = [a for a in (min, max) if a is not None]
    return _joined(self, *given)


@op("aten.clamp_min", torch.clamp_min, _E)
def clamp_min(self: Tensor, min: Number) -> TensorType:
    return _joined(self, min)


@op("aten.clamp_max", torch.clamp_max, _E)
def clamp_max(self: Tensor, max: Number) -> TensorType:
    return _joined(self, max)


def _to_copy(self: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return self.to(dtype, copy=True)


@op("aten.to", _to_copy, _E, targets=())
def to(self: Tensor, *, dtype: OptDType) -> TensorType:
    """A copy in another dtype."""
    return TensorType(dtype or self.dtype, self.shape)


@op("aten.clone", lambda self: self.clone(), _E, targets=(), flops=free)
def clone(self: Tensor) -> TensorType:
    return self


@op("aten.detach", lambda self: self.detach(), Trait.VIEW, targets=("aten.detach.default", "aten.alias.default"))
def detach(self: Tensor) -> TensorType:
    """The same value, cut from autograd."""
    return self


# -- functions of one tensor ------------------------------------------------------------------------------------


def _unary(name: str, run: Callable[..., Any], *, floating: bool = False, dtype: DType | None = None) -> None:
    @op(f"aten.{name}", run, _E)
    def _(self: Tensor) -> TensorType:
        return TensorType(dtype or (to_floating(self.dtype) if floating else self.dtype), self.shape)


for _name, _run in {
    "neg": torch.neg,
    "abs": torch.abs,
    "relu": torch.relu,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "square": torch.square,
    "bitwise_not": torch.bitwise_not,
    "hardswish": aten.hardswish.default,
    "hardsigmoid": aten.hardsigmoid.default,
    "silu": aten.silu.default,
    "mish": aten.mish.default,
    "relu6": aten.relu6.default,
}.items():
    _unary(_name, _run)
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
}.items():
    _unary(_name, _run, floating=True)
_unary("logical_not", torch.logical_not, dtype=DType.BOOL)
_unary("isnan", torch.isnan, dtype=DType.BOOL)
_unary("isinf", torch.isinf, dtype=DType.BOOL)
_unary("isfinite", torch.isfinite, dtype=DType.BOOL)


@op("aten.gelu", aten.gelu.default, _E)
def gelu(self: Tensor, *, approximate: Str = "none") -> TensorType:
    return self


@op("aten.elu", aten.elu.default, _E)
def elu(self: Tensor, *, alpha: ScalarAttr = 1, scale: ScalarAttr = 1, input_scale: ScalarAttr = 1) -> TensorType:
    return self


@op("aten.leaky_relu", aten.leaky_relu.default, _E)
def leaky_relu(self: Tensor, *, negative_slope: ScalarAttr = 0.01) -> TensorType:
    return self


@op("aten.hardtanh", aten.hardtanh.default, _E)
def hardtanh(self: Tensor, *, min_val: ScalarAttr = -1, max_val: ScalarAttr = 1) -> TensorType:
    return self


@op("aten.softplus", aten.softplus.default, _E)
def softplus(self: Tensor, *, beta: ScalarAttr = 1, threshold: ScalarAttr = 20) -> TensorType:
    return self


@op("aten.threshold", torch.threshold, _E)
def threshold(self: Tensor, *, threshold: ScalarAttr, value: ScalarAttr) -> TensorType:
    return self


@op("aten.nan_to_num", torch.nan_to_num, _E)
def nan_to_num(
    self: Tensor, *, nan: OptScalar = None, posinf: OptScalar = None, neginf: OptScalar = None
) -> TensorType:
    return self


# -- gradients of activations -----------------------------------------------------------------------------------


def _gradient(name: str, run: Callable[..., Any]) -> None:
    @op(f"aten.{name}", run, _E)
    def _(grad_output: Tensor, self: Tensor) -> TensorType:
        return _joined(grad_output, self)


_gradient("silu_backward", aten.silu_backward.default)
_gradient("mish_backward", aten.mish_backward.default)
_gradient("hardswish_backward", aten.hardswish_backward.default)
_gradient("hardsigmoid_backward", aten.hardsigmoid_backward.default)


@op("aten.tanh_backward", aten.tanh_backward.default, _E)
def tanh_backward(grad_output: Tensor, output: Tensor) -> TensorType:
    return _joined(grad_output, output)


@op("aten.sigmoid_backward", aten.sigmoid_backward.default, _E)
def sigmoid_backward(grad_output: Tensor, output: Tensor) -> TensorType:
    return _joined(grad_output, output)


@op("aten.threshold_backward", aten.threshold_backward.default, _E)
def threshold_backward(grad_output: Tensor, self: Tensor, *, threshold: ScalarAttr) -> TensorType:
    """grad_output where self > threshold, else 0: the gradient of relu and threshold."""
    return _joined(grad_output, self)


@op("aten.gelu_backward", aten.gelu_backward.default, _E)
def gelu_backward(grad_output: Tensor, self: Tensor, *, approximate: Str = "none") -> TensorType:
    return _joined(grad_output, self)


def _elu_backward(grad_output: torch.Tensor, self_or_result: torch.Tensor, **attrs: Any) -> torch.Tensor:
    return aten.elu_backward.default(grad_output, self_or_result=self_or_result, **attrs)


@op("aten.elu_backward", _elu_backward, _E)
def elu_backward(
    grad_output: Tensor,
    self_or_result: Tensor,
    *,
    alpha: ScalarAttr,
    scale: ScalarAttr,
    input_scale: ScalarAttr,
    is_result: Bool,
) -> TensorType:
    return _joined(grad_output, self_or_result)


@op("aten.leaky_relu_backward", aten.leaky_relu_backward.default, _E)
def leaky_relu_backward(
    grad_output: Tensor, self: Tensor, *, negative_slope: ScalarAttr, self_is_result: Bool
) -> TensorType:
    return _joined(grad_output, self)


@op("aten.hardtanh_backward", aten.hardtanh_backward.default, _E)
def hardtanh_backward(
    grad_output: Tensor, self: Tensor, *, min_val: ScalarAttr, max_val: ScalarAttr
) -> TensorType:
    return _joined(grad_output, self)


@op("aten.softplus_backward", aten.softplus_backward.default, _E)
def softplus_backward(grad_output: Tensor, self: Tensor, *, beta: ScalarAttr, threshold: ScalarAttr) -> TensorType:
    return _joined(grad_output, self)


@op("aten.log_sigmoid_forward", aten.log_sigmoid_forward.default, _E)
def log_sigmoid_forward(self: Tensor) -> tuple[TensorType, TensorType]:
    """The value, and a buffer for the gradient (empty on accelerators, so its use stays on one device kind)."""
    return self, self


@op("aten.log_sigmoid_backward", aten.log_sigmoid_backward.default, _E)
def log_sigmoid_backward(grad_output: Tensor, self: Tensor, buffer: Tensor) -> TensorType:
    return _joined(grad_output, self)


@op("aten.native_dropout_backward", aten.native_dropout_backward.default, _E)
def native_dropout_backward(grad_output: Tensor, mask: Tensor, *, scale: Float) -> TensorType:
    """grad_output * mask * scale."""
    return _joined(grad_output, mask, dtype=grad_output.dtype)
