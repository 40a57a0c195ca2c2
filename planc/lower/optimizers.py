"""Optimizer updates with fewer calls, in place where their memory is ours: the table's arithmetic.

On the CPU torch's multi-tensor kernels (`torch._foreach_*`) loop over its single-tensor ones: they give the
bits of the op table's callables. They are used where they take one number for all tensors; with a number for
each a loop here is faster. The fused ones (`torch._fused_adam_`) round the update of the parameters
differently and are not used. What `has_update` does not know runs by the table's callable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planc.lower.calls import Call

Tensors = Sequence[torch.Tensor]
Update = Callable[..., Sequence[torch.Tensor]]

_torch: Any = torch
"""The names of torch that have no public spelling."""
_KERNELS = ["add", "add_", "neg"]
_AVAILABLE = all(hasattr(torch, f"_foreach_{name}") for name in _KERNELS)


def has_update(call: Call, device: torch.device) -> bool:
    """Whether `update_of` knows this call, on this device."""
    if not _AVAILABLE or device.type != "cpu" or call.op not in _UPDATES:
        return False
    groups = [operand for operand in call.operands if isinstance(operand, tuple)]
    dtypes = {v.type.dtype for group in groups[:2] for v in group if v is not None}
    damped = call.op == "opt.sgd" and call.attrs.get("momentum") and call.attrs.get("dampening")
    return len(dtypes) == 1 and not damped


def update_of(call: Call, in_place: bool) -> Update:
    """What runs an optimizer's call that `has_update` knows: takes its operands, without attributes.

    Args:
        call: the call.
        in_place: whether to write over the state operands, which must be dense and distinct; the results are
            those tensors then.
    """
    params = call.operands[0]
    assert isinstance(params, tuple)
    dtype = next(value.type.dtype.torch for value in params if value is not None)
    return _UPDATES[call.op](in_place, dtype, **call.attrs)


def _sgd(
    in_place: bool,
    dtype: torch.dtype,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Update:
    shrink = _number(momentum, dtype)

    def sgd(params: Tensors, grads: Tensors, momenta: Tensors, _steps: Tensors, lr: Any) -> Tensors:
        if maximize:
            grads = _torch._foreach_neg(grads)
        if weight_decay:
            grads = _torch._foreach_add(grads, params, alpha=weight_decay)
        if momentum:
            # `_foreach_mul_` rounds the number for f16 and bf16; what is not in place does not.
            momenta = [torch.mul(each, shrink, out=each if in_place else None) for each in momenta]
            _torch._foreach_add_(momenta, grads, alpha=1)
            grads = _torch._foreach_add(grads, momenta, alpha=momentum) if nesterov else momenta
        if in_place:
            _torch._foreach_add_(params, grads, alpha=-float(lr))
            return [*params, *momenta]
        return [*_torch._foreach_add(params, grads, alpha=-float(lr)), *momenta]

    def plain(params: Tensors, grads: Tensors, _momenta: Tensors, _steps: Tensors, lr: Any) -> Tensors:
        return _torch._foreach_add(params, grads, alpha=-float(lr))

    def plain_in_place(
        params: Tensors, grads: Tensors, _momenta: Tensors, _steps: Tensors, lr: Any
    ) -> Tensors:
        _torch._foreach_add_(params, grads, alpha=-float(lr))
        return params

    del dampening  # without momentum it does nothing, and with it the table's callable runs
    if momentum or weight_decay or maximize:
        return sgd
    return plain_in_place if in_place else plain


def _adam(
    in_place: bool,
    dtype: torch.dtype,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled: bool = False,
) -> Update:
    one, decay, epsilon = _number(1.0, torch.float32), _number(beta2, dtype), _number(eps, dtype)

    def adam(
        params: Tensors,
        grads: Tensors,
        exp_avgs: Tensors,
        exp_avg_sqs: Tensors,
        max_exp_avg_sqs: Tensors,
        steps: Tensors,
        lr: Any,
    ) -> Tensors:
        rate = float(lr)
        shrink = _number(1 - rate * weight_decay, dtype) if weight_decay and decoupled else None
        largest = iter(max_exp_avg_sqs)
        made: tuple[list[torch.Tensor], ...] = ([], [], [], [], [])
        known, correction, size = None, one, 0.0
        for param, grad, average, square, step in zip(
            params, grads, exp_avgs, exp_avg_sqs, steps, strict=True
        ):
            step = torch.add(step, one, out=step if in_place else None)
            count = step.item()
            if count != known:  # as a rule all have the same
                known, size = count, -(rate / (1 - beta1**count))
                correction = _number((1 - beta2**count) ** 0.5, dtype)
            if maximize:
                grad = torch.neg(grad)
            if shrink is not None:
                param = torch.mul(param, shrink, out=param if in_place else None)
            elif weight_decay:
                grad = torch.add(grad, param, alpha=weight_decay)
            average = torch.lerp(average, grad, 1 - beta1, out=average if in_place else None)
            square = torch.mul(square, decay, out=square if in_place else None)
            square.addcmul_(grad, grad, value=1 - beta2)
            top = square
            if amsgrad:
                before = next(largest)
                top = torch.maximum(before, square, out=before if in_place else None)
                made[3].append(top)
            below = torch.sqrt(top)
            torch.div(below, correction, out=below)
            torch.add(below, epsilon, out=below)
            if in_place:
                param.addcdiv_(average, below, value=size)
            else:  # written over what is not needed any more: fresh memory would be read from further away
                out = below if below.stride() == param.stride() else None
                param = torch.addcdiv(param, average, below, value=size, out=out)
            made[0].append(param)
            made[1].append(average)
            made[2].append(square)
            made[4].append(step)
        return [tensor for tensors in made for tensor in tensors]

    return adam


def _number(value: float, dtype: torch.dtype) -> Any:
    """A number for arithmetic with tensors of a dtype: torch would make such a tensor of it at every call.

    Arithmetic on f16 and bf16 takes numbers as they are, not rounded to that dtype.
    """
    return torch.scalar_tensor(value, dtype=dtype) if dtype in (torch.float32, torch.float64) else value


_UPDATES: dict[str, Callable[..., Update]] = {"opt.sgd": _sgd, "opt.adam": _adam}

__all__ = ["has_update", "update_of"]
