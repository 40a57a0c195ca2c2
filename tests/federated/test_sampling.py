"""Client sampling: what is drawn follows from seed and round alone, and has the distribution that it says.

Seeds are fixed, so no test is a matter of luck; the bounds are those that one seed in a million would miss.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from planc.errors import InputError
from runtime.federated.sampling import ByWeight, Everyone, Poisson, Sampling, Uniform

ALL: list[Sampling] = [Everyone(), Uniform(10), Poisson(0.2), ByWeight(10)]
ONES = [1.0] * 50


def counts(sampling: Sampling, weights: list[float], rounds: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """How often each client was drawn."""
    taken = np.zeros(len(weights))
    for round in range(rounds):
        taken[list(sampling.sample(round, len(weights), weights, seed))] += 1
    return taken


# -- what a draw depends on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Everyone(), tuple(range(12))),
        (Uniform(4), (1, 5, 7, 10)),
        (Poisson(0.4), (1, 5, 7, 10)),
        (ByWeight(4), (2, 3, 4, 9)),
    ],
    ids=repr,
)
def test_draws_stay_what_they_are(sampling: Sampling, want: tuple[int, ...]) -> None:
    """A run that is resumed with a later numpy, or a later version of this, draws the same cohorts."""
    assert sampling.sample(3, 12, [1, 2, 3, 4] * 3, 7) == want


@pytest.mark.parametrize("sampling", ALL, ids=repr)
def test_a_cohort_is_in_order_and_without_repeats(sampling: Sampling) -> None:
    for round in range(20):
        cohort = sampling.sample(round, 50, ONES, 0)
        assert list(cohort) == sorted(set(cohort))
        assert all(type(client) is int and 0 <= client < 50 for client in cohort)


@pytest.mark.parametrize("sampling", ALL[1:], ids=repr)
def test_draws_depend_on_seed_and_round_alone(sampling: Sampling) -> None:
    """Not on earlier draws, and not on the global generators, which they leave alone."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    drawn = {
        (seed, round): sampling.sample(round, 50, ONES, seed) for seed in range(4) for round in range(25)
    }
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)
    assert len(set(drawn.values())) > 95  # hardly ever twice the same
    torch.manual_seed(1)
    np.random.seed(1)
    for (seed, round), cohort in reversed(drawn.items()):
        assert sampling.sample(round, 50, ONES, seed) == cohort


def test_large_seeds_and_rounds() -> None:
    drawn = {
        Uniform(10).sample(round, 50, ONES, seed)
        for seed in (0, 1, 2**32, 2**63, 2**64 - 1)
        for round in (0, 1, 2**32, 2**64 - 1)
    }
    assert len(drawn) == 20


@pytest.mark.parametrize("sampling", ALL, ids=repr)
def test_who_is_not_available_does_not_change_the_others(sampling: Sampling) -> None:
    """Those who were drawn and are still there are drawn again; others come in for those who are gone."""
    for round in range(10):
        whole = set(sampling.sample(round, 50, ONES, 3))
        gone = set(range(0, 50, 3))
        rest = set(sampling.sample(round, 50, ONES, 3, set(range(50)) - gone))
        assert whole - gone <= rest
        assert not rest & gone
        if isinstance(sampling, (Uniform, ByWeight)):
            assert len(rest) == 10


@pytest.mark.parametrize("sampling", ALL, ids=repr)
def test_few_or_none_available(sampling: Sampling) -> None:
    assert sampling.sample(0, 50, ONES, 0, set()) == ()
    assert set(sampling.sample(0, 50, ONES, 0, frozenset({7, 3}))) <= {3, 7}
    if not isinstance(sampling, Poisson):
        assert sampling.sample(0, 50, ONES, 0, [7, 3, 7]) == (3, 7)


def test_a_million_clients() -> None:
    size = 10**6
    weights = np.ones(size).tolist()
    for sampling in (Uniform(1000), ByWeight(1000)):
        cohort = sampling.sample(5, size, weights, 0)
        assert len(set(cohort)) == 1000
        assert 4e5 < np.mean(cohort) < 6e5
    assert abs(len(Poisson(0.001).sample(5, size, weights, 0)) - 1000) < 160  # 5 standard deviations
    assert len(Everyone().sample(5, size, weights, 0)) == size


# -- distributions -------------------------------------------------------------------------------------------


def chi_square(taken: np.ndarray[Any, Any], probability: np.ndarray[Any, Any], rounds: int) -> float:
    """Of inclusions, each of variance p (1-p): distributed as chi-square with about len(taken) degrees."""
    return float(np.sum((taken - rounds * probability) ** 2 / (rounds * probability * (1 - probability))))


@pytest.mark.parametrize("sampling", [Uniform(10), Poisson(0.2), ByWeight(10)], ids=repr)
def test_all_are_as_likely(sampling: Sampling) -> None:
    """50 degrees of freedom: mean 50, and one in a million beyond 109 or below 16."""
    statistic = chi_square(counts(sampling, ONES, 3000), np.full(50, 0.2), 3000)
    assert 16 < statistic < 109


def test_all_pairs_are_as_likely() -> None:
    """3 of 6: each of the 20 cohorts in a twentieth of the rounds. 19 degrees: one in a million beyond 63."""
    rounds = 4000
    seen = Counter(Uniform(3).sample(round, 6, [1.0] * 6, 5) for round in range(rounds))
    assert set(seen) == set(combinations(range(6), 3))
    assert sum((n - rounds / 20) ** 2 / (rounds / 20) for n in seen.values()) < 63


def test_rounds_are_independent_of_each_other() -> None:
    """Cohorts of 10 of 50 have 2 clients in common on average, with a variance of 1.306."""
    drawn = [set(Uniform(10).sample(round, 50, ONES, 9)) for round in range(2001)]
    common = np.mean([len(a & b) for a, b in pairwise(drawn)])
    assert abs(common - 2) < 5 * (1.306 / 2000) ** 0.5


def test_poisson_cohorts_differ_in_size() -> None:
    """Binomial: mean 50 * 0.2 = 10, variance 8."""
    sizes = [len(Poisson(0.2).sample(round, 50, ONES, 2)) for round in range(3000)]
    assert abs(np.mean(sizes) - 10) < 5 * (8 / 3000) ** 0.5
    assert 7 < np.var(sizes) < 9
    assert Poisson(1).sample(0, 50, ONES, 2) == tuple(range(50))
    assert () in {Poisson(0.01).sample(round, 50, ONES, 2) for round in range(20)}


def test_one_by_weight_is_proportional_to_it() -> None:
    weights = [1.0, 2.0, 3.0, 4.0, 10.0]
    statistic = chi_square(counts(ByWeight(1), weights, 5000), np.array(weights) / 20, 5000)
    assert statistic < 36  # 5 degrees: one in a million


def test_two_by_weight_are_drawn_one_after_the_other() -> None:
    """Of the weights 1, 2, 3: first with 1/6, 2/6, 3/6, then among the two that are left.

    The first is in with 1/6 + 2/6 * 1/4 + 3/6 * 1/3 = 5/12, the second with 2/6 + 1/6 * 2/5 + 3/6 * 2/3 =
    11/15, the third with 3/6 + 1/6 * 3/5 + 2/6 * 3/4 = 17/20. They sum to 2.
    """
    taken = counts(ByWeight(2), [1.0, 2.0, 3.0], 6000) / 6000
    np.testing.assert_allclose(taken, [5 / 12, 11 / 15, 17 / 20], atol=5 * 0.5 / 6000**0.5)


def test_weights_count_by_their_ratio_and_zero_is_never() -> None:
    """Tiny and huge weights too: u ** (1 / w) itself would be 0 or 1 for them."""
    weights = [3.0, 0.0, 1.0, 2.0]
    for scale in (2.0**-600, 2.0**600):
        scaled = [w * scale for w in weights]
        for round in range(50):
            assert ByWeight(2).sample(round, 4, scaled, 0) == ByWeight(2).sample(round, 4, weights, 0)
    assert counts(ByWeight(4), weights, 10).tolist() == [10, 0, 10, 10]


def test_expected_sizes() -> None:
    assert [s.expected_size(50) for s in ALL] == [50, 10, 10, 10]
    for sampling in (Uniform(10), ByWeight(10)):
        with pytest.raises(InputError, match=r"\(10\) needs a population of at least 10 clients, got 4"):
            sampling.expected_size(4)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0), "Uniform: count is a whole number of at least 1, got 0"),
        (lambda: ByWeight(-3), "ByWeight: count is a whole number of at least 1, got -3"),
        (lambda: Uniform(2.5), "got 2.5"),
        (lambda: Uniform(True), "got True"),
        (lambda: Poisson(0), "Poisson: rate is a probability above 0, up to 1, got 0"),
        (lambda: Poisson(1.5), "got 1.5"),
        (lambda: Poisson(float("nan")), "got nan"),
        (lambda: Poisson("0.1"), "got '0.1'"),
        (lambda: Uniform(10).sample(0, 5, [1] * 5, 0), "needs a population of at least 10 clients, got 5"),
        (lambda: ByWeight(2).sample(0, 5, [1] * 4, 0), "a weight for each of 5 clients, got 4"),
        (lambda: ByWeight(2).sample(0, 3, [1, -1, 1], 0), "client 1 has -1.0"),
        (lambda: ByWeight(2).sample(0, 3, [1, 1, float("nan")], 0), "client 2 has nan"),
        (lambda: Uniform(2).sample(0, 5, [1] * 5, -1), "a seed is a whole number from 0 .*, got -1"),
        (lambda: Uniform(2).sample(0, 5, [1] * 5, 2**64), "a seed is"),
        (lambda: Uniform(2).sample(0, 5, [1] * 5, 0.5), "a seed is"),
        (lambda: Poisson(0.5).sample(-1, 5, [1] * 5, 0), "a round's number is .*, got -1"),
        (lambda: Everyone().sample(0, 5, [1] * 5, 0, {2, 5}), "numbered from 0 to 4, but 5 is available"),
        (lambda: Everyone().sample(0, 5, [1] * 5, 0, {-2, 1}), "numbered from 0 to 4, but -2 is available"),
        (lambda: Everyone().sample(0, -5, [], 0), "a population's size is a whole number"),
    ],
)
def test_bad_numbers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
