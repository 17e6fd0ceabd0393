"""Comparisons of initialisations over several data sets, without scipy as a dependency.

Source: J. Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006):
the sign test (Sec. 3.1.4), Wilcoxon's signed-rank test (3.1.3), Friedman's test in the form of
Iman and Davenport (3.2.2), Holm's correction for comparisons with one control (3.2.2).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..seed_statistics import f_tail, summarize, two_sided_p

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all columns are equal: chi square with its correction for ties, and F
    and p of Iman and Davenport.
    """

    chi_square: float
    f: float
    p: float


def ranks_of(scores: Sequence[float]) -> list[float]:
    """Return the rank of each score: 1 for the highest; equal scores share the mean rank."""
    above = [sum(other > score for other in scores) for score in scores]
    equal = [sum(other == score for other in scores) for score in scores]
    return [1 + a + (e - 1) / 2 for a, e in zip(above, equal, strict=True)]


def friedman(ranks: Sequence[Sequence[float]]) -> Friedman | None:
    """Return Friedman's test of N rows (data sets) of k ranks; None for N < 2 or k < 3, where it
    says nothing that the other tests do not.
    """
    n, k = len(ranks), len(ranks[0]) if ranks else 0
    if n < 2 or k < 3:
        return None
    sums = [math.fsum(column) for column in zip(*ranks, strict=True)]
    ties = sum(t**3 - t for row in ranks for t in Counter(row).values())
    correction = 1 - ties / (n * k * (k * k - 1))
    if correction <= 0:  # every row is one tie
        return Friedman(0.0, 0.0, 1.0)
    spread = math.fsum((total - n * (k + 1) / 2) ** 2 for total in sums)
    chi_square = 12 * spread / (n * k * (k + 1)) / correction
    rest = n * (k - 1) - chi_square
    if rest <= 1e-9 * chi_square:  # every row has the same order
        return Friedman(chi_square, math.inf, 0.0)
    f = (n - 1) * chi_square / rest
    return Friedman(chi_square, f, f_tail(f, k - 1, (k - 1) * (n - 1)))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p of wins against losses; ties are left out beforehand."""
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def wilcoxon(differences: Sequence[float]) -> float:
    """Return the exact two-sided p of Wilcoxon's signed-rank test; zeros are left out.

    Each sign is equally likely; the distribution is that of the ranks at hand, ties included.
    """
    values = [value for value in differences if value]
    doubled = [round(2 * rank) for rank in ranks_of([-abs(value) for value in values])]
    ways = [1]  # how many choices of signs give each sum of the positive ranks
    for rank in doubled:
        longer = [*ways, *[0] * rank]
        for at, count in enumerate(ways):
            longer[at + rank] += count
        ways = longer
    positive = sum(r for r, value in zip(doubled, values, strict=True) if value > 0)
    least = min(positive, sum(doubled) - positive)
    return min(1.0, 2 * sum(ways[: least + 1]) / sum(ways))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down procedure."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(order), 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * p_values[index]))
        corrected[index] = largest
    return corrected


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of the mean; None for fewer than two values."""
    found = summarize(values)
    if found.std is None:
        return None
    half = t_quantile(found.n - 1) * found.std / math.sqrt(found.n)
    return found.mean - half, found.mean + half


def t_quantile(df: int) -> float:
    """Return t with P(abs(T) >= t) = 0.05 for Student's T with ``df`` degrees of freedom."""
    low, high = 0.0, 16.0  # 12.7 for one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, df) > 1 - CONFIDENCE else (low, middle)
    return high
