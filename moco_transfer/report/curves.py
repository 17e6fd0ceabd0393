"""Curves over iterations: read metrics.json of a table's runs and take mean and std over seeds.

Conventions:
    A point is (iteration, value); iterations as the run logged them, AP on 0-100, the loss as the
    run logged it. A seed's noisy training loss is averaged in bins of equal width before the spread
    over seeds is taken: the band shows how far seeds differ, not how far one batch differs from the
        next.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .aggregate import Row
from .records import METRICS_FILE, Problem, RunRecord
from .seed_statistics import summarize

#: Loss curves have at most this many points.
MAX_BINS = 60
#: A larger value is damage: no float32 loss has it, and its square would not fit a float.
_LARGEST = 1e39

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One row's curve over iterations.

    Attributes:
        iterations: Where the curve has a value, rising.
        mean: Mean over the seeds that have a value there.
        std: Sample standard deviation (n - 1) there; 0.0 where only one seed has a value, so that a
            band closes.
        n: Number of seeds that have a value there.
    """

    iterations: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n: tuple[int, ...]


def metric_curve(row: Row, kind: str, metric: str) -> tuple[Curve, list[Problem]]:
    """Return the mean of an evaluation metric over iterations, which ends at the value of
    results.json.

    Args:
        row: The row whose averaged runs are read.
        kind: ``"bbox"``, ``"segm"``, ...
        metric: ``"AP"``, ...

    Returns:
        The curve, and one problem for each run whose metrics.json cannot be read.
    """
    series, problems = [], []
    for run in row.runs:
        points, problem = _read_points(run, f"{kind}/{metric}")
        problems += [problem] if problem else []
        final = run.value(kind, metric)
        # The last evaluation may have been logged under the last iteration, counted from 0 or from
        # 1.
        points = [point for point in points if point[0] < run.iterations - 1]
        if final is not None and math.isfinite(final):
            points.append((run.iterations, final))
        series.append(points)
    return mean_curve(series), problems


def loss_curve(row: Row, key: str = "total_loss") -> tuple[Curve, list[Problem]]:
    """Return the mean training loss over iterations, in bins; problems as in :func:`metric_curve`."""
    read = [_read_points(run, key) for run in row.runs]
    series = [points for points, _ in read]
    end = max((points[-1][0] for points in series if points), default=0)
    return mean_curve([bin_means(points, end=end) for points in series]), [
        problem for _, problem in read if problem
    ]


def bin_means(points: Points, *, end: float, num_bins: int = MAX_BINS) -> Points:
    """Average the points of one seed in bins of equal width over (0, ``end``].

    Args:
        points: (iteration, value) with rising iterations.
        end: Right edge of the last bin, the same for all seeds so that their bins line up.
        num_bins: Number of bins.

    Returns:
        (middle of the bin, mean value) for each bin that holds a point; the points themselves when
        there are no more than ``num_bins``.
    """
    if len(points) <= num_bins or end <= 0:
        return list(points)
    width = end / num_bins
    bins: dict[int, list[float]] = {}
    for iteration, value in points:
        bins.setdefault(min(int(iteration / width), num_bins - 1), []).append(value)
    return [
        ((index + 0.5) * width, math.fsum(values) / len(values))
        for index, values in sorted(bins.items())
    ]


def mean_curve(series: Sequence[Points]) -> Curve:
    """Return mean, std and n over seeds at every iteration at which some seed has a value."""
    at: dict[float, list[float]] = {}
    for points in series:
        for iteration, value in points:
            at.setdefault(iteration, []).append(value)
    iterations = sorted(at)
    summaries = [summarize(at[iteration]) for iteration in iterations]
    return Curve(
        tuple(iterations),
        tuple(summary.mean for summary in summaries),
        tuple(summary.std or 0.0 for summary in summaries),
        tuple(summary.n for summary in summaries),
    )


def read_series(file: Path, keys: Sequence[str]) -> tuple[dict[str, Points], Problem | None]:
    """Read some columns of a metrics.json.

    Args:
        file: One JSON object per line, key ``iteration``.
        keys: Names of the columns.

    Returns:
        The finite values of each column that has some, by rising iteration (a line that a resumed
        run wrote again replaces the old one), and a problem when the file cannot be read or holds
        damaged lines.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        return {}, Problem(str(file), f"cannot be read ({reason}); the run has no curve.")
    found: dict[str, dict[float, float]] = {}
    damaged = 0
    for line in lines:
        try:
            entry = json.loads(line)
            for key in keys:
                value = entry.get(key)
                if value is not None and -_LARGEST < value < _LARGEST:
                    found.setdefault(key, {})[_iteration(entry)] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += bool(line.strip())
    problem = (
        Problem(str(file), f"{damaged} damaged lines are left out of the curve.")
        if damaged
        else None
    )
    return {key: sorted(points.items()) for key, points in found.items()}, problem


def _iteration(entry: dict) -> float:
    iteration = entry["iteration"]
    if not 0 <= iteration < _LARGEST:  # nor NaN
        raise ValueError("no iteration")
    return float(iteration)


def _read_points(run: RunRecord, key: str) -> tuple[Points, Problem | None]:
    nested = (  # how a run that was tested on several sets logs them
        f"{'+'.join(run.test_set)}/{key}"
    )
    found, problem = read_series(Path(run.folder) / METRICS_FILE, (key, nested))
    return found.get(key) or found.get(nested) or [], problem
