"""`ClientPlan`: the plan that clients run in a round, and which parts of it are what. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from planc.errors import InputError
from planc.ir import Input, Role, TensorType
from planc.plans import Buildable, Plan, plan_of
from runtime.federated.population import Population
from runtime.federated.proximal import anchored, anchors
from runtime.federated.schedules import Schedule

_MODEL = (Role.PARAMETER, Role.BUFFER)
_LR = "lr"


class ClientPlan:
    """A plan of one client's training, as a federation runs it.

    Args:
        plan: takes one client's data and has the model as its state; one of `fedprox` too.
        schedule: of its learning rate, where it takes one.

    Attributes:
        plan: the plan that runs.
        trained: the paths of what it trains: parameters and buffers that it returns.
        parameters: the parameters among them.
        has_key: whether it draws random numbers.

    Raises:
        InputError: it trains nothing, or it and the schedule do not fit each other.
    """

    def __init__(self, plan: Plan | Buildable, schedule: Schedule | None) -> None:
        found = plan_of(plan)
        self.plan = anchored(found) if anchors(found) else found
        self._schedule = schedule
        self._rates = _rates(self.plan, schedule)
        graph = self.plan.graph
        updates = [port for port in graph.updates() if port.role in _MODEL]
        self.trained = [port.path for port in updates]
        self.parameters = [port.path for port in updates if port.role is Role.PARAMETER]
        self.has_key = any(port.role is Role.KEY for port in graph.state())
        if not self.parameters:
            raise InputError(
                f"plan {self.plan.name!r} trains nothing: it returns no parameters; see planc.train_step"
            )

    def initial_model(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers that the plan starts from, by path (copies).

        Raises:
            InputError: the plan was given no value for one.
        """
        return {p.path: self._initial(p) for p in self.plan.graph.state() if p.role in _MODEL}

    def arguments(self, number: int) -> dict[str, torch.Tensor]:
        """What all clients get in a round beside the model: the learning rate, by path."""
        if self._schedule is None:
            return {}
        rate = self._schedule.at(number)
        return {port.path: torch.tensor(rate, dtype=port.value.type.dtype.torch) for port in self._rates}

    def named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics by name. The first result of a training step is its loss, whatever it is called."""
        if "loss" in metrics or not metrics:
            return dict(metrics)
        first = self.plan.graph.results()[0].name
        return {"loss" if name == first else name: value for name, value in metrics.items()}

    def check(self, population: Population) -> None:
        """Refuse clients with other data than the plan takes, as far as it is known.

        Raises:
            InputError: says what it takes.
        """
        ports = [port for port in self.plan.graph.arguments() if port not in self._rates]
        types = population.types
        if types is None:
            return
        if len(types) != len(ports):
            raise InputError(
                f"plan {self.plan.name!r} takes {len(ports)} tensors of data "
                f"({', '.join(port.path for port in ports)}), a client of the population has {len(types)}"
            )
        for port, rows in zip(ports, types, strict=True):
            wanted = port.value.type
            row = TensorType(wanted.dtype, wanted.shape[1:])
            if not _may_be(rows, row):
                raise InputError(
                    f"plan {self.plan.name!r} wants rows of {row} for {port.path!r}, those of the population "
                    f"are {rows}: convert or reshape the data, or capture the plan with such data"
                )

    def _initial(self, port: Input) -> torch.Tensor:
        try:
            return self.plan.state[port.path].detach().clone()
        except KeyError:
            raise InputError(
                f"plan {self.plan.name!r} was given no value for its state {port.path!r}"
            ) from None


def _may_be(rows: TensorType, wanted: TensorType) -> bool:
    """Whether rows fit, as far as dims of the plan are numbers; the worker checks the others."""
    return (
        rows.dtype is wanted.dtype
        and rows.rank == wanted.rank
        and all(
            not isinstance(dim, int) or dim == got for dim, got in zip(wanted.shape, rows.shape, strict=True)
        )
    )


def _rates(plan: Plan, schedule: Schedule | None) -> list[Input]:
    """The plan's arguments that are learning rates: one, or one for each of several parameter groups."""
    found = [
        port
        for port in plan.graph.arguments()
        if (port.path == _LR or port.path.startswith(f"{_LR}.")) and not port.value.type.rank
    ]
    if schedule is not None and not found:
        raise InputError(
            f"client_lr is a schedule, but plan {plan.name!r} takes no learning rate: capture it with "
            "planc.train_step(..., lr_input=True)"
        )
    if schedule is None and found:
        raise InputError(
            f"plan {plan.name!r} takes a learning rate: give a schedule, as in client_lr=Constant(0.1)"
        )
    return found


__all__ = ["ClientPlan"]
