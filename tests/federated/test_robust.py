"""Robust means: by hand, against numpy, and with clients that send whatever does most harm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import InputError
from runtime.federated import robust
from runtime.federated.mean import weighted_mean
from runtime.federated.robust import Mean, Median, TrimmedMean, UniformMean, WeightedMean

ROBUST: list[Mean] = [Median(), TrimmedMean(0.2), TrimmedMean(0.0)]


def of(mean: Mean, *values: float, dtype: torch.dtype = torch.float64) -> float:
    """The mean of clients that have one number each."""
    return mean.combine([{"w": torch.tensor(v, dtype=dtype)} for v in values], [1.0] * len(values))[
        "w"
    ].item()


# -- by hand -------------------------------------------------------------------------------------------------


def test_median() -> None:
    assert of(Median(), 7) == 7
    assert of(Median(), 7, 1) == 4
    assert of(Median(), 7, 1, 100) == 7
    assert of(Median(), 7, 1, 100, 3) == 5  # between 3 and 7


def test_trimmed_mean() -> None:
    """Of ten, a fifth is two at either end: (3 + 4 + 5 + 6 + 7 + 8) / 6."""
    values = (10, -99, 4, 3, 8, 7, 5, 6, 2, 1000)
    assert of(TrimmedMean(0.2), *values) == 5.5
    assert of(TrimmedMean(0.25), *values) == 5.5  # floor(2.5)
    assert of(TrimmedMean(0.3), *values) == 5.5  # 4 + 5 + 6 + 7 over 4
    assert of(TrimmedMean(0.0), 1, 2, 6) == 3
    assert of(TrimmedMean(0.4), 1, 2, 60) == 2  # floor(1.2)
    assert of(TrimmedMean(0.3), 1, 2, 60) == 21  # floor(0.9)


@pytest.mark.parametrize(("fraction", "count", "cut"), [(0.29, 100, 29), (0.1, 30, 3), (0.07, 100, 7)])
def test_a_fraction_that_is_whole_is_cut_whole(fraction: float, count: int, cut: int) -> None:
    """0.29 * 100 is 28.999999999999996. The values at the ends would show."""
    values = [-1e6] * cut + [1.0] * (count - 2 * cut) + [2e6] * cut
    assert of(TrimmedMean(fraction), *values) == 1
    assert of(TrimmedMean(fraction), -1e6, *values, 2e6) != 1


def test_just_below_a_half_something_is_left() -> None:
    below = math.nextafter(0.5, 0)
    for count in range(1, 9):
        values = range(count)
        assert of(TrimmedMean(below), *values) == (count - 1) / 2


def test_weighted_mean() -> None:
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, -1.0])}]
    assert WeightedMean().combine(states, [2, 1])["w"].tolist() == [2, 1]  # (2+4)/3, (4-1)/3
    assert WeightedMean().combine(states, [2, 1])["w"].tolist() == weighted_mean(states, [2, 1])["w"].tolist()


def test_uniform_mean() -> None:
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, -1.0])}]
    assert UniformMean().combine(states, [2, 1])["w"].tolist() == [2.5, 0.5]
    assert UniformMean().alike
    assert not WeightedMean().alike


def test_what_needs_every_model_says_so() -> None:
    assert not UniformMean().needs_each
    assert not WeightedMean().needs_each
    assert Median().needs_each
    assert TrimmedMean().needs_each


# -- against numpy -------------------------------------------------------------------------------------------


@st.composite
def clients(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """[clients, 2, 3] of f32, with repeats and huge numbers."""
    count = draw(st.integers(1, 12))
    number = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e30]), st.floats(-1e3, 1e3, width=32))
    flat = draw(st.lists(number, min_size=count * 6, max_size=count * 6))
    return np.array(flat, dtype=np.float32).reshape(count, 2, 3)


@settings(max_examples=60)
@given(clients(), st.floats(0, 0.49))
def test_as_numpy_does_it(values: np.ndarray[Any, Any], fraction: float) -> None:
    states = [{"w": torch.from_numpy(row)} for row in values]
    weights = [1.0] * len(states)
    wide = np.sort(values.astype(np.float64), axis=0)
    median = Median().combine(states, weights)["w"]
    np.testing.assert_array_equal(median.numpy(), np.median(wide, axis=0).astype(np.float32))
    cut = int(fraction * len(values))
    trimmed = TrimmedMean(fraction).combine(states, weights)["w"]
    want = wide[cut : len(values) - cut].mean(axis=0)
    np.testing.assert_allclose(trimmed.numpy(), want.astype(np.float32), rtol=1e-6, atol=1e15)
    inner = np.abs(wide).max(axis=0) < 1e4  # elsewhere 1e30 and -1e30 cancel, and the order counts
    np.testing.assert_allclose(trimmed.numpy()[inner], want.astype(np.float32)[inner], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mean", ROBUST, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_dtypes_and_shapes_stay(mean: Mean, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(5, 2, 3, generator=generator) * 9).to(dtype)
    states = [
        {"a": row, "t": row.t(), "none": row[:0], "number": row[0, 0]} for row in values
    ]  # t is not contiguous
    out = mean.combine(states, [1.0] * 5)
    assert {k: (v.dtype, v.shape) for k, v in out.items()} == {
        k: (v.dtype, v.shape) for k, v in states[0].items()
    }
    assert torch.equal(out["t"], out["a"].t())
    assert torch.equal(out["number"], out["a"][0, 0])
    cut = {"Median": 2, "TrimmedMean": round(5 * getattr(mean, "fraction", 0))}[type(mean).__name__]
    want = np.sort(values.to(torch.float64).numpy(), axis=0)[cut : 5 - cut].mean(axis=0)
    want = want if dtype.is_floating_point else np.round(want)
    assert torch.equal(out["a"], torch.from_numpy(want).to(dtype))


def test_a_counter_is_rounded() -> None:
    assert of(Median(), 1, 2, 4, 9, dtype=torch.int64) == 3
    assert of(TrimmedMean(0), 1, 1, 3, dtype=torch.int64) == 2  # 5/3


@pytest.mark.parametrize("mean", ROBUST, ids=repr)
def test_blocks_change_nothing(mean: Mean, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(7, 11, 5, generator=torch.Generator().manual_seed(3))
    states = [{"w": row} for row in values]
    whole = mean.combine(states, [1.0] * 7)["w"]
    for size in (1, 20, 7 * 54):
        monkeypatch.setattr(robust, "_BLOCK", size)
        assert torch.equal(mean.combine(states, [1.0] * 7)["w"], whole)


@pytest.mark.parametrize("mean", ROBUST, ids=repr)
def test_the_order_of_clients_and_their_weights_do_not_count(mean: Mean) -> None:
    """Bit for bit, in the sum of what is left, too."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(20, 100, generator=generator) * torch.logspace(-6, 6, 20)[:, None]
    values[:7, 0], values[7:, 0] = -0.0, 0.0
    once = mean.combine([{"w": row} for row in values], [1.0] * 20)["w"]
    for _ in range(3):
        order = torch.randperm(20, generator=generator)
        weights = (torch.rand(20, generator=generator) + 0.1).tolist()
        again = mean.combine([{"w": row} for row in values[order]], weights)["w"]
        assert torch.equal(again.view(torch.int32), once.view(torch.int32))


# -- attacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [1e30, -1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("mean", "liars"), [(Median(), 4), (TrimmedMean(0.25), 2), (WeightedMean(), 0)], ids=repr
)
def test_so_many_liars_do_no_harm(mean: Mean, liars: int, lie: float) -> None:
    """The result stays among what the honest say. Beyond that a sum is lost, trimmed or not."""
    honest = torch.linspace(-1, 1, 9 - liars).tolist()
    assert -1 <= of(mean, *honest, *[lie] * liars) <= 1
    if not isinstance(mean, Median):
        assert not -1 <= of(mean, *honest, *[lie] * (liars + 2)) <= 1


def test_half_of_liars_break_a_median() -> None:
    assert of(Median(), 1, 2, 3, 1e30, 1e30, 1e30, 1e30) == 1e30


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.1, 0.5, 1, math.nan, "0.1", True])
def test_fractions_out_of_range_are_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"TrimmedMean: fraction must be from 0 to below 0\.5, got"):
        TrimmedMean(bad)


@pytest.mark.parametrize("mean", [*ROBUST, WeightedMean()], ids=repr)
def test_states_that_do_not_fit_are_refused(mean: Mean) -> None:
    one = {"w": torch.zeros(2)}
    with pytest.raises(InputError, match="at least one state"):
        mean.combine([], [])
    with pytest.raises(InputError, match="got 1 for 2"):
        mean.combine([one, one], [1.0])
    with pytest.raises(InputError, match="weights must be positive"):
        mean.combine([one, one], [1.0, 0.0])
    for other in ({"w": torch.zeros(3)}, {"v": torch.zeros(2)}, {"w": torch.zeros(2, dtype=torch.float64)}):
        with pytest.raises(InputError, match="same paths, shapes and dtypes"):
            mean.combine([one, other], [1.0, 1.0])
