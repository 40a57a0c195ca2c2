"""Optimizer updates over all tensors at once, in place where their memory is ours: the table's arithmetic.

On the CPU torch's multi-tensor kernels (`torch._foreach_*`) loop over its single-tensor ones: they give the
bits of the op table's callables and are used. The fused ones (`torch._fused_adam_`) round the update of the
parameters differently and are not. What `has_update` does not know runs by the table's callable.
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
_KERNELS = ["add", "add_", "mul", "mul_", "lerp", "lerp_", "addcmul_", "sqrt", "div_", "neg", "addcdiv_"]
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
    return _UPDATES[call.op](in_place, **call.attrs)


def _sgd(
    in_place: bool,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Update:
    def sgd(params: Tensors, grads: Tensors, momenta: Tensors, _steps: Tensors, lr: Any) -> Tensors:
        if maximize:
            grads = _torch._foreach_neg(grads)
        if weight_decay:
            grads = _torch._foreach_add(grads, params, alpha=weight_decay)
        if momentum:
            if in_place:
                _torch._foreach_mul_(momenta, momentum)
            else:
                momenta = _torch._foreach_mul(momenta, momentum)
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
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled: bool = False,
) -> Update:
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
        if maximize:
            grads = _torch._foreach_neg(grads)
        if weight_decay and decoupled:
            params = _mul(params, 1 - rate * weight_decay, in_place)
        elif weight_decay:
            grads = _torch._foreach_add(grads, params, alpha=weight_decay)
        if in_place:
            _torch._foreach_add_(steps, 1)
            _torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        else:
            steps = _torch._foreach_add(steps, 1)
            exp_avgs = _torch._foreach_lerp(exp_avgs, grads, 1 - beta1)
        exp_avg_sqs = _mul(exp_avg_sqs, beta2, in_place)
        _torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        largest = exp_avg_sqs
        if amsgrad:
            largest = max_exp_avg_sqs = _maximum(max_exp_avg_sqs, exp_avg_sqs, in_place)
        counts = [step.item() for step in steps]
        denominators = _torch._foreach_sqrt(largest)
        _torch._foreach_div_(denominators, [(1 - beta2**count) ** 0.5 for count in counts])
        _torch._foreach_add_(denominators, eps)
        sizes = [-(rate / (1 - beta1**count)) for count in counts]
        if in_place:
            _torch._foreach_addcdiv_(params, exp_avgs, denominators, sizes)
        else:  # written over what is not needed any more: fresh memory would be read from further away
            params = [
                torch.addcdiv(
                    param, average, below, value=size, out=below if below.stride() == param.stride() else None
                )
                for param, average, below, size in zip(params, exp_avgs, denominators, sizes, strict=True)
            ]
        return [*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *steps]

    return adam


def _mul(tensors: Tensors, number: float, in_place: bool) -> Tensors:
    if in_place:
        _torch._foreach_mul_(tensors, number)
        return tensors
    return _torch._foreach_mul(tensors, number)


def _maximum(ours: Tensors, others: Tensors, in_place: bool) -> Tensors:
    if in_place:
        return [torch.maximum(a, b, out=a) for a, b in zip(ours, others, strict=True)]
    return [torch.maximum(a, b) for a, b in zip(ours, others, strict=True)]


_UPDATES: dict[str, Callable[..., Update]] = {"opt.sgd": _sgd, "opt.adam": _adam}

__all__ = ["has_update", "update_of"]
