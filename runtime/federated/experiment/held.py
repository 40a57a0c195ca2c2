"""The evaluation on rows that are here, some at a time. Asks no client."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

import planc
from runtime.federated.evaluation import state_for


@dataclass(frozen=True)
class HeldOut:
    """Called with a model by path: what a plan measures of it, as the mean over all rows.

    Attributes:
        plan: takes inputs and targets, and returns numbers by name; means over its rows.
        x: inputs, one row an example.
        y: targets.
        batch_size: rows at a time.
    """

    plan: planc.Plan
    x: Tensor
    y: Tensor
    batch_size: int

    def __call__(self, model: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers.

        Raises:
            InputError: the plan needs state that the model does not have.
        """
        run = copy.copy(self.plan)  # with its id; the plan's own state stays as it is
        run.state = {**self.plan.state, **state_for(self.plan, model)}
        parts: dict[str, list[float]] = {}
        for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
            found = run(x, y)
            measured = found if isinstance(found, dict) else {"loss": found}
            for name, value in measured.items():
                parts.setdefault(name, []).append(float(value.double().mean()) * len(y))
        return {name: math.fsum(values) / len(self.y) for name, values in parts.items()}


__all__ = ["HeldOut"]
