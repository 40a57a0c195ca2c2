"""Optimizer updates as multi-tensor ops: new parameters and new state from old ones and gradients.

Arithmetic and order of operations are torch.optim's own (its single-tensor form), so that results are equal
bit for bit; sources are the docstrings of the torch.optim classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DimExpr, DType, Scalar, TensorType
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


def _given_where(
    have: bool, flag: str, params: tuple[TensorType, ...], **lists: tuple[TensorType, ...]
) -> None:
    """Check state that only one setting of the optimizer has."""
    for name, got in lists.items():
        if have:
            _same_types(params=params, **{name: got})
        elif got:
            raise TypeCheckError(f"{name} must be empty unless {flag}, got {_show(got)}")


def _want_fractions(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0.0 <= value < 1.0:
            raise TypeCheckError(f"{name} must be at least 0 and below 1, got {value}")


def _want_rate(lr: TensorType | Scalar | DimExpr) -> None:
    if isinstance(lr, TensorType) and (lr.shape or not lr.dtype.is_floating):
        raise TypeCheckError(f"lr must be a number or a floating-point tensor without dims, got {lr}")


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
    _given_where(momentum != 0, "momentum is not 0", params, momenta=momenta)
    _want_rate(lr)
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
    _want_fractions(beta1=beta1, beta2=beta2)
    _given_where(amsgrad, "amsgrad", params, max_exp_avg_sqs=max_exp_avg_sqs)
    _want_steps(steps, len(params))
    _want_rate(lr)
    return (*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *steps)


def _rmsprop(
    params: List,
    grads: List,
    square_avgs: List,
    momenta: List,
    grad_avgs: List,
    lr: Any,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> tuple[torch.Tensor, ...]:
    rate = _scalar(lr)
    out: tuple[list[torch.Tensor], ...] = ([], [], [], [])
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        grad = grad.neg() if maximize else grad
        if weight_decay:
            grad = grad.add(param, alpha=weight_decay)
        square_avg = square_avgs[i].mul(alpha).addcmul_(grad, grad, value=1 - alpha)
        out[1].append(square_avg)
        if centered:
            grad_avg = grad_avgs[i].lerp(grad, 1 - alpha)
            out[3].append(grad_avg)
            deviation = square_avg.addcmul(grad_avg, grad_avg, value=-1).sqrt_().add_(eps)
        else:
            deviation = square_avg.sqrt().add_(eps)
        if momentum:
            buffer = momenta[i].mul(momentum).addcdiv_(grad, deviation)
            out[2].append(buffer)
            out[0].append(param.add(buffer, alpha=-rate))
        else:
            out[0].append(param.addcdiv(grad, deviation, value=-rate))
    return tuple(t for group in out for t in group)


@op("opt.rmsprop", _rmsprop, _O, flops=_per_element(9))
def rmsprop(
    params: Tensors,
    grads: Tensors,
    square_avgs: Tensors,
    momenta: Tensors,
    grad_avgs: Tensors,
    lr: Number,
    *,
    alpha: Float = 0.99,
    eps: Float = 1e-8,
    weight_decay: Float = 0.0,
    momentum: Float = 0.0,
    centered: Bool = False,
    maximize: Bool = False,
) -> tuple[TensorType, ...]:
    """torch.optim.RMSprop: results are the new params, square_avgs, momenta and grad_avgs.

    Momenta are empty without ``momentum``, grad_avgs without ``centered``.
    """
    _same_types(params=params, grads=grads, square_avgs=square_avgs)
    _given_where(momentum != 0, "momentum is not 0", params, momenta=momenta)
    _given_where(centered, "centered", params, grad_avgs=grad_avgs)
    _want_rate(lr)
    return (*params, *square_avgs, *momenta, *grad_avgs)


def _adagrad(
    params: List,
    grads: List,
    sums: List,
    steps: List,
    lr: Any,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[torch.Tensor, ...]:
    rate = _scalar(lr)
    out: tuple[list[torch.Tensor], ...] = ([], [], [])
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        grad = grad.neg() if maximize else grad
        step = steps[i] + 1
        if weight_decay:
            grad = grad.add(param, alpha=weight_decay)
        decayed = rate / (1 + (step.item() - 1) * lr_decay)
        total = sums[i].addcmul(grad, grad, value=1)
        out[0].append(param.addcdiv(grad, total.sqrt().add_(eps), value=-decayed))
        out[1].append(total)
        out[2].append(step)
    return tuple(t for group in out for t in group)


@op("opt.adagrad", _adagrad, _O, flops=_per_element(6))
def adagrad(
    params: Tensors,
    grads: Tensors,
    sums: Tensors,
    steps: Tensors,
    lr: Number,
    *,
    lr_decay: Float = 0.0,
    eps: Float = 1e-10,
    weight_decay: Float = 0.0,
    maximize: Bool = False,
) -> tuple[TensorType, ...]:
    """torch.optim.Adagrad: results are the new params, sums of squared gradients and steps.

    A step is an ``f32[]`` that counts the updates of its parameter.
    """
    _same_types(params=params, grads=grads, sums=sums)
    _want_steps(steps, len(params))
    _want_rate(lr)
    return (*params, *sums, *steps)
