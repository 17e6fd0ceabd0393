"""How numbers read in every table: one decimal as in the papers, an explicit sign on differences, n
never hidden.
"""

from __future__ import annotations

import math

from .aggregate import Difference
from .seed_statistics import PairedTest, Summary

#: Stands where there is nothing to show.
NOTHING = "–"


def summary_text(summary: Summary, *, row_n: int, plus_minus: str = " ± ") -> str:
    """Return ``57.0 ± 0.2``; without the spread when n = 1; with its own n where that is not the
    row's.

    Args:
        summary: What to show, in points (0-100).
        row_n: The n that the row's own column shows.
        plus_minus: Separator of mean and std.
    """
    if not summary.n:
        return NOTHING
    text = (
        f"{summary.mean:.1f}"
        if summary.std is None
        else f"{summary.mean:.1f}{plus_minus}{summary.std:.1f}"
    )
    return text if summary.n == row_n else f"{text} (n={summary.n})"


def signed_text(value: float, digits: int = 1) -> str:
    """Return ``+3.5``, ``-0.3`` or, where it rounds to nothing, ``0.0`` without a sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def difference_text(difference: Difference | None) -> str:
    """Return the signed difference, or a dash where there is none."""
    return NOTHING if difference is None else signed_text(difference.value)


def p_text(test: PairedTest | None) -> str:
    """Return the p value with two significant figures of the paired test, or a dash below three
    common seeds.
    """
    if test is None or math.isnan(test.p):
        return NOTHING
    text = "<0.001" if test.p < 0.001 else f"{test.p:.3f}" if test.p < 0.1 else f"{test.p:.2f}"
    return f"{text} (n={test.n})"
