"""Exact sums: the same bits in any order, close to the true mean, and nothing of what is no number."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import InputError
from runtime.sums import MAX_SUM, Accumulator, Grid, add_sums, fits

F32, F64, I64 = torch.float32, torch.float64, torch.int64
State = dict[str, torch.Tensor]


def state_of(seed: int, dtype: torch.dtype = F32, spread: float = 1.0) -> State:
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=made, dtype=F64) * spread
    bias = torch.randn((), generator=made, dtype=F64) * 1e-3
    count = torch.randint(0, 1000, (2,), generator=made)
    return {"weight": weight.to(dtype), "bias": bias.to(dtype), "none": torch.empty(0, 3), "count": count}


def add_up(grid: Grid, states: list[State], weights: list[float]) -> State:
    like = states[0]
    adder = Accumulator(
        [t.shape for t in like.values()],
        [t.dtype for t in like.values()],
        [grid.exponents[path] for path in like],
        grid.limit,
        math.fsum(weights),
        torch.device("cpu"),
    )
    for state, weight in zip(states, weights, strict=True):
        assert adder.add(list(state.values()), weight)
    return dict(zip(like, adder.sums(), strict=True))


def expected(grid: Grid, states: list[State], weights: list[float]) -> dict[str, list[int]]:
    """The same in Python's whole numbers."""
    out: dict[str, list[int]] = {}
    for path, exponent in grid.exponents.items():
        columns = zip(*(state[path].to(F64).flatten().tolist() for state in states), strict=True)
        out[path] = [
            sum(
                round(value * (weight * 2.0**exponent)) for value, weight in zip(column, weights, strict=True)
            )
            for column in columns
        ]
    return out


WEIGHTS = st.one_of(st.integers(1, 5000).map(float), st.floats(1e-3, 1e3))


@given(
    members=st.lists(st.tuples(st.integers(0, 99), WEIGHTS), min_size=2, max_size=12),
    dtype=st.sampled_from([F32, F64]),
    split=st.integers(1, 11),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_order_and_any_split_gives_the_same_bits(
    members: list[tuple[int, float]], dtype: torch.dtype, split: int, order: object
) -> None:
    states = [state_of(seed, dtype) for seed, _ in members]
    weights = [weight for _, weight in members]
    total = math.fsum(weights)
    grid = Grid.of(states[0], total)
    whole = add_up(grid, states, weights)
    assert {path: t.flatten().tolist() for path, t in whole.items()} == expected(grid, states, weights)
    places = list(range(len(members)))
    order.shuffle(places)  # type: ignore[attr-defined]
    parts = [part for part in (places[:split], places[split:]) if part]
    together: State = {}
    for part in parts:
        some = add_up(grid, [states[i] for i in part], [weights[i] for i in part])
        together = add_sums(together, some)
    assert all(torch.equal(whole[path], together[path]) for path in whole)
    mean = grid.mean(whole, total, states[0])
    for path, like in states[0].items():
        assert (mean[path].dtype, mean[path].shape) == (like.dtype, like.shape)
        bits = 51 if dtype is F32 else 62
        bound = len(members) * 2.0**-bits * grid.limit * 2.0 ** -grid.exponents[path]
        for i, got in enumerate(mean[path].to(F64).flatten().tolist()):
            values = [state[path].to(F64).flatten()[i].item() for state in states]
            true = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / total
            rounding = 0.5 if not like.is_floating_point() else torch.finfo(like.dtype).eps * abs(true)
            assert abs(got - true) <= bound + rounding + 1e-15 * abs(true)


def test_the_grid_is_made_of_the_largest_elements_and_the_weight_alone() -> None:
    state = {"a": torch.tensor([3.0, -5.0]), "b": torch.tensor([0.0])}
    grid = Grid.of(state, 100.0)
    same = {"b": torch.tensor([0.9]), "a": torch.tensor([-7.9, 0.1])}
    assert Grid.of(same, 127.0) == grid
    assert grid.limit == 2.0**44
    assert grid.exponents == {"a": 44 - 3 - 10, "b": 44 - 10}
    assert Grid.of(state, 64.0, headroom=4) == Grid({"a": 45 - 3 - 4, "b": 45 - 4}, 2.0**45)
    assert Grid.of({"a": torch.tensor([1.0], dtype=F64)}, 1.0) == Grid({"a": 52}, 2.0**62)
    for weight in (1e-9, 0.7, 3.0, 1e6):
        for dtype in (F32, F64):
            assert fits([weight], Grid.of(state_of(1, dtype), weight).limit)


def test_a_small_weight_counts_as_much_as_a_large_one() -> None:
    states = [state_of(seed) for seed in range(3)]
    means = []
    for unit in (1.0, 2.0**-20):
        weights = [unit, 2 * unit, 5 * unit]
        grid = Grid.of(states[0], 8 * unit)
        means.append(grid.mean(add_up(grid, states, weights), 8 * unit, states[0]))
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64])
def test_the_mean_of_one_is_itself(dtype: torch.dtype) -> None:
    state = state_of(3, dtype)
    grid = Grid.of(state, 7.0)
    mean = grid.mean(add_up(grid, [state], [7.0]), 7.0, state)
    torch.testing.assert_close(mean, state, rtol=0, atol=1e-11)


def test_whole_numbers_and_flags_are_rounded() -> None:
    states = [{"n": torch.tensor([n]), "flag": torch.tensor([n > 1])} for n in (1, 2, 2**30 + 1)]
    grid = Grid.of(states[2], 3.0)
    mean = grid.mean(add_up(grid, states, [1.0] * 3), 3.0, states[0])
    assert mean["n"].tolist() == [round((2**30 + 4) / 3)]
    assert mean["n"].dtype is I64
    assert mean["flag"].tolist() == [True]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**10 * 8.5, -(2.0**10) * 8.5])
@pytest.mark.parametrize("path", ["weight", "bias"])
def test_what_is_no_number_or_out_of_bounds_is_not_added(path: str, bad: float, dtype: torch.dtype) -> None:
    good = {"weight": torch.tensor([5.0, 1.0], dtype=dtype), "bias": torch.tensor([1.0], dtype=dtype)}
    grid = Grid.of(good, 4.0)
    adder = Accumulator(
        [torch.Size([2]), torch.Size([1])],
        [dtype, dtype],
        [grid.exponents["weight"], grid.exponents["bias"]],
        grid.limit,
        4.0,
        torch.device("cpu"),
    )
    spoilt = {**good, path: torch.full_like(good[path], bad)}
    assert adder.add(list(good.values()), 1.0)
    before = [t.clone() for t in adder.sums()]
    assert not adder.add(list(spoilt.values()), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, adder.sums(), strict=True))
    edge = {"weight": torch.full((2,), 2.0**10 * 8, dtype=dtype), "bias": good["bias"]}
    assert adder.add(list(edge.values()), 3.0)


def test_no_sum_can_overflow() -> None:
    assert fits([2.0**31, 2.0**31], 2.0**30)
    assert not fits([2.0**31, 2.0**31, 1.0], 2.0**30)
    assert not fits([1e308, 1e308], 1.0)
    assert not fits([1.0], float("inf"))
    grid = Grid.of({"a": torch.ones(1, dtype=F64)}, 1024.0)
    top = {"a": torch.tensor([grid.limit * 2.0 ** -grid.exponents["a"]], dtype=F64)}
    total = add_up(grid, [top] * 1024, [1.0] * 1024)["a"]
    assert total.tolist() == [MAX_SUM]
    assert Fraction(grid.limit) * 1024 == MAX_SUM


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 2.0**42])
def test_a_weight_that_cannot_be(weight: float) -> None:
    with pytest.raises(InputError, match="total weight"):
        Grid.of(state_of(1), weight)


def test_a_model_that_is_no_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="'weight' has elements that are NaN or infinite"):
        Grid.of({"weight": torch.tensor([1.0, float("nan")])}, 1.0)


def test_sums_of_different_things_are_refused() -> None:
    one = {"a": torch.ones(2, dtype=I64)}
    assert add_sums({}, one) == add_sums(one, {}) == one
    for other in ({"b": torch.ones(2, dtype=I64)}, {"a": torch.ones(3, dtype=I64)}):
        with pytest.raises(InputError, match="different things"):
            add_sums(one, other)
    grid = Grid.of({"a": torch.ones(2)}, 1.0)
    with pytest.raises(InputError, match="no 'b' on the grid; it has a"):
        grid.mean({"b": torch.ones(2, dtype=I64)}, 1.0, {"b": torch.ones(2)})
    with pytest.raises(InputError, match="nobody contributed"):
        grid.mean(one, 0.0, {"a": torch.ones(2)})


@pytest.mark.parametrize(("dtype", "headroom"), [(F32, 10), (F64, 10), (F32, 20)])
def test_large_states_are_added_up_piece_by_piece_to_the_same_sums(dtype: torch.dtype, headroom: int) -> None:
    made = torch.Generator().manual_seed(0)
    shapes = {"large": (300, 500), "other": (70_001,), "scaled": (5,)}
    states = [
        {path: torch.randn(s, generator=made).to(dtype) for path, s in shapes.items()} for _ in range(2)
    ]
    for state in states:
        state["scaled"] *= 1000
    grid = Grid.of(states[0], 8.0, headroom)
    found = add_up(grid, states, [3.0, 5.0])
    for path, exponent in grid.exponents.items():
        terms = [
            (s[path].to(F64) * (w * 2.0**exponent)).round().to(I64)
            for s, w in zip(states, (3.0, 5.0), strict=True)
        ]
        assert torch.equal(found[path], terms[0] + terms[1])
