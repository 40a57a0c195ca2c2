"""The update of one parameter as a plan, for optimizers without an op of their own. Knows no workers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import optim

from planc.capture.optimizers import rule_of
from planc.errors import CaptureError
from planc.ir import DType, Role, TensorType
from planc.ir.builder import GraphBuilder
from planc.ir.program import Program
from planc.plans import Plan

_RATE = TensorType(DType.F64, ())
_REMEMBERED = 256
_plans: OrderedDict[Any, Plan] = OrderedDict()
"""Capturing an update takes seconds: every optimizer of a class, options and parameters has the same plan."""
_FIXED_RATE: set[type[optim.Optimizer]] = set()
"""Classes whose updates cannot take the learning rate as an input."""
_lock = threading.Lock()


class UpdatePlans:
    """The plans of an optimizer: one for each type of parameter and each set of options.

    Attributes:
        takes_rate: whether the learning rate is an input of theirs. Where PyTorch cannot trace the update so,
            it is fixed, and another learning rate is another plan.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.takes_rate = type(optimizer) not in _FIXED_RATE
        self._optimizer = optimizer

    def of(self, group: Mapping[str, Any], parameter: TensorType, state: Mapping[str, TensorType]) -> Plan:
        """The plan for a parameter of this type in a group.

        Its inputs are the parameter, its gradient, its state by name, and the learning rate if it
        `takes_rate`; it updates parameter and state.

        Raises:
            CaptureError: the optimizer's step cannot be a plan.
        """
        fixed = () if self.takes_rate else ("lr",)
        options = tuple(
            (name, repr(value))
            for name, value in group.items()
            if name in fixed or name not in ("params", "lr", "initial_lr")
        )
        key = (type(self._optimizer), parameter, tuple(state.items()), options)
        with _lock:
            plan = _plans.get(key)
        if plan is None:
            try:
                plan = self._made(group, parameter, state)
            except CaptureError:
                if not self.takes_rate:
                    raise
                self.takes_rate = False
                plan = self.of(group, parameter, state)
                _FIXED_RATE.add(type(self._optimizer))
                return plan
            with _lock:
                _plans[key] = plan
                if len(_plans) > _REMEMBERED:
                    _plans.popitem(last=False)
        return plan

    def _made(self, group: Mapping[str, Any], parameter: TensorType, state: Mapping[str, TensorType]) -> Plan:
        builder = GraphBuilder(f"{type(self._optimizer).__name__.lower()}_update")
        value = builder.input("param", parameter, Role.PARAMETER, "param")
        grad = builder.input("grad", parameter)
        held = {
            name: builder.input(name, type, Role.OPTIMIZER, f"param.{name}") for name, type in state.items()
        }
        rate = builder.input("lr", _RATE) if self.takes_rate else float(group["lr"])
        ((new, moved),) = rule_of(self._optimizer, group).emit(builder, [value], [grad], [held], rate)
        builder.output(new, "param_new", Role.PARAMETER, "param")
        for name, result in moved.items():
            builder.output(result, f"{name}_new", Role.OPTIMIZER, f"param.{name}")
        return Plan(Program(builder.build())).optimized()


__all__ = ["UpdatePlans"]
