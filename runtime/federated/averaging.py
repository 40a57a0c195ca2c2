"""`FederatedAveraging`: the model goes to every worker, is trained there, and the mean comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from planc import key
from planc.errors import InputError
from planc.ir import Input, Role
from planc.plans import Buildable, Plan, plan_of
from runtime.data import FederatedDataset, Shard
from runtime.federated.mean import weighted_mean
from runtime.remote.plan import RemotePlan

_WAITING = 64
"""Workers elsewhere that are waited for at once."""

_AVERAGED = (Role.PARAMETER, Role.BUFFER)


@dataclass(frozen=True)
class Round:
    """What one round gave.

    Attributes:
        number: counted from 1.
        results: by worker id, what the plan returned there (for an epoch: the losses of its steps).
        rows: by worker id, how many rows it trained on: its weight in the mean.
    """

    number: int
    results: Mapping[str, Any]
    rows: Mapping[str, int]

    @property
    def loss(self) -> float:
        """The mean over workers, weighted by rows, of the mean of each one's (first) result."""
        total = sum(self.rows.values())
        return sum(float(_first(r).double().mean()) * self.rows[w] / total for w, r in self.results.items())


class FederatedAveraging:
    """Rounds of federated averaging by a plan: one message a worker a round.

    The plan (an epoch, or a step) is installed at each worker once. A round's message takes the model's
    parameters and buffers along, and its reply brings the trained ones back; data, optimizer state and the
    random key of each worker stay there. The new model is the mean weighted by rows.

    Args:
        plan: takes the tensors of one shard, and has the model as its state.
        dataset: where the data is.
        seed: of the workers' keys, which differ from each other.

    Attributes:
        state: the model: parameters and buffers by path, as ``load_state_dict`` takes them.
        rounds: how many rounds were done.
    """

    def __init__(self, plan: Plan | Buildable, dataset: FederatedDataset, seed: int = 0) -> None:
        self.plan = plan_of(plan)
        self.dataset = dataset
        self.rounds = 0
        graph = self.plan.graph
        wanted = len(graph.arguments())
        given = len(dataset.shards[0].tensors)
        if wanted != given:
            raise InputError(
                f"plan {graph.name!r} takes {wanted} tensors "
                f"({', '.join(p.path for p in graph.arguments())}), the data set has {given}"
            )
        self.state = {p.path: self._initial(p) for p in graph.state() if p.role in _AVERAGED}
        self._clients = [_Client(self.plan, shard, seed, i) for i, shard in enumerate(dataset.shards)]

    def round(self) -> Round:
        """Train one round at every worker, all at once, and take the mean.

        Raises:
            WorkerError: a worker failed; the model is as it was before the round.
        """
        with ThreadPoolExecutor(self._threads()) as pool:
            jobs = [pool.submit(client.train, self.state) for client in self._clients]
            done = [job.result() for job in jobs]
        rows = [len(client.shard) for client in self._clients]
        self.state = {**self.state, **weighted_mean([new for _, new in done], rows)}
        self.rounds += 1
        names = [client.shard.worker.id for client in self._clients]
        return Round(
            self.rounds,
            {name: result for name, (result, _) in zip(names, done, strict=True)},
            dict(zip(names, rows, strict=True)),
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The model: parameters and buffers by path (copies)."""
        return {path: tensor.detach().clone() for path, tensor in self.state.items()}

    def _threads(self) -> int:
        """As many as can wait for workers elsewhere; for workers of this process, as many as can compute."""
        here = all(client.shard.worker.in_process for client in self._clients)
        return min(len(self._clients), (os.cpu_count() or 1) if here else _WAITING)

    def _initial(self, port: Input) -> torch.Tensor:
        try:
            return self.plan.state[port.path].detach().clone()
        except KeyError:
            raise InputError(
                f"plan {self.plan.name!r} was given no value for its state {port.path!r}"
            ) from None


class _Client:
    """One worker's side of the rounds: its data, and the state that is its own."""

    def __init__(self, plan: Plan, shard: Shard, seed: int, index: int) -> None:
        self.shard = shard
        # State of its own starts as the plan's, except that keys must differ between workers.
        self._own: dict[str, torch.Tensor] | None = {
            p.path: key(seed * 1_000_003 + index) if p.role is Role.KEY else plan.state[p.path]
            for p in plan.graph.state()
            if p.role not in _AVERAGED
        }
        self._remote = RemotePlan(plan, shard.worker, {})

    def train(self, model: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
        """One round here: the plan's results, and the model that came of it."""
        self.shard.worker.install(self._remote.plan)
        results, new = self._remote.round(model, *self.shard.tensors, keep=self._own or {})
        self._own = None  # it is at the worker from now on
        return results, new


def _first(result: Any) -> torch.Tensor:
    while not isinstance(result, torch.Tensor):
        result = next(iter(result.values())) if isinstance(result, dict) else result[0]
    return result
