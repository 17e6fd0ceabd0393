"""Mean, sample standard deviation and the paired t test, in plain Python.

scipy would be a dependency of many megabytes for one function, so Student's distribution is
computed here from the regularised incomplete beta function; the tests hold it to scipy's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric over seeds.

    Attributes:
        n: Number of values.
        mean: Their mean; NaN when n = 0.
        std: Sample standard deviation (n - 1), or None when n < 2.
    """

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class PairedTest:
    """Two-sided paired t test of "the mean difference is 0".

    Attributes:
        n: Number of pairs.
        t: Statistic; infinite when all differences are equal and not 0, NaN when all are 0.
        p: Two-sided p in [0, 1]; NaN when all differences are 0.
    """

    n: int
    t: float
    p: float


def summarize(values: Iterable[float]) -> Summary:
    """Return n, mean and sample std of finite values."""
    values = list(values)
    n = len(values)
    if n == 0:
        return Summary(0, float("nan"), None)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None)
    return Summary(n, mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)))


def paired_t_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Test whether ``a`` and ``b``, paired by position, differ in the mean.

    Args:
        a: Values of one row, one per seed.
        b: Values of the other row for the same seeds in the same order.

    Returns:
        t = mean(d) / (std(d) / sqrt(n)) with d = a - b, and p = P(abs(T) >= abs(t)) for Student's T
        with n - 1 degrees of freedom.

    Raises:
        ValueError: If the lengths differ or there are fewer than two pairs.

    Reference:
        p = I_x(df / 2, 1 / 2) with x = df / (df + t^2): Abramowitz & Stegun 26.7.1 with 26.5.27.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"A paired test needs two rows of equal length >= 2, got {len(a)} and {len(b)} values."
        )
    differences = [x - y for x, y in zip(a, b, strict=True)]
    summary = summarize(differences)
    # Differences that are equal up to the rounding of the subtraction have no spread to test
    # against.
    if summary.std <= 1e-12 * max(map(abs, (*a, *b))):
        is_zero = abs(summary.mean) <= 1e-12 * max(map(abs, (*a, *b)))
        return PairedTest(
            summary.n,
            math.nan if is_zero else math.copysign(math.inf, summary.mean),
            math.nan if is_zero else 0.0,
        )
    t = summary.mean / (summary.std / math.sqrt(summary.n))
    df = summary.n - 1
    return PairedTest(summary.n, t, regularized_beta(df / (df + t * t), df / 2, 0.5))


def regularized_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) for 0 <= x <= 1 and a, b > 0.

    Reference:
        The continued fraction of Abramowitz & Stegun 26.5.8, evaluated by Lentz's method as
        modified by Thompson and Barnett (1986); it converges fast for x < (a + 1) / (a + b + 2),
        and I_x(a, b) = 1 - I_{1-x}(b, a) covers the rest.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - regularized_beta(1.0 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300  # stands in for a denominator of exactly 0, as Lentz's method asks
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 + step * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + step / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value
    raise ArithmeticError(
        f"The continued fraction of I_x(a, b) did not converge for x={x}, a={a}, b={b}."
    )
