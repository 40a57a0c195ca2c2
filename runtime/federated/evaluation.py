"""`Evaluation`: how good the model is, measured here and at clients. A federation has it done."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from planc.errors import InputError
from planc.ir import Role
from planc.plans import Buildable, Plan, plan_of
from runtime.federated.cohort import run_cohort
from runtime.federated.draws import client_key, stream
from runtime.federated.members import CohortResult, Member
from runtime.federated.population import Population
from runtime.federated.proximal import unwrapped
from runtime.federated.sampling import Everyone, Sampling
from runtime.federated.work import Work
from runtime.remote.handle import WorkerHandle

State = Mapping[str, torch.Tensor]
Tag = TypeVar("Tag")
CLIENTS = "clients."
"""What the names of metrics measured at clients begin with."""


@dataclass(frozen=True)
class Evaluation:
    """What to measure of the model after rounds.

    A plan's results are metrics by their names: what it returns in a dict, say ``{"accuracy": ...}``; of a
    result of several elements the mean. Its parameters and buffers are the model's, by path: a module whose
    forward takes data and targets and returns the metrics can be a subclass of the one that is trained.

    Attributes:
        centre: called with the model, by path, and returns metrics; or a plan, run here on ``data``.
        data: the tensors that the plan takes, where ``centre`` is one.
        clients: a plan that is run at clients, on the data that they train on. The metrics are means weighted
            as in training; their names begin with "clients.". Nothing else leaves the workers.
        sampling: the clients that are asked.
        every: how many rounds lie between two evaluations.
    """

    centre: Callable[[dict[str, torch.Tensor]], Mapping[str, float]] | Plan | Buildable | None = None
    data: Sequence[torch.Tensor] = ()
    clients: Plan | Buildable | None = None
    sampling: Sampling = field(default_factory=Everyone)
    every: int = 1

    def __post_init__(self) -> None:
        if self.centre is None and self.clients is None:
            raise InputError("an Evaluation measures something: give centre, clients, or both")
        if self.every < 1:
            raise InputError(f"an Evaluation takes a count of rounds from 1 as every, got {self.every}")
        if isinstance(self.centre, Plan | Buildable):
            plan_of(self.centre).flatten_arguments(tuple(self.data))
        elif self.data:
            raise InputError("an Evaluation takes data for a plan as centre; a function brings its own")

    def due(self, number: int) -> bool:
        """Whether there is one after this round."""
        return number % self.every == 0

    def at_centre(self, model: State) -> dict[str, float]:
        """The metrics that are measured here.

        Raises:
            InputError: the model lacks something that the plan needs, or the function gave no numbers.
        """
        if self.centre is None:
            return {}
        if isinstance(self.centre, Plan | Buildable):
            plan = plan_of(self.centre)
            run = copy.copy(plan)  # with its id; the plan's own state stays as it is
            run.state = {**plan.state, **state_for(plan, model)}
            results = zip(plan.graph.results(), _leaves(run(*self.data)), strict=True)
            return {port.name: float(value.double().mean()) for port, value in results}
        found = self.centre(dict(model))
        try:
            return {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"a function for evaluation returns numbers by name; this one did not: {error}"
            ) from error


def state_for(plan: Plan, model: State) -> dict[str, torch.Tensor]:
    """What of the model a plan takes: all its parameters and buffers, by path.

    Those of a model that `fedprox` wraps are known by the paths of the module itself, too.

    Raises:
        InputError: the model has none of some path; what the plan started from is no part of the model.
    """
    known = {**unwrapped(model), **model}
    wanted = [port.path for port in plan.graph.state() if port.role in (Role.PARAMETER, Role.BUFFER)]
    for path in wanted:
        if path not in known:
            raise InputError(
                f"plan {plan.name!r} is to evaluate the model, but needs the state {path!r}, which that does "
                f"not have; it has {', '.join(model)}"
            )
    return {path: known[path] for path in wanted}


def client_work(
    evaluation: Evaluation, plan: Plan, number: int, model: State, population: Population, seed: int, tag: Tag
) -> Work[Tag]:
    """What is asked of clients for an evaluation: of those that it draws, metrics and nothing else.

    Raises:
        InputError: see `state_for`.
    """
    state = state_for(plan, model)
    own = stream(seed, "evaluation")
    clients = evaluation.sampling.sample(
        number, len(population), population.weights, own, population.available
    )

    def place(clients: Sequence[int], seconds: float) -> dict[WorkerHandle, list[Member]]:
        keys = {client: client_key(own, number, client) for client in clients}
        found = population.members(clients, keys=keys, seconds=seconds)
        # What they keep is for training: another plan has no such state.
        return {worker: [replace(member, state={}) for member in there] for worker, there in found.items()}

    def send(
        worker: WorkerHandle, members: Sequence[Member], seconds: float, *, hold: bool = False
    ) -> CohortResult:
        return run_cohort(worker, plan, state, members, None, seconds=seconds)

    return Work(number, clients, place, send, tag, must_answer=False)


def _leaves(result: Any) -> Iterator[torch.Tensor]:
    """The tensors of what a plan returned, in the order of its results."""
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, dict | list | tuple):
        for item in result.values() if isinstance(result, dict) else result:
            yield from _leaves(item)


__all__ = ["CLIENTS", "Evaluation", "client_work", "state_for"]
