"""Schedules: rates of rounds, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from planc.errors import InputError
from runtime.federated.schedules import Constant, Cosine, Exponential, Schedule, StepDecay


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (Constant(0.3), {1: 0.3, 2: 0.3, 1000: 0.3}),
        (StepDecay(0.8, every=3, factor=0.5), {1: 0.8, 3: 0.8, 4: 0.4, 6: 0.4, 7: 0.2, 10: 0.1}),
        (StepDecay(0.5, every=10), {10: 0.5, 11: 0.05, 21: 0.005}),
        (Exponential(2.0, decay=0.5), {1: 2.0, 2: 1.0, 3: 0.5, 6: 0.0625}),
        # Half a turn in 4 steps: cos 0, 45, 90, 135, 180 degrees = 1, 0.7071, 0, -0.7071, -1.
        (Cosine(2.0, rounds=5), {1: 2.0, 2: 1.70710678, 3: 1.0, 4: 0.29289322, 5: 0.0, 6: 0.0, 99: 0.0}),
        # From 3 down to 1, the middle is 2; it is reached half-way from round 2 to round 6.
        (Cosine(3.0, rounds=6, warmup=2, final=1.0), {1: 1.5, 2: 3.0, 4: 2.0, 6: 1.0, 7: 1.0}),
        (Cosine(1.0, rounds=5, warmup=1), {1: 1.0, 3: 0.5, 5: 0.0}),
        (Cosine(1.0, rounds=5, warmup=4), {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 5: 0.0}),
        (Cosine(1.0, rounds=2), {1: 1.0, 2: 0.0}),
    ],
    ids=repr,
)
def test_rates(schedule: Schedule, rates: dict[int, float]) -> None:
    assert {round: schedule.at(round) for round in rates} == pytest.approx(rates)
    assert all(type(schedule.at(round)) is float for round in rates)


def test_whole_numbers_give_floats() -> None:
    for schedule in (Constant(1), StepDecay(1, 2, 1), Exponential(1, 1), Cosine(1, 3, 1)):
        assert [type(schedule.at(round)) for round in (1, 2, 3, 4)] == [float] * 4


@pytest.mark.parametrize(
    "schedule", [Constant(1), StepDecay(1, 2), Exponential(1, 0.9), Cosine(1, 3)], ids=repr
)
@pytest.mark.parametrize("round", [0, -1])
def test_rounds_are_counted_from_1(schedule: Schedule, round: int) -> None:
    with pytest.raises(InputError, match=f"rounds are counted from 1, got {round}"):
        schedule.at(round)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "Constant: lr must be a finite number, not negative, got -1"),
        (lambda: Constant(float("inf")), "got inf"),
        (lambda: Constant("0.1"), "got '0.1'"),
        (lambda: StepDecay(1, 0), "StepDecay: every must be a whole number of rounds, at least 1, got 0"),
        (lambda: StepDecay(1, 1.5), "got 1.5"),
        (lambda: StepDecay(1, 2, 0), "StepDecay: factor must be above 0, up to 1, got 0"),
        (lambda: Exponential(1, 1.1), "Exponential: decay must be above 0, up to 1, got 1.1"),
        (lambda: Exponential(True, 0.5), "Exponential: lr must be .* got True"),
        (lambda: Cosine(1, 1), "Cosine: rounds must be a whole number of rounds, at least 2, got 1"),
        (lambda: Cosine(1, 5, 5), "Cosine: rounds must be a whole number of rounds, at least 6, got 5"),
        (lambda: Cosine(1, 5, -1), "Cosine: warmup must be a whole number of rounds, at least 0, got -1"),
        (lambda: Cosine(1, 5, 0, 2), r"Cosine: final must not be above lr \(1\), got 2"),
        (lambda: Cosine(1, 5, 0, -2), "Cosine: final must be a finite number, not negative, got -2"),
    ],
)
def test_bad_numbers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
