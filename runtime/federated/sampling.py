"""Client sampling: which clients take part in a round, drawn from a seed and the round's number alone.

The global generator is never used, and no draw depends on an earlier one: a resumed run draws as before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from planc.errors import InputError
from runtime.federated.numbers import is_number, is_whole

Raw = npt.NDArray[np.uint64]
Clients = npt.NDArray[np.int64]

_STREAM = 0x73616D706C65
"""Keeps these draws apart from whatever else is drawn from the same seed by the same generator."""
_UNIT = 2.0**-53


class Sampling(Protocol):
    """What a federation needs of a way to choose a cohort."""

    def sample(
        self,
        round: int,
        population_size: int,
        weights: Sequence[float],
        seed: int,
        available: Collection[int] | None = None,
    ) -> tuple[int, ...]:
        """The clients of a round, in ascending order.

        Args:
            round: its number, from 0 up.
            population_size: how many clients there are; they are numbered from 0.
            weights: one for each client.
            seed: of the run, from 0 to below 2^64.
            available: those that can take part; all by default. Who is not available does not change
                what is drawn for the others.

        Raises:
            InputError: a number is out of range, or the population is smaller than the cohort.
        """
        ...

    def expected_size(self, population_size: int) -> float:
        """How many clients a cohort has on average, where all are available.

        Raises:
            InputError: the population is smaller than the cohort.
        """
        ...


@dataclass(frozen=True)
class Everyone:
    """All clients that are available, every round."""

    def sample(
        self,
        round: int,
        population_size: int,
        weights: Sequence[float],
        seed: int,
        available: Collection[int] | None = None,
    ) -> tuple[int, ...]:
        """See `Sampling.sample`; nothing is drawn."""
        return _tuple(_clients(population_size, available))

    def expected_size(self, population_size: int) -> float:
        """All of them."""
        return float(population_size)


@dataclass(frozen=True)
class Uniform:
    """``count`` clients, without replacement, each as likely as any other.

    Every client gets a random number of 64 bits, and the ``count`` smallest are taken. Where fewer clients
    are available, all of these are.

    Args:
        count: the cohort's size, at least 1.
    """

    count: int

    def __post_init__(self) -> None:
        _check_count(self, self.count)

    def sample(
        self,
        round: int,
        population_size: int,
        weights: Sequence[float],
        seed: int,
        available: Collection[int] | None = None,
    ) -> tuple[int, ...]:
        """See `Sampling.sample`."""
        _check_fits(self, self.count, population_size)
        clients = _clients(population_size, available)
        return _smallest(clients, _draw(seed, round, population_size)[clients], self.count)

    def expected_size(self, population_size: int) -> float:
        """The count; see `Sampling.expected_size`."""
        _check_fits(self, self.count, population_size)
        return float(self.count)


@dataclass(frozen=True)
class Poisson:
    """Each client by itself with probability ``rate``: cohorts differ in size, and one may be empty.

    The sampling that accounting for differential privacy mostly assumes: McMahan et al., Learning
    Differentially Private Recurrent Language Models (2018), algorithm 1.

    Args:
        rate: above 0, up to 1.
    """

    rate: float

    def __post_init__(self) -> None:
        if not (is_number(self.rate) and 0 < self.rate <= 1):
            raise InputError(f"Poisson: rate is a probability above 0, up to 1, got {self.rate!r}")

    def sample(
        self,
        round: int,
        population_size: int,
        weights: Sequence[float],
        seed: int,
        available: Collection[int] | None = None,
    ) -> tuple[int, ...]:
        """See `Sampling.sample`."""
        clients = _clients(population_size, available)
        uniform = (_draw(seed, round, population_size)[clients] >> np.uint64(11)) * _UNIT  # in [0, 1)
        return _tuple(clients[uniform < self.rate])

    def expected_size(self, population_size: int) -> float:
        """The rate times the population."""
        return self.rate * population_size


@dataclass(frozen=True)
class ByWeight:
    """``count`` clients, without replacement, one after another with probability by weight among those left.

    Every client gets the key ``u ** (1 / weight)``, ``u`` uniform in (0, 1], and the ``count`` largest are
    taken: Efraimidis & Spirakis, Weighted Random Sampling with a Reservoir (2006), algorithm A. Compared is
    ``-log(u) / weight``, which orders them the other way round and does not underflow. A client of weight 0
    is never taken. Where fewer clients (of a weight above 0) are available, all of these are.

    Args:
        count: the cohort's size, at least 1.
    """

    count: int

    def __post_init__(self) -> None:
        _check_count(self, self.count)

    def sample(
        self,
        round: int,
        population_size: int,
        weights: Sequence[float],
        seed: int,
        available: Collection[int] | None = None,
    ) -> tuple[int, ...]:
        """See `Sampling.sample`."""
        _check_fits(self, self.count, population_size)
        weight = np.asarray(weights, dtype=np.float64)
        if weight.shape != (population_size,):
            raise InputError(
                f"ByWeight needs a weight for each of {population_size} clients, got {len(weights)}"
            )
        wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
        if len(wrong):
            client = int(wrong[0])
            raise InputError(f"weights must be finite and not negative; client {client} has {weight[client]}")
        clients = _clients(population_size, available)
        clients = clients[weight[clients] > 0]
        raw = _draw(seed, round, population_size)[clients]
        uniform = ((raw >> np.uint64(11)) + np.uint64(1)) * _UNIT
        return _smallest(clients, -np.log(uniform) / weight[clients], self.count)

    def expected_size(self, population_size: int) -> float:
        """The count; see `Sampling.expected_size`."""
        _check_fits(self, self.count, population_size)
        return float(self.count)


def _draw(seed: int, round: int, count: int) -> Raw:
    """64 random bits for each of ``count`` clients: those of a client depend on seed, round and its number.

    Philox counts instead of having a state, so a round has a stretch of its own. Its raw bits are taken, as
    numpy keeps only those the same between its versions.
    """
    if not (is_whole(seed) and 0 <= seed < 2**64):
        raise InputError(f"a seed is a whole number from 0 to below 2^64, got {seed!r}")
    if not (is_whole(round) and 0 <= round < 2**64):
        raise InputError(f"a round's number is a whole number from 0 to below 2^64, got {round!r}")
    return np.random.Philox(key=seed | _STREAM << 64, counter=round << 64).random_raw(count)


def _clients(population_size: int, available: Collection[int] | None) -> Clients:
    """The numbers of those who can take part, in ascending order."""
    if not (is_whole(population_size) and population_size >= 0):
        raise InputError(f"a population's size is a whole number, not negative, got {population_size!r}")
    if available is None:
        return np.arange(population_size)
    given = np.fromiter(available, dtype=np.int64, count=len(available))
    wrong = given[(given < 0) | (given >= population_size)]
    if len(wrong):
        raise InputError(f"clients are numbered from 0 to {population_size - 1}, but {wrong[0]} is available")
    there = np.zeros(population_size, dtype=np.bool_)
    there[given] = True
    return np.flatnonzero(there)


def _smallest(clients: Clients, keys: npt.NDArray[Any], count: int) -> tuple[int, ...]:
    """The ``count`` clients of the smallest keys, in order; of equal keys those that come first."""
    if len(clients) <= count:
        return _tuple(clients)
    last = np.partition(keys, count - 1)[count - 1]
    taken = keys < last
    taken[np.flatnonzero(keys == last)[: count - np.count_nonzero(taken)]] = True
    return _tuple(clients[taken])


def _tuple(clients: Clients) -> tuple[int, ...]:
    return tuple(clients.tolist())


def _check_count(sampling: object, count: int) -> None:
    if not (is_whole(count) and count >= 1):
        raise InputError(f"{type(sampling).__name__}: count is a whole number of at least 1, got {count!r}")


def _check_fits(sampling: object, count: int, population_size: int) -> None:
    if count > population_size:
        raise InputError(
            f"{type(sampling).__name__}({count}) needs a population of at least {count} clients, got "
            f"{population_size}; take fewer, or Everyone()"
        )


__all__ = ["ByWeight", "Everyone", "Poisson", "Sampling", "Uniform"]
