"""How the clients' models become one: the weighted mean, and means that a few wrong models cannot move far.

The robust ones need every client's model here, one update a client instead of one sum a worker.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from planc.errors import InputError
from runtime.federated.mean import State, check_states, weighted_mean
from runtime.federated.numbers import is_number

_BLOCK = 1 << 20
"""How many numbers, of all clients together, are sorted at a time."""


class Mean(Protocol):
    """What a federation needs of a mean.

    Attributes:
        needs_each: whether it needs every client's model; otherwise the workers' sums are enough, and
            `combine` is not called in rounds.
        alike: whether every client counts as one, whatever its weight in the population.
    """

    @property
    def needs_each(self) -> bool: ...

    @property
    def alike(self) -> bool: ...

    def combine(self, states: Sequence[State], weights: Sequence[float]) -> dict[str, torch.Tensor]:
        """One state of several, which have the same paths, shapes and dtypes.

        Raises:
            InputError: there are none, a weight is not positive, or they do not fit each other.
        """
        ...


@dataclass(frozen=True)
class WeightedMean:
    """``sum(weight * model) / sum(weight)``: McMahan et al. (2017), algorithm 1. Needs only sums."""

    needs_each = False
    alike = False

    def combine(self, states: Sequence[State], weights: Sequence[float]) -> dict[str, torch.Tensor]:
        """See `Mean.combine`."""
        return weighted_mean(states, weights)


@dataclass(frozen=True)
class UniformMean:
    """``sum(model) / count``: the mean for cohorts that are drawn by weight. Needs only sums.

    Of Li et al. (2020), Federated Optimization in Heterogeneous Networks, algorithm 2: who is drawn with a
    probability by their rows counts as one, so that rows count once and not twice.
    """

    needs_each = False
    alike = True

    def combine(self, states: Sequence[State], weights: Sequence[float]) -> dict[str, torch.Tensor]:
        """See `Mean.combine`; the weights do not count."""
        return weighted_mean(states, [1.0] * len(weights))


class _Coordinatewise(ABC):
    """A mean of the sorted values of each coordinate, in which weights do not count.

    So it does not depend on the order of the clients. Values are sorted as they are (NaN as the largest) and
    averaged in float64; integers are rounded.
    """

    needs_each = True
    alike = False

    @abstractmethod
    def _middle(self, count: int) -> slice:
        """Which of ``count`` sorted values are averaged."""

    def combine(self, states: Sequence[State], weights: Sequence[float]) -> dict[str, torch.Tensor]:
        """See `Mean.combine`. Memory beyond states and result: a few blocks of a million numbers."""
        check_states(states, weights)
        return {path: self._tensor([state[path] for state in states]) for path in states[0]}

    def _tensor(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        first = tensors[0]
        out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        flat = out.view(-1)
        for start, block in _blocks([tensor.detach().reshape(-1) for tensor in tensors]):
            middle = torch.from_numpy(np.sort(block, axis=0)[self._middle(len(tensors))])
            total = torch.zeros(len(middle[0]), dtype=torch.float64)  # also makes one zero of both
            for row in middle:  # one after another: a sum over the dim would have no fixed order
                total += row
            mean = total / len(middle)
            flat[start : start + len(mean)] = mean if first.is_floating_point() else mean.round()
        return out


@dataclass(frozen=True)
class Median(_Coordinatewise):
    """The median of each coordinate; of an even count the mean of the two in the middle.

    Right as long as fewer than half of the clients are wrong: Yin et al., Byzantine-Robust Distributed
    Learning: Towards Optimal Statistical Rates (2018), definition 1. Every client counts the same.
    """

    def _middle(self, count: int) -> slice:
        return slice((count - 1) // 2, count // 2 + 1)


@dataclass(frozen=True)
class TrimmedMean(_Coordinatewise):
    """The mean of each coordinate without the ``fraction`` of smallest and that of largest values.

    Of ``m`` clients, ``floor(fraction * m)`` are left out at either end: Yin et al., Byzantine-Robust
    Distributed Learning: Towards Optimal Statistical Rates (2018), definition 2. Right as long as no more
    clients than that are wrong. Every client counts the same.

    Args:
        fraction: from 0 to below 1/2.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not (is_number(self.fraction) and 0 <= self.fraction < 0.5):
            raise InputError(f"TrimmedMean: fraction must be from 0 to below 0.5, got {self.fraction!r}")

    def _middle(self, count: int) -> slice:
        # 0.29 * 100 is 28.999999999999996, and 29 are meant.
        cut = min(math.floor(self.fraction * count + 1e-9), (count - 1) // 2)
        return slice(cut, count - cut)


def _blocks(rows: Sequence[torch.Tensor]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The same elements of all rows, some at a time: where they start, and an array [rows, elements].

    An array, since numpy sorts eight times as fast; it has no bfloat16, which float32 holds exactly.
    """
    size = max(1, _BLOCK // len(rows))
    for start in range(0, len(rows[0]), size):
        block = torch.stack([row[start : start + size] for row in rows]).cpu()
        yield start, (block.float() if block.dtype is torch.bfloat16 else block).numpy()


__all__ = ["Mean", "Median", "TrimmedMean", "UniformMean", "WeightedMean"]
