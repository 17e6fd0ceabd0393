"""Aggregate runs into tables: one table per setting, one row per initialisation, mean and std over
seeds.

What is never averaged: runs that differ in task, test set, config hash, engine, norm or the
    images whose labels they were
trained on (they form tables of their own), and two runs that claim the same cell, i.e. the same
table, initialisation and
seed: which of them is right cannot be known from the files, so both are named and neither enters
    the mean.

Conventions:
    std is the sample standard deviation (n - 1); with n = 1 there is none (None), never 0.
    A difference is (mean of the row) - (mean of the baseline row), from unrounded means.
    A NaN is left out of the mean of its metric and named; it does not remove the run from other
    metrics.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moco_transfer.evaluate.metric_names import BBOX_METRICS

from .records import Problem, RunRecord
from .seed_statistics import PairedTest, Summary, paired_t_test, summarize

#: The metrics that every table shows: AP, AP50, AP75. Detectron2 names them alike for boxes, masks
# and keypoints.
HEADLINE_METRICS = BBOX_METRICS[:3]
#: The rows that stand first, in this order; all others follow by name.
FIRST_ROWS = ("random", "supervised")
#: The row that differences refer to: the first of these that a table has.
BASELINES = ("supervised", "random")
#: Names listed in a warning; the rest are counted.
NAMES_SHOWN = 6


@dataclass(frozen=True, order=True)
class Setting:
    """What all runs of one table share: the key of the table."""

    task: str
    test_set: tuple[str, ...]
    config_hash: str
    engine: str
    norm: str
    label_subset: str = ""


@dataclass(frozen=True)
class Difference:
    """A row against the baseline row in one metric.

    Attributes:
        value: Difference of the means, in points.
        exceeds_spread: True when both rows have n >= 2 and the gap is larger than either row's std,
            and no 0.0 as it is shown: where every AP is about zero, a hundredth of a point would be
                marked.
        test: Paired t test over the seeds that both rows have, or None below three common seeds.
    """

    value: float
    exceeds_spread: bool
    test: PairedTest | None


@dataclass(frozen=True)
class Row:
    """One initialisation in one setting.

    Attributes:
        init: Name of the initialisation.
        runs: The runs that are averaged, by seed.
        conflicts: Runs left out because another run claims the same seed.
        values: (kind, metric) to seed to value, without NaN.
    """

    init: str
    runs: tuple[RunRecord, ...]
    conflicts: tuple[RunRecord, ...]
    values: dict[tuple[str, str], dict[int, float]] = field(repr=False)

    @property
    def all_runs(self) -> tuple[RunRecord, ...]:
        """The averaged runs, then the conflicts."""
        return self.runs + self.conflicts

    def summary(self, kind: str, metric: str) -> Summary:
        """Return mean, std and n of a metric over the seeds of this row (n = 0 when no run has it)."""
        return summarize(self.values.get((kind, metric), {}).values())


@dataclass(frozen=True)
class Table:
    """All runs of one setting.

    Attributes:
        setting: What the runs share.
        rows: random, supervised, then the others by name.
        problems: What is missing from this table and why.
        baseline_name: The row that the reader wants differences to, or "" for the first of
            :data:`BASELINES`.
    """

    setting: Setting
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    baseline_name: str = ""

    @property
    def baseline(self) -> Row | None:
        """The row that differences refer to: that which was named, else supervised, else random,
        else none; it has an averaged run.
        """
        rows = {row.init: row for row in self.rows if row.runs}
        return next((rows[name] for name in (self.baseline_name, *BASELINES) if name in rows), None)

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, row by row: the averaged ones, then those left out as conflicts."""
        return [run for row in self.rows for run in row.all_runs]

    @property
    def kinds(self) -> list[str]:
        """The kinds of result that some run has (bbox, segm, ...), in the order in which the runs
        list them.
        """
        return list(dict.fromkeys(kind for run in self.runs for kind in run.metrics))

    def difference(self, row: Row, kind: str, metric: str) -> Difference | None:
        """Return ``row`` minus the baseline, or None for the baseline itself and where either has
        no value.
        """
        base = self.baseline
        if base is None or row.init == base.init:
            return None
        ours, theirs = row.summary(kind, metric), base.summary(kind, metric)
        if not ours.n or not theirs.n:
            return None
        a, b = row.values[kind, metric], base.values[kind, metric]
        common = sorted(set(a) & set(b))
        test = (
            paired_t_test([a[seed] for seed in common], [b[seed] for seed in common])
            if len(common) >= 3
            else None
        )
        gap = ours.mean - theirs.mean
        exceeds = (
            ours.std is not None and theirs.std is not None and abs(gap) > max(ours.std, theirs.std)
        )
        return Difference(gap, exceeds and round(gap, 1) != 0, test)


def setting_of(run: RunRecord) -> Setting:
    """Return the key of the table that ``run`` belongs to."""
    return Setting(run.task, run.test_set, run.config_hash, run.engine, run.norm, run.label_subset)


def build_tables(records: Iterable[RunRecord], *, baseline: str = "") -> list[Table]:
    """Group runs into tables, one per setting, ordered by task, test set, config hash, engine, norm
    and label subset.

    Args:
        records: Runs in any order.
        baseline: The row that differences refer to; "" means supervised, else random. A table
            without it says so.

    Returns:
        Tables; every run is in exactly one row of one of them, as an averaged run or as a conflict.
    """
    groups: dict[Setting, list[RunRecord]] = {}
    for run in records:
        groups.setdefault(setting_of(run), []).append(run)
    return [_build_table(setting, groups[setting], baseline) for setting in sorted(groups)]


def _build_table(setting: Setting, records: Sequence[RunRecord], baseline: str) -> Table:
    by_init: dict[str, list[RunRecord]] = {}
    for run in records:
        by_init.setdefault(run.init, []).append(run)
    rows = tuple(_build_row(init, by_init[init]) for init in sorted(by_init, key=_row_order))
    problems = [problem for row in rows for problem in _conflict_problems(row)]
    kinds = list(dict.fromkeys(kind for run in records for kind in run.metrics))
    problems += [problem for row in rows for problem in _undefined_problems(row, kinds)]
    problems += _missing_seeds(rows)
    problems += [problem for row in rows for problem in _mixed(row)]
    problems += [*_different_training_sets(setting, rows), *_no_baseline(setting, rows, baseline)]
    return Table(setting, rows, tuple(problems), baseline)


def _build_row(init: str, records: Sequence[RunRecord]) -> Row:
    by_seed: dict[int, list[RunRecord]] = {}
    for run in records:
        by_seed.setdefault(run.seed, []).append(run)
    runs = tuple(by_seed[seed][0] for seed in sorted(by_seed) if len(by_seed[seed]) == 1)
    conflicts = tuple(
        run for seed in sorted(by_seed) if len(by_seed[seed]) > 1 for run in by_seed[seed]
    )
    values: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        for kind, group in run.metrics.items():
            for metric, value in group.items():
                if math.isfinite(value):
                    values.setdefault((kind, metric), {})[run.seed] = value
    return Row(init, runs, conflicts, values)


def _row_order(init: str) -> tuple:
    place = FIRST_ROWS.index(init) if init in FIRST_ROWS else len(FIRST_ROWS)
    # Digits compare as numbers, so that moco_200ep stands before moco_1000ep.
    return place, [
        (part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r"(\d+)", init)
    ]


def _conflict_problems(row: Row) -> list[Problem]:
    problems = []
    for seed, claims in itertools.groupby(row.conflicts, key=lambda run: run.seed):
        claims = list(claims)
        shown = "; ".join(f"{run.folder} ({_headline(run)})" for run in claims)
        message = (
            f"{len(claims)} runs claim seed {seed}, none of them is averaged: {shown}. Remove or"
            " move all but one."
        )
        problems.append(Problem(f"row {row.init}", message))
    return problems


def _headline(run: RunRecord) -> str:
    return (
        ", ".join(
            f"{kind} AP {group['AP']:.1f}" for kind, group in run.metrics.items() if "AP" in group
        )
        or "no AP"
    )


def _undefined_problems(row: Row, kinds: Sequence[str]) -> list[Problem]:
    """Name each metric that a run could not compute (NaN), or a headline metric that it lacks and
    the table has.
    """
    by_runs: dict[tuple[str, ...], list[str]] = {}
    headline = {(kind, metric): None for kind in kinds for metric in HEADLINE_METRICS}
    names = headline | dict.fromkeys(
        (kind, metric) for run in row.runs for kind in run.metrics for metric in run.metrics[kind]
    )
    for kind, metric in names:
        # A run that lacks APs or a class is no fault: the test set has no such object.
        absent = math.nan if (kind, metric) in headline else 0.0
        values = [(run.folder, run.value(kind, metric)) for run in row.runs]
        bad = [
            folder
            for folder, value in values
            if not math.isfinite(absent if value is None else value)
        ]
        if bad:
            by_runs.setdefault(tuple(bad), []).append(f"{kind} {metric}")
    # One sentence per set of runs, and not every name: classes without a test object can be NaN by
    # the dozen.
    problems = []
    for folders, metrics in by_runs.items():
        more = f" and {len(metrics) - NAMES_SHOWN} more" if len(metrics) > NAMES_SHOWN else ""
        shown = ", ".join(metrics[:NAMES_SHOWN]) + more
        problems.append(
            Problem(
                f"row {row.init}",
                f"no finite {shown} in {', '.join(folders)}; left out of the mean.",
            )
        )
    return problems


def _missing_seeds(rows: Sequence[Row]) -> list[Problem]:
    claimed = {row.init: {run.seed for run in row.all_runs} for row in rows}
    everything = set().union(*claimed.values())
    problems = []
    for row in rows:
        missing = sorted(everything - claimed[row.init])
        if missing:
            seeds = ", ".join(map(str, missing))
            problems.append(
                Problem(f"row {row.init}", f"no run with seed {seeds}, which another row has.")
            )
    return problems


def _mixed(row: Row) -> list[Problem]:
    problems = []
    iterations = sorted({run.iterations for run in row.runs})
    if len(iterations) > 1:
        problems.append(
            Problem(
                f"row {row.init}", f"averages runs of {', '.join(map(str, iterations))} iterations."
            )
        )
    files = sorted({str(run.weights["sha256"]) for run in row.runs if run.weights.get("sha256")})
    if len(files) > 1:
        short = ", ".join(sha[:8] for sha in files)
        problems.append(
            Problem(
                f"row {row.init}",
                f"averages runs from {len(files)} different weight files (sha256 {short}).",
            )
        )
    return problems


def _different_training_sets(setting: Setting, rows: Sequence[Row]) -> list[Problem]:
    """Name the sets when runs of one table were trained on others: the config hash knows only what
    a set is called there.
    """
    folders: dict[str, list[str]] = {}
    for run in (
        run for row in rows for run in row.runs if run.train_set
    ):  # a run that was only evaluated has none
        folders.setdefault(" + ".join(run.train_set), []).append(run.folder)
    if len(folders) < 2:
        return []
    shown = "; ".join(
        f"{names} in {', '.join(where[:NAMES_SHOWN])}{', ...' if where[NAMES_SHOWN:] else ''}"
        for names, where in folders.items()
    )
    return [
        Problem(
            setting.task,
            "holds runs that were trained on different sets, so that rows differ in more than"
            f" their weights: {shown}.",
        )
    ]


def _no_baseline(setting: Setting, rows: Sequence[Row], name: str) -> list[Problem]:
    if not name or any(row.init == name and row.runs for row in rows):
        return []
    names = ", ".join(row.init for row in rows)
    return [
        Problem(
            setting.task,
            f"has no averaged run of the baseline {name!r} that was asked for; its rows are"
            f" {names}.",
        )
    ]
