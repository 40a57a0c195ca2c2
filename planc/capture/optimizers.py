"""torch.optim optimizers as optimizer ops: one entry a class; others are traced, see `tracing_updates`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim

from planc.capture.tracing_updates import TracedUpdate
from planc.errors import CaptureError
from planc.ir import Attribute, Value
from planc.ir.builder import GraphBuilder
from planc.ops import node

States = Sequence[Mapping[str, Any]]
"""What the optimizer holds for each parameter of a group so far."""


@dataclass(frozen=True)
class Update:
    """How one parameter group is updated by one op.

    ``slots`` are the op's state operands in order: the name torch's optimizer keeps the tensor by, and how a
    fresh one is made from its parameter. An op's results are the new parameters, then the slots' new values.
    """

    op: str
    lr: float
    attrs: Mapping[str, Attribute]
    slots: Sequence[tuple[str, Callable[[torch.Tensor], torch.Tensor]] | None]

    def names_of(self, parameter: torch.Tensor) -> list[str]:
        """The names of the state tensors of a parameter, in order."""
        return [slot[0] for slot in self.slots if slot is not None]

    def state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state of a parameter before its first update."""
        return {slot[0]: slot[1](parameter) for slot in self.slots if slot is not None}

    def emit(
        self,
        builder: GraphBuilder,
        parameters: Sequence[Value],
        grads: Sequence[Value],
        states: Sequence[Mapping[str, Value]],
        lr: Value | float,
    ) -> list[tuple[Value, dict[str, Value]]]:
        """Append the update of all parameters as one node; returns new parameters and states."""
        columns = [() if slot is None else tuple(state[slot[0]] for state in states) for slot in self.slots]
        operands = (tuple(parameters), tuple(grads), *columns, lr)
        results = iter(builder.add(node(self.op, operands, self.attrs, builder.next_index)))
        new = [next(results) for _ in parameters]
        made: list[dict[str, Value]] = [{} for _ in parameters]
        for slot in self.slots:
            if slot is not None:
                for state in made:
                    state[slot[0]] = next(results)
        return list(zip(new, made, strict=True))


def _zeros(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter, requires_grad=False)


def _count(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float32)


def _count_one(parameter: torch.Tensor) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32)


def _sgd(group: Mapping[str, Any], states: States) -> Update:
    names = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    attrs = {name: group[name] for name in names}
    counted = group["momentum"] != 0 and group["dampening"] != 0  # the first step is undamped
    # torch counts no steps: a momentum buffer tells that there was one
    started = any(state.get("momentum_buffer") is not None for state in states)
    slots = [
        ("momentum_buffer", _zeros) if group["momentum"] else None,
        ("step", _count_one if started else _count) if counted else None,
    ]
    return Update("opt.sgd", float(group["lr"]), attrs, slots)


def _adam(group: Mapping[str, Any], _states: States, decoupled: bool = False) -> Update:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    attrs = {name: group[name] for name in ("eps", "weight_decay", "amsgrad", "maximize")}
    attrs |= {
        "beta1": beta1,
        "beta2": beta2,
        "decoupled": decoupled or group.get("decoupled_weight_decay", False),
    }
    slots = [
        ("exp_avg", _zeros),
        ("exp_avg_sq", _zeros),
        ("max_exp_avg_sq", _zeros) if group["amsgrad"] else None,
        ("step", _count),
    ]
    return Update("opt.adam", float(group["lr"]), attrs, slots)


def _rmsprop(group: Mapping[str, Any], _states: States) -> Update:
    names = ("alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
    slots = [
        ("square_avg", _zeros),
        ("momentum_buffer", _zeros) if group["momentum"] else None,
        ("grad_avg", _zeros) if group["centered"] else None,
    ]
    return Update("opt.rmsprop", float(group["lr"]), {name: group[name] for name in names}, slots)


def _adagrad(group: Mapping[str, Any], _states: States) -> Update:
    names = ("lr_decay", "eps", "weight_decay", "maximize")
    first = float(group["initial_accumulator_value"])
    slots = [
        ("sum", lambda parameter: torch.full_like(parameter, first, requires_grad=False)),
        ("step", _count),
    ]
    return Update("opt.adagrad", float(group["lr"]), {name: group[name] for name in names}, slots)


_UPDATES: dict[type, Callable[[Mapping[str, Any], States], Update]] = {
    optim.SGD: _sgd,
    optim.Adam: _adam,
    optim.RMSprop: _rmsprop,
    optim.Adagrad: _adagrad,
    optim.AdamW: lambda group, states: _adam(group, states, decoupled=True),
}


def update_of(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> Update:
    """The update op of one parameter group of an optimizer.

    Raises:
        CaptureError: the optimizer's class has no op.
    """
    make = _UPDATES.get(type(optimizer))
    if make is None:
        known = ", ".join(sorted(cls.__name__ for cls in _UPDATES))
        raise CaptureError(f"{type(optimizer).__name__} has no update op yet; plans can use {known}")
    return make(group, [optimizer.state.get(p, {}) for p in group["params"]])


def rule_of(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> Update | TracedUpdate:
    """How one parameter group is updated: by an op, or where there is none by its optimizer's traced step.

    Raises:
        CaptureError: the optimizer's step cannot be a plan.
    """
    if type(optimizer) in _UPDATES:
        return update_of(optimizer, group)
    return TracedUpdate(type(optimizer), group)
