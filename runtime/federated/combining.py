"""What becomes of a round's results: the mean model, and the means of metrics. The same bits in any order.

Pure functions of what came; who asks, and what a server makes of the mean, is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from planc.errors import InputError
from runtime.federated.members import CohortResult
from runtime.federated.robust import Mean
from runtime.federated.settings import Settings
from runtime.federated.work import Collected, Late
from runtime.sums import Grid

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Asked:
    """What clients were given in a round: what their results are to be read by.

    Attributes:
        model: what they started from, the part of it that they train, by path.
        grid: of the sums.
    """

    model: State
    grid: Grid


@dataclass(frozen=True)
class Combined:
    """One model of a round's results.

    Attributes:
        mean: of the clients' models, by path.
        contributions: how many clients count.
        weight: the sum of their weights: exact, rounded once.
    """

    mean: dict[str, torch.Tensor]
    contributions: int
    weight: float


def combine(collected: Collected[Asked], asked: Asked, mean: Mean, weights: Sequence[float]) -> Combined:
    """The mean of a round's results, and of late ones of the round before.

    A late result is used as what its clients learned, their mean less the model that they started from: the
    round's mean m of weight W and late ones d of weights w give
    ``(W * m + sum(w * (model + d))) / (W + sum(w))``.

    Args:
        collected: the results; somebody is done.
        asked: what their clients were given.
        mean: how models become one.
        weights: by client.
    """
    done = collected.done
    weight = math.fsum(weights[client] for client in done)
    if mean.needs_each:
        each = {client: state for result in collected.results for client, state in result.each.items()}
        together = mean.combine([each[client] for client in done], [weights[client] for client in done])
    else:
        together = asked.grid.mean(collected.sums, weight, asked.model)
    late = [one for one in collected.late_results if one.result.done]
    if not late:
        return Combined(together, len(done), weight)
    together = _with_late(together, weight, asked.model, late, weights)
    clients = [*done, *(client for one in late for client in one.result.done)]
    return Combined(together, len(clients), math.fsum(weights[client] for client in clients))


def mean_metrics(results: Sequence[CohortResult], weights: Sequence[float]) -> dict[str, float]:
    """The weighted mean over clients of each metric, by name: summed exactly, whatever the order.

    A client whose value is not finite makes the mean that.
    """
    terms: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        for name, values in result.metrics.items():
            terms.setdefault(name, []).extend(zip(result.done, values.tolist(), strict=True))
    return {name: _weighted(found, weights) for name, found in terms.items()}


def _weighted(found: Sequence[tuple[int, float]], weights: Sequence[float]) -> float:
    products = [weights[client] * value for client, value in found]
    if not all(map(math.isfinite, products)):
        return sum(products)  # NaN, or an infinity: fsum refuses to add infinities of both signs
    return math.fsum(products) / math.fsum(weights[client] for client, _ in found)


def _with_late(
    mean: State, weight: float, model: State, late: Sequence[Late[Asked]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    learned: list[tuple[float, State, State]] = []
    for one in late:
        heavy = math.fsum(weights[client] for client in one.result.done)
        found = one.tag.grid.mean(one.result.sums, heavy, one.tag.model)
        learned.append((heavy, found, one.tag.model))
    total = math.fsum([weight, *(heavy for heavy, _, _ in learned)])
    out: dict[str, torch.Tensor] = {}
    for path, tensor in mean.items():
        value = tensor.to(torch.float64) * (weight / total)
        for heavy, found, before in learned:
            change = found[path].to(torch.float64) - before[path].to(torch.float64)
            value += (model[path].to(torch.float64) + change) * (heavy / total)
        out[path] = (value if tensor.is_floating_point() else value.round()).to(tensor.dtype)
    return out


def check_mean(mean: Mean, settings: Settings) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: what is about sums, with a mean that needs every client's model.
    """
    if not mean.needs_each:
        return
    for what, taken, instead in (
        ("late='use'", settings.late == "use", "late='drop'"),
        ("reduce='tree'", settings.reduce == "tree", "reduce='direct'"),
    ):
        if taken:
            raise InputError(
                f"{what} works with sums of models, but {type(mean).__name__} needs every client's: "
                f"take {instead}"
            )


__all__ = ["Asked", "Combined", "check_mean", "combine", "mean_metrics"]
