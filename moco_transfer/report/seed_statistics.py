"""Mean, sample standard deviation and the paired t test, without scipy as a dependency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean (NaN when n = 0) and sample standard deviation (n - 1; None when n < 2) over seeds."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class PairedTest:
    """Two-sided paired t test: t is infinite for equal differences, t and p are NaN for zeros."""

    n: int
    t: float
    p: float


def summarize(values: Iterable[float]) -> Summary:
    """Return n, mean and sample std of finite values."""
    values = list(values)
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2:
        return Summary(n, mean, None)
    return Summary(n, mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)))


def paired_t_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Test whether ``a`` and ``b``, paired by position (seed), differ in the mean.

    t = mean(d) / (std(d) / sqrt(n)) with d = a - b, and p = P(abs(T) >= abs(t)) for Student's T
    with n - 1 degrees of freedom.

    Raises:
        ValueError: If the lengths differ or there are fewer than two pairs.

    Reference:
        p = I_x(df / 2, 1 / 2) with x = df / (df + t^2): Abramowitz & Stegun 26.7.1 with 26.5.27.
    """
    if len(a) != len(b) or len(a) < 2:
        message = "A paired test needs two rows of equal length >= 2"
        raise ValueError(f"{message}, got {len(a)} and {len(b)} values.")
    difference = summarize(x - y for x, y in zip(a, b, strict=True))
    n, mean, std = difference.n, difference.mean, difference.std or 0.0
    rounding = 1e-12 * max(map(abs, (*a, *b)))  # of the subtraction: no spread to test against
    if std <= rounding:
        if abs(mean) <= rounding:
            return PairedTest(n, math.nan, math.nan)
        return PairedTest(n, math.copysign(math.inf, mean), 0.0)
    t, df = mean / (std / math.sqrt(n)), n - 1
    return PairedTest(n, t, regularized_beta(df / (df + t * t), df / 2, 0.5))


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
    log_gammas = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_gammas + a * math.log(x) + b * math.log1p(-x))
    return front * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    def nonzero(value: float) -> float:  # as Lentz's method asks
        return value if abs(value) > 1e-300 else 1e-300

    c, d = 1.0, 1.0 / nonzero(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 / nonzero(1.0 + step * d)
            c = nonzero(1.0 + step / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"I_x(a, b) did not converge for x={x}, a={a}, b={b}.")
