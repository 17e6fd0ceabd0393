"""Mean, sample standard deviation and the paired t test, without scipy as a dependency."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


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

    t = mean(d) / (std(d) / sqrt(n)) with d = a - b; n - 1 degrees of freedom, n >= 2.
    """
    difference = summarize(x - y for x, y in zip(a, b, strict=True))
    n, mean, std = difference.n, difference.mean, difference.std or 0.0
    rounding = 1e-12 * max(map(abs, (*a, *b)))  # of the subtraction: no spread to test against
    if std <= rounding:
        if abs(mean) <= rounding:
            return PairedTest(n, math.nan, math.nan)
        return PairedTest(n, math.copysign(math.inf, mean), 0.0)
    t = mean / (std / math.sqrt(n))
    return PairedTest(n, t, two_sided_p(t, n - 1))


def two_sided_p(t: float, df: int) -> float:
    """Return P(abs(T) >= abs(t)) for Student's T with ``df`` degrees of freedom."""
    return f_tail(t * t, 1, df)


def f_tail(f: float, df1: int, df2: int) -> float:
    """Return P(F >= f) for Fisher's F with ``df1`` and ``df2`` degrees of freedom.

    With tan(angle) = sqrt(df2 / (df1 f)) it is an integral of sin^(df2 - 1) cos^(df1 - 1) from 0 to
    the angle, by Gauss and Legendre's rule; small values keep their relative precision.
    """
    import numpy as np

    nodes, weights = _legendre()
    half = math.atan2(math.sqrt(df2), math.sqrt(df1 * f)) / 2
    angles = half * (1 + nodes)
    log_beta = math.lgamma(df1 / 2) + math.lgamma(df2 / 2) - math.lgamma((df1 + df2) / 2)
    values = np.sin(angles) ** (df2 - 1) * np.cos(angles) ** (df1 - 1)
    return float(2 * math.exp(-log_beta) * half * (weights @ values))


@functools.cache
def _legendre() -> Any:
    import numpy as np  # takes 0.1 s, and few calls of `report` need it

    return np.polynomial.legendre.leggauss(64)
