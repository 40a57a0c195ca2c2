"""Optimizer updates as multi-tensor ops: new parameters and new state from old ones and gradients.

Arithmetic and order of operations are torch.optim's own (its single-tensor form), so that results are equal
bit for bit; sources are the docstrings of the torch.optim classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, TensorType
from planc.ops.schema import Bool, Float, Number, Tensors, Trait
from planc.ops.table import op

_O = Trait.OPTIMIZER
List = Sequence[torch.Tensor]


def _same_types(**lists: tuple[TensorType, ...]) -> None:
    (first, want), *rest = lists.items()
    for name, got in rest:
        if got != want:
            raise TypeCheckError(
                f"{name} must match {first} tensor by tensor: expected {_show(want)}, got {_show(got)}"
            )


def _show(types: tuple[TensorType, ...]) -> str:
    return f"[{', '.join(str(t) for t in types)}]"


def _optional(have: bool, flag: str, **lists: tuple[TensorType, ...]) -> None:
    for name, got in lists.items():
        if bool(got) != have:
            raise TypeCheckError(f"{name} must be {'given' if have else 'empty'} where {flag}, got {_show(got)}")


def _want_steps(steps: tuple[TensorType, ...], count: int) -> None:
    if steps != (TensorType(DType.F32, ()),) * count:
        raise TypeCheckError(f"steps must be {count} tensors of f32[], got {_show(steps)}")


def _per_element(count: int) -> Any:
    def flops(operands: tuple[Any, ...], _attrs: Any, _results: Any) -> Dim:
        total: Dim = 0
        for t in operands[0]:
            total = total + t.numel * count
        return total

    return flops


def _scalar(value: Any) -> float:
    return float(value)


def _sgd(
    params: List,
    grads: List,
    momenta: List,
    steps: List,
    lr: Any,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[torch.Tensor, ...]:
    rate = _scalar(lr)
    new_params: list[torch.Tensor] = []
    new_momenta: list[torch.Tensor] = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        grad = grad.neg() if maximize else grad
        if weight_decay:
            grad = grad.add(param, alpha=weight_decay)
        if momentum:
            damped = bool(steps) and steps[i].item() > 0  # torch's first step takes the gradient undamped
            buffer = momenta[i].mul(momentum).add_(grad, alpha=1 - dampening if damped else 1)
            new_momenta.append(buffer)
            grad = grad.add(buffer, alpha=momentum) if nesterov else buffer
        new_params.append(param.add(grad, alpha=-rate))
    return (*new_params, *new_momenta, *(step + 1 for step in steps))


@op("opt.sgd", _sgd, _O, flops=_per_element(4))
def sgd(
    params: Tensors,
    grads: Tensors,
    momenta: Tensors,
    steps: Tensors,
    lr: Number,
    *,
    momentum: Float = 0.0,
    dampening: Float = 0.0,
    weight_decay: Float = 0.0,
    nesterov: Bool = False,
    maximize: Bool = False,
) -> tuple[TensorType, ...]:
    """torch.optim.SGD: results are the new params, momenta and steps.

    Momenta (with ``momentum``; fresh ones are zeros) and steps (with ``momentum`` and ``dampening`` both; an
    ``f32[]`` a parameter that counts its updates) are empty otherwise.
    """
    _same_types(params=params, grads=grads)
    _want_steps(steps, len(params) if momentum and dampening else 0)
    _optional(bool(momentum), "momentum is not 0" if momentum else "momentum is 0", momenta=momenta)
    if momentum:
        _same_types(params=params, momenta=momenta)
    return (*params, *momenta, *steps)


def _adam(
    params: List,
    grads: List,
    exp_avgs: List,
    exp_avg_sqs: List,
    max_exp_avg_sqs: List,
    steps: List,
    lr: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled: bool = False,
) -> tuple[torch.Tensor, ...]:
    rate = _scalar(lr)
    out: tuple[list[torch.Tensor], ...] = ([], [], [], [], [])
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        grad = grad.neg() if maximize else grad
        step = steps[i] + 1
        if weight_decay:
            if decoupled:
                param = param.mul(1 - rate * weight_decay)
            else:
                grad = grad.add(param, alpha=weight_decay)
        exp_avg = exp_avgs[i].lerp(grad, 1 - beta1)
        exp_avg_sq = exp_avg_sqs[i].mul(beta2).addcmul_(grad, grad, value=1 - beta2)
        count = step.item()
        step_size = rate / (1 - beta1**count)
        correction = (1 - beta2**count) ** 0.5
        if amsgrad:
            largest = torch.maximum(max_exp_avg_sqs[i], exp_avg_sq)
            out[3].append(largest)
            denominator = (largest.sqrt() / correction).add_(eps)
        else:
            denominator = (exp_avg_sq.sqrt() / correction).add_(eps)
        out[0].append(param.addcdiv(exp_avg, denominator, value=-step_size))
        out[1].append(exp_avg)
        out[2].append(exp_avg_sq)
        out[4].append(step)
    return tuple(t for group in out for t in group)


@op("opt.adam", _adam, _O, flops=_per_element(12))
def adam(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    steps: Tensors,
    lr: Number,
    *,
    beta1: Float = 0.9,
    beta2: Float = 0.999,
    eps: Float = 1e-8,
    weight_decay: Float = 0.0,
    amsgrad: Bool = False,
    maximize: Bool = False,
    decoupled: Bool = False,
) -> tuple[TensorType, ...]:
    """torch.optim.Adam, or AdamW where ``decoupled``.

    Results are the new params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs (only with ``amsgrad``) and steps; a
    step is an ``f32[]`` that counts the updates of its parameter.
    """
    _same_types(params=params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs)
    _optional(amsgrad, "amsgrad" if amsgrad else "amsgrad is off", max_exp_avg_sqs=max_exp_avg_sqs)
    if amsgrad:
        _same_types(params=params, max_exp_avg_sqs=max_exp_avg_sqs)
    _want_steps(steps, len(params))
    return (*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *steps)
