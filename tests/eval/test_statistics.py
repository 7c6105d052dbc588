"""Intervals and tests against published values and brute force."""

from fractions import Fraction
from itertools import product
from math import comb, sqrt

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llava_s2.eval.statistics import (
    bootstrap_interval,
    mcnemar_exact,
    paired_bootstrap,
    paired_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3 (score, no continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_interval(correct, count, low, high):
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_where_the_score_test_turns(case):
    correct, count = case
    low, high = wilson_interval(correct, count, z=1.96)
    assert 0 <= low <= correct / count <= high <= 1
    for end in (low, high):
        # The score test of p = end gives |share - p| = z * sqrt(p (1 - p) / n); at 0 and 1 the interval is cut off.
        if 0 < end < 1:
            assert abs(correct / count - end) == pytest.approx(1.96 * sqrt(end * (1 - end) / count), rel=1e-6)


def test_wilson_refuses_what_is_no_proportion():
    for correct, count in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson_interval(correct, count)


def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_uneven():
    for only_a, only_b in product(range(7), repeat=2):
        tosses = list(product((0, 1), repeat=only_a + only_b))
        uneven = [t for t in tosses if abs(2 * sum(t) - len(t)) >= abs(only_a - only_b)]
        assert mcnemar_exact(only_a, only_b) == pytest.approx(len(uneven) / len(tosses), abs=1e-15)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_in_exact_arithmetic(only_a, only_b):
    n, k = only_a + only_b, min(only_a, only_b)
    exact = min(Fraction(1), Fraction(2 * sum(comb(n, i) for i in range(k + 1)), 2**n))
    assert mcnemar_exact(only_a, only_b) == float(exact)
    assert mcnemar_exact(only_a, only_b) == mcnemar_exact(only_b, only_a)


def test_paired_difference_by_hand():
    # 100 questions, B alone right on 15, A alone on 5: Wald's formula with 5.5 and 15.5 of 102.
    difference, (low, high) = paired_difference(5, 15, 100)
    half = 1.959963984540054 * sqrt(21 - 100 / 102) / 102
    assert difference == pytest.approx(0.10)
    assert (low, high) == pytest.approx((10 / 102 - half, 10 / 102 + half), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_paired_difference_swaps_sign_with_the_runs(only_a, only_b, both):
    count = only_a + only_b + both
    forth, (low, high) = paired_difference(only_a, only_b, count)
    back, (other_low, other_high) = paired_difference(only_b, only_a, count)
    assert (back, other_low, other_high) == pytest.approx((-forth, -high, -low))
    assert -1 <= low <= high <= 1


def test_paired_difference_refuses_more_discordant_questions_than_there_are():
    with pytest.raises(ValueError, match="discordant"):
        paired_difference(3, 3, 5)


def test_bootstrap_of_right_and_wrong_answers_is_binomial():
    # The number right in a resample of 40 with 30 right is binomial(40, 3/4): its quantiles from the exact sums.
    ways = [comb(40, k) * 3**k / 4**40 for k in range(41)]
    quantiles = [next(k for k in range(41) if sum(ways[: k + 1]) >= q) / 40 for q in (0.025, 0.975)]
    assert bootstrap_interval([1.0] * 30 + [0.0] * 10) == pytest.approx(quantiles, abs=1 / 40)


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=40))
@settings(deadline=None, max_examples=20)
def test_bootstrap_holds_the_mean_and_stays_in_range(values):
    assume(len(set(values)) > 1)
    low, high = bootstrap_interval(values)
    mean = sum(values) / len(values)
    assert min(values) - 1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= max(values) + 1e-9


def test_equal_grades_are_not_certain():
    assert bootstrap_interval([0.0] * 5) == wilson_interval(0, 5)
    assert bootstrap_interval([1.0] * 3) == wilson_interval(3, 3)
    assert bootstrap_interval([0.5] * 4) == pytest.approx((0.15, 0.85), abs=0.005)  # 2 of 4, as tabled


def test_paired_bootstrap_against_the_normal_approximation():
    differences = [1.0] * 300 + [0.0] * 500 + [-0.3] * 200
    mean, (low, high), p = paired_bootstrap(differences)
    deviation = sqrt(sum((d - mean) ** 2 for d in differences) / 1000)
    assert mean == pytest.approx(0.24)
    assert (low, high) == pytest.approx(
        (mean - 1.96 * deviation / sqrt(1000), mean + 1.96 * deviation / sqrt(1000)), abs=3e-3
    )
    assert p < 0.001
    assert paired_bootstrap([0.5, -0.5] * 50)[2] > 0.5
    assert paired_bootstrap([0.0] * 10) == (0.0, (0.0, 0.0), 1.0)


def test_bootstrap_refuses_nothing():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
