"""Activations of neural networks, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import DType, TensorType
from planc.ops.elementwise import joined, unary
from planc.ops.rules import axis, want_choice, want_floating, want_rank, want_shape
from planc.ops.schema import Bool, Float, Int, ScalarAttr, Str, Tensor, Trait
from planc.ops.table import op
from planc.ops.views import with_dim

aten = torch.ops.aten
_E = Trait.ELEMENTWISE

for _name, _run in {
    "relu": torch.relu,
    "hardswish": aten.hardswish.default,
    "hardsigmoid": aten.hardsigmoid.default,
    "silu": aten.silu.default,
    "mish": aten.mish.default,
    "relu6": aten.relu6.default,
}.items():
    unary(_name, _run, least=1 if _name in ("relu", "relu6") else 2)


@op("aten.gelu", aten.gelu.default, _E)
def gelu(self: Tensor, *, approximate: Str = "none") -> TensorType:
    want_choice("approximate", approximate, "none", "tanh")
    want_floating("the operand", self)
    return self


@op("aten.elu", aten.elu.default, _E)
def elu(
    self: Tensor, *, alpha: ScalarAttr = 1, scale: ScalarAttr = 1, input_scale: ScalarAttr = 1
) -> TensorType:
    want_floating("the operand", self)
    return self


@op("aten.leaky_relu", aten.leaky_relu.default, _E)
def leaky_relu(self: Tensor, *, negative_slope: ScalarAttr = 0.01) -> TensorType:
    want_floating("the operand", self)
    return self


@op("aten.hardtanh", aten.hardtanh.default, _E)
def hardtanh(self: Tensor, *, min_val: ScalarAttr = -1, max_val: ScalarAttr = 1) -> TensorType:
    want_floating("the operand", self)
    return self


@op("aten.softplus", aten.softplus.default, _E)
def softplus(self: Tensor, *, beta: ScalarAttr = 1, threshold: ScalarAttr = 20) -> TensorType:
    want_floating("the operand", self)
    return self


@op("aten.threshold", torch.threshold, _E)
def threshold(self: Tensor, *, threshold: ScalarAttr, value: ScalarAttr) -> TensorType:
    if self.dtype is DType.BOOL:
        raise TypeCheckError(f"the operand must be of numbers, got {self}")
    return self


@op("aten.celu", aten.celu.default, _E)
def celu(self: Tensor, *, alpha: ScalarAttr = 1.0) -> TensorType:
    want_floating("the operand", self)
    return self


@op("aten.prelu", aten._prelu_kernel.default, _E, targets=("aten._prelu_kernel.default",))
def prelu(self: Tensor, weight: Tensor) -> TensorType:
    """self where it is positive, else weight * self; the weight broadcasts to self."""
    want_floating("self and weight", self, weight)
    return joined(self, weight)


def _halved(self: TensorType, dim: int) -> TensorType:
    want_floating("the operand", self)
    want_rank("the operand", self, *range(1, 65))
    at = axis(dim, self.rank)
    if self.shape[at] % 2 != 0:
        raise TypeCheckError(f"dim {dim} of {self} has no two equal halves")
    return TensorType(self.dtype, with_dim(self.shape, at, self.shape[at] // 2))


@op("aten.glu", aten.glu.default)
def glu(self: Tensor, *, dim: Int = -1) -> TensorType:
    """The first half along ``dim`` times the sigmoid of the second."""
    return _halved(self, dim)


# -- gradients of activations --------------------------------------------------------------------------------


def _like(grad_output: TensorType, x: TensorType) -> TensorType:
    """The type of a gradient by an operand, or by a result, of the operand's own type."""
    want_floating("gradient and operand", grad_output, x)
    want_shape("grad_output", grad_output, x.shape)
    return x


def _gradient(name: str, run: Callable[..., Any]) -> None:
    @op(f"aten.{name}", run, _E)
    def _(grad_output: Tensor, self: Tensor) -> TensorType:
        return _like(grad_output, self)


_gradient("silu_backward", aten.silu_backward.default)
_gradient("mish_backward", aten.mish_backward.default)
_gradient("hardswish_backward", aten.hardswish_backward.default)
_gradient("hardsigmoid_backward", aten.hardsigmoid_backward.default)


@op("aten.glu_backward", aten.glu_backward.default)
def glu_backward(grad_output: Tensor, self: Tensor, *, dim: Int) -> TensorType:
    want_floating("gradient and operand", grad_output, self)
    want_shape("grad_output", grad_output, _halved(self, dim).shape)
    return self


@op(
    "aten.prelu_backward",
    aten._prelu_kernel_backward.default,
    _E,
    targets=("aten._prelu_kernel_backward.default",),
)
def prelu_backward(grad_output: Tensor, self: Tensor, weight: Tensor) -> tuple[TensorType, TensorType]:
    """Gradients by self and by the weight broadcast to it."""
    want_floating("self and weight", self, weight)
    want_floating("gradient and operand", grad_output, self)
    out = joined(grad_output, self, weight)
    return out, out


@op("aten.tanh_backward", aten.tanh_backward.default, _E)
def tanh_backward(grad_output: Tensor, output: Tensor) -> TensorType:
    return _like(grad_output, output)


@op("aten.sigmoid_backward", aten.sigmoid_backward.default, _E)
def sigmoid_backward(grad_output: Tensor, output: Tensor) -> TensorType:
    return _like(grad_output, output)


@op("aten.threshold_backward", aten.threshold_backward.default, _E)
def threshold_backward(grad_output: Tensor, self: Tensor, *, threshold: ScalarAttr) -> TensorType:
    """grad_output where self > threshold, else 0: the gradient of relu and threshold."""
    return _like(grad_output, self)


@op("aten.gelu_backward", aten.gelu_backward.default, _E)
def gelu_backward(grad_output: Tensor, self: Tensor, *, approximate: Str = "none") -> TensorType:
    want_choice("approximate", approximate, "none", "tanh")
    return _like(grad_output, self)


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
    return _like(grad_output, self_or_result)


@op("aten.leaky_relu_backward", aten.leaky_relu_backward.default, _E)
def leaky_relu_backward(
    grad_output: Tensor, self: Tensor, *, negative_slope: ScalarAttr, self_is_result: Bool
) -> TensorType:
    return _like(grad_output, self)


@op("aten.hardtanh_backward", aten.hardtanh_backward.default, _E)
def hardtanh_backward(
    grad_output: Tensor, self: Tensor, *, min_val: ScalarAttr, max_val: ScalarAttr
) -> TensorType:
    return _like(grad_output, self)


@op("aten.softplus_backward", aten.softplus_backward.default, _E)
def softplus_backward(
    grad_output: Tensor, self: Tensor, *, beta: ScalarAttr, threshold: ScalarAttr
) -> TensorType:
    return _like(grad_output, self)


@op("aten.log_sigmoid_forward", aten.log_sigmoid_forward.default, _E)
def log_sigmoid_forward(self: Tensor) -> tuple[TensorType, TensorType]:
    """The value, and a buffer for the gradient (empty on accelerators: it stays on one device kind)."""
    want_floating("the operand", self)
    return self, self


@op("aten.log_sigmoid_backward", aten.log_sigmoid_backward.default, _E)
def log_sigmoid_backward(grad_output: Tensor, self: Tensor, buffer: Tensor) -> TensorType:
    want_shape("buffer", buffer, self.shape)
    want_floating("gradient, operand and buffer", grad_output, self, buffer)
    return _like(grad_output, self)


@op("aten.native_dropout_backward", aten.native_dropout_backward.default, _E)
def native_dropout_backward(grad_output: Tensor, mask: Tensor, *, scale: Float) -> TensorType:
    """grad_output * mask * scale."""
    return joined(grad_output, mask, dtype=grad_output.dtype)
