"""Schedules of the clients' learning rate, by round. Pure functions of the round's number: nothing to resume.

A plan takes the rate as an argument where it was made with ``planc.train_step(..., lr_input=True)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from planc.errors import InputError
from runtime.federated.numbers import is_number, is_whole


class Schedule(Protocol):
    """What a federation needs of a schedule."""

    def at(self, round: int) -> float:
        """The rate of a round; rounds are counted from 1.

        Raises:
            InputError: the round is below 1.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """The same rate in every round.

    Args:
        lr: the rate, not negative.
    """

    lr: float

    def __post_init__(self) -> None:
        _check_rate(self, "lr", self.lr)

    def at(self, round: int) -> float:
        """``lr``, see `Schedule.at`."""
        _check_round(round)
        return float(self.lr)


@dataclass(frozen=True)
class StepDecay:
    """Multiplied by ``factor`` after every so many rounds: ``lr * factor ** ((round - 1) // every)``.

    Args:
        lr: the rate of the first rounds, not negative.
        every: for how many rounds a rate holds, at least 1.
        factor: above 0, up to 1.
    """

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self, "lr", self.lr)
        _check_count(self, "every", self.every, 1)
        _check_factor(self, "factor", self.factor)

    def at(self, round: int) -> float:
        """See `Schedule.at`."""
        _check_round(round)
        return float(self.lr * self.factor ** ((round - 1) // self.every))


@dataclass(frozen=True)
class Exponential:
    """Multiplied by ``decay`` after each round: ``lr * decay ** (round - 1)``.

    Args:
        lr: the rate of the first round, not negative.
        decay: above 0, up to 1.
    """

    lr: float
    decay: float

    def __post_init__(self) -> None:
        _check_rate(self, "lr", self.lr)
        _check_factor(self, "decay", self.decay)

    def at(self, round: int) -> float:
        """See `Schedule.at`."""
        _check_round(round)
        return float(self.lr * self.decay ** (round - 1))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``lr`` down to ``final``, after a linear warm-up.

    ``lr * round / warmup`` up to the round ``warmup``. From there (without warm-up, from round 1) to the
    round ``rounds`` it is ``final + (lr - final) * (1 + cos(pi * t)) / 2`` with ``t`` from 0 to 1, and
    ``final`` after it: Loshchilov & Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts (2017),
    equation 5, without restarts.

    Args:
        lr: the highest rate, not negative.
        rounds: the last round, in which the rate is ``final``.
        warmup: how many rounds the rate rises for.
        final: from 0 to ``lr``.
    """

    lr: float
    rounds: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self, "lr", self.lr)
        _check_rate(self, "final", self.final)
        _check_count(self, "warmup", self.warmup, 0)
        _check_count(self, "rounds", self.rounds, max(self.warmup, 1) + 1)
        if self.final > self.lr:
            raise InputError(f"Cosine: final must not be above lr ({self.lr}), got {self.final}")

    def at(self, round: int) -> float:
        """See `Schedule.at`."""
        _check_round(round)
        if round <= self.warmup:
            return float(self.lr * round / self.warmup)
        if round >= self.rounds:
            return float(self.final)
        peak = max(self.warmup, 1)
        t = (round - peak) / (self.rounds - peak)
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * t)) / 2


def _check_round(round: int) -> None:
    if round < 1:
        raise InputError(f"rounds are counted from 1, got {round}")


def _check_rate(schedule: object, name: str, value: float) -> None:
    if not (is_number(value) and value >= 0):
        raise InputError(
            f"{type(schedule).__name__}: {name} must be a finite number, not negative, got {value!r}"
        )


def _check_factor(schedule: object, name: str, value: float) -> None:
    if not (is_number(value) and 0 < value <= 1):
        raise InputError(f"{type(schedule).__name__}: {name} must be above 0, up to 1, got {value!r}")


def _check_count(schedule: object, name: str, value: int, least: int) -> None:
    if not (is_whole(value) and value >= least):
        raise InputError(
            f"{type(schedule).__name__}: {name} must be a whole number of rounds, at least {least}, "
            f"got {value!r}"
        )


__all__ = ["Constant", "Cosine", "Exponential", "Schedule", "StepDecay"]
