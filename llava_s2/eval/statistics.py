"""The few statistics that a table of graded answers needs: exact where that is cheap, and without scipy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson_interval(correct: float, count: int, z: float = Z_95) -> Interval:
    """Score interval of a proportion (Wilson 1927): honest for few questions and near 0 or 1, never outside [0, 1].

    Args:
        correct: number of successes, or sum of grades from 0 to 1, which vary less; 0 <= correct <= count.
        count: number of trials, at least 1.
        z: normal quantile of the confidence level.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"{correct} of {count} is no proportion")
    share = correct / count
    denominator = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # The ends meet 0 and 1 exactly there; rounding alone would miss them.
    return Interval(0.0 if correct == 0 else centre - half, 1.0 if correct == count else centre + half)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test: were the questions that one run alone got right split by a fair coin?

    Args:
        only_a: questions that only run A answered correctly.
        only_b: questions that only run B answered correctly.

    Returns:
        P(a binomial(only_a + only_b, 1/2) at least as uneven as seen), 1.0 without any such question.
    """
    discordant = only_a + only_b
    # Sums the binomial coefficients of the smaller tail; integers until the one division, so exact for any count.
    ways = tail = 1
    for k in range(min(only_a, only_b)):
        ways = ways * (discordant - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**discordant)


def paired_difference(only_a: int, only_b: int, count: int, z: float = Z_95) -> tuple[float, Interval]:
    """Accuracy of B minus accuracy of A on the same questions, and its interval.

    The interval is Agresti and Min's (2005) adjusted Wald interval for matched pairs: Wald's after half a question is
    added to each of the four cells, which repairs its coverage for few discordant questions.

    Args:
        only_a: questions that only run A answered correctly.
        only_b: questions that only run B answered correctly.
        count: all questions, at least 1.
        z: normal quantile of the confidence level.
    """
    if count < max(1, only_a + only_b):
        raise ValueError(f"{only_a} + {only_b} discordant questions of {count}")
    total, a, b = count + 2, only_a + 0.5, only_b + 0.5
    centre = (b - a) / total
    half = z / total * math.sqrt(a + b - (b - a) ** 2 / total)
    return (only_b - only_a) / count, Interval(max(-1.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """95 % percentile bootstrap interval of a mean (Efron 1979), from 10,000 resamples with a fixed seed.

    Of values that are all equal every resample is the same and would look certain: of them it is Wilson's interval.

    Args:
        values: at least one, from 0 to 1.
    """
    if len(values) and min(values) == max(values):
        return wilson_interval(len(values) * values[0], len(values))
    low, high = np.quantile(_resampled_means(values), (0.025, 0.975))
    return Interval(float(low), float(high))


def paired_bootstrap(differences: Sequence[float]) -> tuple[float, Interval, float]:
    """Mean of what B scored more than A on the same questions, its 95 % interval and a p-value.

    Args:
        differences: of each question, at least one.

    Returns:
        The mean, the percentile bootstrap interval, and two-sided p: twice the share of resampled means on the other
        side of 0 or on it, counting the observed one, at most 1.
    """
    means = _resampled_means(differences)
    low, high = np.quantile(means, (0.025, 0.975))
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    return math.fsum(differences) / len(differences), Interval(float(low), float(high)), p


def _resampled_means(values: Sequence[float]) -> np.ndarray:
    """Means of resamples with replacement, (10,000,); of n values with k distinct ones in O(k) each."""
    if not len(values):
        raise ValueError("no values")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=_RESAMPLES)
    return drawn @ distinct / len(values)
