"""The members of a cohort: where each client's data is, its weight and its own state; and what came of them.

Data only: `runtime.federated.cohort` sends them, `runtime.federated.population` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from runtime.remote.tensor import RemoteTensor


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor at a worker, one after another: a view there, nothing is copied."""

    tensor: RemoteTensor
    start: int
    stop: int


@dataclass(frozen=True)
class Picked:
    """The rows ``tensor[index[start:stop]]`` of a tensor at a worker; ``index`` (i64) is there too."""

    tensor: RemoteTensor
    index: RemoteTensor
    start: int
    stop: int


Source = RemoteTensor | Rows | Picked
"""Where one tensor of a client's data is."""


@dataclass(frozen=True)
class Member:
    """One client in a cohort.

    Attributes:
        client: its number in the population.
        weight: in the mean, above 0; usually how many rows it has.
        data: one source for each of the plan's data arguments, in order.
        key: its random key (i64) for this round, where the plan has one.
        state: its own state at the worker, by path; what is not there starts as the plan's does.
        keep: let its own new state stay at the worker: it comes back as ``CohortResult.state[client]``.
    """

    client: int
    weight: float
    data: tuple[Source, ...]
    key: torch.Tensor | None = None
    state: Mapping[str, RemoteTensor] = field(default_factory=dict[str, RemoteTensor])
    keep: bool = False


@dataclass(frozen=True)
class CohortResult:
    """What came of a cohort at one worker.

    Attributes:
        done: the clients that count, in the order given.
        failed: client -> "kind: reason", where an op failed or the result was NaN or out of bounds.
        late: clients that were not begun, or not finished, when the time was over.
        weight: the sum of the weights of ``done``.
        sums: by state path, i64: fixed-point sums on the round's grid; empty where nothing is summed.
        held: by state path, where the sums were left at the worker: handles to them there.
        metrics: by the name of a result of the plan, f64[len(done)]: the mean over its elements for each.
        each: by client, its own new model; only where it was asked for.
        state: by client, its own new state at the worker, for members with ``keep``.
        seconds: f64[len(done)], the computing time of each.
    """

    done: tuple[int, ...]
    failed: Mapping[int, str]
    late: tuple[int, ...]
    weight: float
    sums: Mapping[str, torch.Tensor]
    metrics: Mapping[str, torch.Tensor]
    each: Mapping[int, Mapping[str, torch.Tensor]]
    state: Mapping[int, Mapping[str, RemoteTensor]]
    seconds: torch.Tensor
    held: Mapping[str, RemoteTensor] = field(default_factory=dict[str, RemoteTensor])


__all__ = ["CohortResult", "Member", "Picked", "Rows", "Source"]
