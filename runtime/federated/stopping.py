"""Rules that end a run.

Each is a function of the rounds so far alone, so that a resumed run ends where an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from planc.errors import InputError
from runtime.federated.events import RoundDone

Mode = Literal["max", "min"]


class Rule(Protocol):
    """Says after each round whether the run is over."""

    def why(self, rounds: Sequence[RoundDone]) -> str | None:
        """Why the run ends after these rounds, all that there were in order; None: it does not."""
        ...


@dataclass(frozen=True)
class AfterRounds:
    """Ends after so many rounds, those before a stop included."""

    rounds: int

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"AfterRounds takes a count of rounds from 1, got {self.rounds}")

    def why(self, rounds: Sequence[RoundDone]) -> str | None:
        """See `Rule`."""
        done = rounds[-1].number
        return f"{done} rounds are done" if done >= self.rounds else None


@dataclass(frozen=True)
class AfterSeconds:
    """Ends once the rounds together took so many seconds, those before a stop included."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise InputError(f"AfterSeconds takes seconds above 0, got {self.seconds}")

    def why(self, rounds: Sequence[RoundDone]) -> str | None:
        """See `Rule`."""
        took = math.fsum(one.seconds for one in rounds)
        return f"the rounds took {took:.1f} s, at least {self.seconds:g}" if took >= self.seconds else None


@dataclass(frozen=True)
class Target:
    """Ends when a metric is as good as wanted.

    Attributes:
        metric: its name, of the evaluation or else of training.
        value: what it has to reach.
        mode: "max" where more is better, "min" where less is.
    """

    metric: str
    value: float
    mode: Mode = "max"

    def __post_init__(self) -> None:
        _check_mode("Target", self.mode)

    def why(self, rounds: Sequence[RoundDone]) -> str | None:
        """See `Rule`."""
        value = _metric(rounds[-1], self.metric)
        if value is None:
            return None
        reached = value >= self.value if self.mode == "max" else value <= self.value
        return f"{self.metric} is {value:g}, the target {self.value:g}" if reached else None


@dataclass(frozen=True)
class Patience:
    """Ends when a metric has not become better for so many of the rounds that have it.

    Attributes:
        metric: its name, of the evaluation or else of training.
        rounds: how many values in a row may be no better than the best before them.
        mode: "min" where less is better, "max" where more is.
        least: how much better counts as better.
    """

    metric: str
    rounds: int
    mode: Mode = "min"
    least: float = 0.0

    def __post_init__(self) -> None:
        _check_mode("Patience", self.mode)
        if self.rounds < 1:
            raise InputError(f"Patience takes a count of rounds from 1, got {self.rounds}")
        if not self.least >= 0:
            raise InputError(f"Patience takes a least improvement from 0, got {self.least}")

    def why(self, rounds: Sequence[RoundDone]) -> str | None:
        """See `Rule`."""
        values = [value for one in rounds if (value := _metric(one, self.metric)) is not None]
        best, since = math.inf, 0
        for value in (v if self.mode == "min" else -v for v in values):
            if value < best - self.least:
                best, since = value, 0
            else:
                since += 1
        if since < self.rounds:
            return None
        shown = best if self.mode == "min" else -best
        return f"{self.metric} was not better than {shown:g} in the last {since} rounds that have it"


@dataclass(frozen=True)
class Diverged:
    """Ends when a metric of training is not a number, infinite, or beyond a bound.

    Attributes:
        metric: its name; any of them if not given.
        beyond: how large its absolute value may be.
    """

    metric: str | None = None
    beyond: float = math.inf

    def why(self, rounds: Sequence[RoundDone]) -> str | None:
        """See `Rule`."""
        last = rounds[-1]
        for name, value in {**last.metrics, **last.evaluation}.items():
            if self.metric in (None, name) and (not math.isfinite(value) or abs(value) > self.beyond):
                return f"{name} is {value:g}: training diverged"
        return None


def _metric(done: RoundDone, name: str) -> float | None:
    return done.evaluation.get(name, done.metrics.get(name))


def check_metrics(rules: Sequence[Rule], done: RoundDone, evaluates: bool) -> None:
    """Refuse rules for a metric that nothing has: they would never end anything.

    Args:
        rules: the rules.
        done: a round.
        evaluates: whether there is an evaluation, which may not have been due in this round.

    Raises:
        InputError: names the metrics that there are.
    """
    if evaluates and not done.evaluation:
        return
    for rule in rules:
        metric = rule.metric if isinstance(rule, (Target, Patience, Diverged)) else None
        if metric is not None and _metric(done, metric) is None:
            known = sorted({*done.metrics, *done.evaluation})
            raise InputError(
                f"{type(rule).__name__} wants the metric {metric!r}, which no round has; there are "
                f"{', '.join(known) or 'none'}"
            )


def _check_mode(name: str, mode: str) -> None:
    if mode not in ("max", "min"):
        raise InputError(f"{name} takes mode 'max' or 'min', got {mode!r}")


__all__ = ["AfterRounds", "AfterSeconds", "Diverged", "Patience", "Rule", "Target", "check_metrics"]
