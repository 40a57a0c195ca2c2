"""Which ops can write their result into memory that is there already, and other cheaper ways to equal bits.

An op that is not named here runs by the op table's callable, so adding an op needs nothing here. All that is
named here is held against that callable, bit for bit, by `tests.lower.test_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from planc.ir import DType, Value
from planc.lower.calls import Call
from planc.ops import Trait, lookup

aten = torch.ops.aten

_torch: Any = torch
_nn: Any = torch._C._nn  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] -- where torch.nn.functional gets them
"""The names of torch that have no public spelling."""

_ELEMENTWISE = """
add sub mul div pow addcmul addcdiv lerp maximum minimum logaddexp hypot logical_and logical_or logical_xor
remainder fmod floor_divide bitwise_and bitwise_or bitwise_xor eq ne lt le gt ge atan2 xlogy clamp clamp_min
clamp_max neg abs floor ceil round trunc sign sgn square frac exp exp2 expm1 log log2 log10 log1p sqrt rsqrt
reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh tanh sigmoid erf erfc erfinv lgamma digamma
bitwise_not logical_not nan_to_num
"""
_OTHERS = "where mm addmm bmm baddbmm mv addmv dot amax amin cumsum cumprod cat stack"
_ACTIVATIONS = "leaky_relu elu hardtanh softplus gelu silu mish hardswish"


def _linear_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    out: torch.Tensor,
) -> torch.Tensor:
    _nn.linear(input, weight, bias, out=out)
    return _ACTIVATE[activation](out)


_ACTIVATE: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "silu": lambda x: _nn.silu(x, out=x),
    "gelu": lambda x: _nn.gelu(x, out=x),
}


def _relu(self: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.relu_(self) if out is self else torch.clamp_min(self, 0, out=out)


def _sum(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    return torch.sum(self, () if dim is None else tuple(dim), keepdim, dtype=dtype, out=out)


def _mean(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    return torch.mean(self, () if dim is None else tuple(dim), keepdim, dtype=dtype, out=out)


def _to(self: torch.Tensor, dtype: torch.dtype | None = None, *, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(self)


def _threshold_backward(
    grad_output: torch.Tensor, self: torch.Tensor, threshold: float, out: torch.Tensor
) -> torch.Tensor:
    return _threshold(grad_output, self, threshold, grad_input=out)


def _log_softmax(
    self: torch.Tensor, dim: int, half_to_float: bool = False, *, out: torch.Tensor
) -> torch.Tensor:
    return _torch._log_softmax(self, dim, half_to_float, out=out)


def _softmax(self: torch.Tensor, dim: int, half_to_float: bool = False, *, out: torch.Tensor) -> torch.Tensor:
    return _torch._softmax(self, dim, half_to_float, out=out)


def _nll_loss_backward(
    grad_output: torch.Tensor,
    self: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    total_weight: torch.Tensor,
    reduction: int = 1,
    ignore_index: int = -100,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    return _nll_backward(
        grad_output, self, target, weight, reduction, ignore_index, total_weight, grad_input=out
    )


def _log_softmax_backward(
    grad_output: torch.Tensor,
    output: torch.Tensor,
    dim: int,
    input_dtype: torch.dtype,
    out: torch.Tensor,
) -> torch.Tensor:
    return _torch._log_softmax_backward_data(grad_output, output, dim, input_dtype, out=out)


def _softmax_backward(
    grad_output: torch.Tensor,
    output: torch.Tensor,
    dim: int,
    input_dtype: torch.dtype,
    out: torch.Tensor,
) -> torch.Tensor:
    return _torch._softmax_backward_data(grad_output, output, dim, input_dtype, grad_input=out)


def bare(run: Callable[..., Any]) -> Callable[..., Any]:
    """An overload of torch without the Python function around it, which takes as long as a small addition."""
    if isinstance(run, OpOverload):
        return getattr(run, "_op", run)
    return run


_threshold = bare(aten.threshold_backward.grad_input)
_nll_backward = bare(aten.nll_loss_backward.grad_input)

_OUT: dict[str, Callable[..., Any]] = {
    **{f"aten.{name}": lookup(f"aten.{name}").run for name in (_ELEMENTWISE + _OTHERS).split()},
    "aten.relu": _relu,
    "aten.sum": _sum,
    "aten.mean": _mean,
    "aten.index_select": lambda self, index, dim, out: torch.index_select(self, dim, index, out=out),
    "aten.gather": lambda self, index, dim, sparse_grad=False, *, out: torch.gather(
        self, dim, index, out=out
    ),
    "aten.to": _to,
    "aten.clone": _to,
    "aten.threshold_backward": _threshold_backward,
    "aten.tanh_backward": lambda g, y, out: _tanh_backward(g, y, grad_input=out),
    "aten.sigmoid_backward": lambda g, y, out: _sigmoid_backward(g, y, grad_input=out),
    "aten.softmax": _softmax,
    "aten.log_softmax": _log_softmax,
    "aten.nll_loss_backward": _nll_loss_backward,
    "aten.log_softmax_backward": _log_softmax_backward,
    "aten.softmax_backward": _softmax_backward,
    **{f"aten.{name}": getattr(_nn, name) for name in _ACTIVATIONS.split()},
    "fused.linear": _nn.linear,
    "fused.linear_act": _linear_act,
}
_tanh_backward = bare(aten.tanh_backward.grad_input)
_sigmoid_backward = bare(aten.sigmoid_backward.grad_input)


def writer(op: str) -> Callable[..., Any] | None:
    """The op's callable with one more parameter ``out``: a tensor of the result's type and strides.

    It gives ``out``, written wholly, with the same bits as the op table's callable.
    """
    return _OUT.get(op)


def writable(call: Call) -> bool:
    """Whether a call can write its result by its op's `writer`."""
    if call.op not in _OUT or len(call.results) != 1 or call.unpack:
        return False
    return call.op != "aten.where" or all(isinstance(operand, Value) for operand in call.operands)


def overwrites(call: Call) -> bool:
    """Whether ``out`` of the op's `writer` may be an operand: one of the result's type and strides."""
    return call.has(Trait.ELEMENTWISE)


# -- numbers as tensors -----------------------------------

_PAIRS = {f"aten.{name}" for name in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")}
_WHOLE, _REAL = (DType.I64, DType.I32), (DType.F64, DType.F32)


def as_tensor(call: Call, position: int) -> torch.Tensor | None:
    """The tensor to use for a number operand, where that means the same; None where the number must stay.

    torch makes a tensor of such a number on every call, which takes longer than to add two small ones.
    """
    if call.op not in _PAIRS or position != 1:
        return None
    first, value = call.operands[0], call.operands[1]
    if not isinstance(first, Value) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    dtype = first.type.dtype
    fits = dtype in _REAL or (dtype in _WHOLE and isinstance(value, int) and call.op != "aten.div")
    if not fits or (isinstance(value, int) and not -(2**31) <= value < 2**31):
        return None
    return torch.tensor(value, dtype=dtype.torch)


__all__ = ["as_tensor", "bare", "overwrites", "writable", "writer"]
