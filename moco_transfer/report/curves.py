"""Curves over iterations: read metrics.json of a table's runs and take mean and std over seeds.

A point is (iteration, value); iterations as the run logged them, AP on 0-100. A seed's noisy
training loss is averaged in bins of equal width before the spread over seeds is taken: the band
shows how far seeds differ, not how far one batch differs from the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..runtime.files import regular
from .aggregate import Row
from .records import METRICS_FILE, Problem, RunRecord, metric_rows
from .seed_statistics import Summary, summarize

#: Loss curves have at most this many points.
MAX_BINS = 60
_LARGEST = 1e39  # a larger value is damage: no float32 loss has it

Points = list[tuple[float, float]]
Curve = dict[float, Summary]  # over seeds, at rising iterations


def metric_curve(row: Row, kind: str, metric: str) -> tuple[Curve, list[Problem]]:
    """Return the mean of an evaluation metric over iterations, which ends at the value of
    results.json, and a problem for each run whose metrics.json cannot be read.
    """
    series, problems = [], []
    for run in row.runs:
        points, found = _read_points(run, f"{kind}/{metric}")
        problems += found
        final = run.value(kind, metric)
        # The last evaluation may be logged under the last iteration, counted from 0 or from 1.
        points = [point for point in points if point[0] < run.iterations - 1]
        if final is not None and math.isfinite(final):
            points.append((run.iterations, final))
        series.append(points)
    return mean_curve(series), problems


def loss_curve(row: Row, key: str = "total_loss") -> tuple[Curve, list[Problem]]:
    """Return the mean training loss over iterations, in bins; problems as in `metric_curve`."""
    read = [_read_points(run, key) for run in row.runs]
    end = max((points[-1][0] for points, _ in read if points), default=0)
    curve = mean_curve([bin_means(points, end=end) for points, _ in read])
    return curve, [problem for _, problems in read for problem in problems]


def bin_means(points: Points, *, end: float, num_bins: int = MAX_BINS) -> Points:
    """Return (middle, mean) of the bins of equal width over (0, ``end``] that hold a point; the
    points themselves when there are no more than ``num_bins``.
    """
    if len(points) <= num_bins or end <= 0:
        return list(points)
    width = end / num_bins
    bins: dict[int, list[float]] = {}
    for iteration, value in points:
        bins.setdefault(min(int(iteration / width), num_bins - 1), []).append(value)
    return [((i + 0.5) * width, math.fsum(v) / len(v)) for i, v in sorted(bins.items())]


def mean_curve(series: Sequence[Points]) -> Curve:
    """Return mean, std and n over seeds at every iteration at which some seed has a value."""
    at: dict[float, list[float]] = {}
    for iteration, value in (point for points in series for point in points):
        at.setdefault(iteration, []).append(value)
    return {iteration: summarize(at[iteration]) for iteration in sorted(at)}


def read_series(file: Path, keys: Sequence[str]) -> tuple[dict[str, Points], list[Problem]]:
    """Return the finite values of some columns of a metrics.json by rising iteration, and a problem
    for an unreadable file or damaged lines. Lines that a resumed run wrote again replace old ones.
    """
    try:
        text = regular(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        return {}, [Problem(str(file), f"cannot be read ({reason}); the run has no curve.")]
    found: dict[str, dict[float, float]] = {}
    rows = list(metric_rows(text))
    for row in filter(None, rows):
        for key in keys:
            value = row.get(key)
            if isinstance(value, (int, float)) and -_LARGEST < value < _LARGEST:
                found.setdefault(key, {})[float(row["iteration"])] = float(value)
    damaged = rows.count(None)
    message = f"{damaged} damaged lines are left out of the curve."
    problems = [Problem(str(file), message)] if damaged else []
    return {key: sorted(points.items()) for key, points in found.items()}, problems


def _read_points(run: RunRecord, key: str) -> tuple[Points, list[Problem]]:
    nested = f"{'+'.join(run.test_set)}/{key}"  # as a run on several test sets logs it
    found, problems = read_series(Path(run.folder) / METRICS_FILE, (key, nested))
    return found.get(key) or found.get(nested) or [], problems
