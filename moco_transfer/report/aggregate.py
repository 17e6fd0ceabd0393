"""Aggregate runs into tables: one table per setting, one row per initialisation.

Runs that differ in task, test set, config hash, engine, norm, precision or labelled images are
never averaged. Detections of another program, whose setting is not known, are a row of every table
of their test set. Two runs that claim the same seed of a row are both named and neither is
averaged. A NaN is named and left out of the mean of its metric. Differences are taken from
unrounded means.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from moco_transfer.evaluate.metric_names import (
    KEYPOINT_METRICS,
    LVIS_METRICS,
    SEMANTIC_METRICS,
    headline_metric,
)

from .records import Problem, RunRecord
from .seed_statistics import PairedTest, Summary, paired_t_test, summarize

#: The metrics that every table shows; others of its task where some run has them.
_ALWAYS_SHOWN = ("AP", "AP50", "mIoU")
_BY_SIZE = ("APs", "APm", "APl")  # columns of keypoints alone, which have few others
#: The first rows, in this order; all others follow by name.
FIRST_ROWS = ("random", "supervised")
#: The row that differences refer to: the first of these that a table has.
BASELINES = ("supervised", "random")
#: Samples of the test images behind an interval.
NUM_SAMPLES = 1000
_NAMES_SHOWN = 6  # names listed in a warning; the rest are counted

_K = TypeVar("_K")


@dataclass(frozen=True, order=True)
class Setting:
    """What all runs of one table share: the key of the table."""

    task: str
    test_set: tuple[str, ...]
    config_hash: str
    engine: str
    norm: str
    precision: str = ""  # "" where it was not recorded
    label_subset: str = ""


@dataclass(frozen=True)
class Difference:
    """A row against the baseline row in one metric."""

    value: float  # difference of the means, in points
    exceeds_spread: bool  # larger than the std of both rows (n >= 2), and not printed as 0.0
    test: PairedTest | None  # over the common seeds; None below three of them


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of a difference in AP or mIoU over samples of the test images, in points."""

    low: float
    high: float
    n: int  # seeds that both rows have, and a file of matches of
    num_images: int


@dataclass(frozen=True)
class Row:
    """One initialisation in one setting."""

    init: str
    runs: tuple[RunRecord, ...]  # averaged, by seed
    conflicts: tuple[RunRecord, ...]  # left out: another run claims the same seed
    values: dict[tuple[str, str], dict[int, float]]  # (kind, metric) -> seed -> value, no NaN

    @property
    def all_runs(self) -> tuple[RunRecord, ...]:
        """The averaged runs, then the conflicts."""
        return self.runs + self.conflicts

    @property
    def is_foreign(self) -> bool:
        """Whether its detections are another program's."""
        return any(run.is_foreign for run in self.all_runs)

    def summary(self, kind: str, metric: str) -> Summary:
        """Return mean, std and n of a metric over the seeds of this row (n = 0: no run has it)."""
        return summarize(self.values.get((kind, metric), {}).values())

    def tide(self, kind: str, metric: str) -> Summary:
        """Return mean, std and n of one of the TIDE errors, in points of AP50."""
        return _summary([run.tide.get(kind, {}) for run in self.runs], metric)

    def rate(self, kind: str, metric: str) -> Summary:
        """Return mean, std and n of the detections' precision, recall or F1, 0-100."""
        return _summary([run.operating_point.get(kind, {}) for run in self.runs], metric)

    def confusion(self, kind: str) -> dict[str, dict[str, float]]:
        """Return class of objects -> class of the detections on them -> count, the mean over the
        runs that have recorded it.
        """
        runs = [run.confusion[kind] for run in self.runs if kind in run.confusion]
        found: dict[str, dict[str, float]] = {}
        for true, of_class in (pair for run in runs for pair in run.items()):
            row = found.setdefault(true, {})
            for predicted, count in of_class.items():
                row[predicted] = row.get(predicted, 0.0) + count / len(runs)
        return found


def _summary(groups: list[dict[str, float]], metric: str) -> Summary:
    return summarize(filter(math.isfinite, (g[metric] for g in groups if metric in g)))


@dataclass(frozen=True)
class Table:
    """All runs of one setting."""

    setting: Setting
    rows: tuple[Row, ...]  # random, supervised, then the others by name
    problems: tuple[Problem, ...]  # what is missing and why
    baseline_name: str = ""  # "" for the first of BASELINES
    #: (row, kind) -> interval of the difference in AP or mIoU, where `bootstrap` has found one.
    intervals: Mapping[tuple[str, str], Interval] = field(default_factory=dict)

    @property
    def baseline(self) -> Row | None:
        """The row that differences refer to; it has an averaged run."""
        rows = {row.init: row for row in self.rows if row.runs}
        known = [name for name in BASELINES if name in rows and not rows[name].is_foreign]
        return next((rows[name] for name in (self.baseline_name, *known) if name in rows), None)

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, row by row: the averaged ones, then those left out as conflicts."""
        return [run for row in self.rows for run in row.all_runs]

    @property
    def own_runs(self) -> list[RunRecord]:
        """Those whose training is known; empty where all are detections of other programs."""
        return [run for run in self.runs if not run.is_foreign]

    @property
    def kinds(self) -> list[str]:
        """The kinds of result that some run has (bbox, segm, ...), in the order of the runs."""
        return list(dict.fromkeys(kind for run in self.runs for kind in run.metrics))

    def headline_metrics(self, kind: str) -> tuple[str, ...]:
        """Return the metrics that are the columns of a kind of result."""
        found = {metric for run in self.runs for metric in run.metrics.get(kind, {})}
        return tuple(m for m in task_metrics(kind) if m in found or m in _ALWAYS_SHOWN)

    @property
    def has_differences(self) -> bool:
        """Whether some row can be compared with the baseline."""
        return self.baseline is not None and len(self.rows) > 1

    def difference(self, row: Row, kind: str, metric: str) -> Difference | None:
        """Return ``row`` minus the baseline; None for the baseline and where a value is missing."""
        base = self.baseline
        if base is None or row.init == base.init:
            return None
        a, b = (side.values.get((kind, metric), {}) for side in (row, base))
        if not a or not b:
            return None
        common = sorted(a.keys() & b.keys())
        pairs = [[side[seed] for seed in common] for side in (a, b)]
        ours, theirs = row.summary(kind, metric), base.summary(kind, metric)
        gap = ours.mean - theirs.mean
        spread = [math.inf if side.std is None else side.std for side in (ours, theirs)]
        exceeds = abs(gap) > max(spread) and round(gap, 1) != 0
        is_paired = len(common) >= 3 and not (row.is_foreign or base.is_foreign)
        return Difference(gap, exceeds, paired_t_test(*pairs) if is_paired else None)


def task_metrics(kind: str) -> tuple[str, ...]:
    """Return what can be a column of a kind of result, in order: AP, AP50, AP75, and LVIS's APr,
    APc, APf, or APm and APl of keypoints and dense pose; mIoU, mACC and pACC of semantic
    segmentation.
    """
    if kind == "sem_seg":
        return tuple(metric for metric in SEMANTIC_METRICS if metric != "fwIoU")
    if kind in ("keypoints", "densepose"):
        return KEYPOINT_METRICS
    return tuple(metric for metric in LVIS_METRICS if metric not in _BY_SIZE)


def build_tables(records: Iterable[RunRecord], *, baseline: str = "") -> list[Table]:
    """Group runs into tables, one per setting, in the order of the settings.

    ``baseline`` names the row that differences refer to; "" means supervised, else random.
    """
    tables = []
    names = Setting.__dataclass_fields__
    runs_of_both = _grouped(records, lambda run: run.is_foreign)
    of_setting = _grouped(
        runs_of_both.get(False, []), lambda run: Setting(*(getattr(run, name) for name in names))
    )
    for run in runs_of_both.get(True, []):
        own = Setting(*(getattr(run, name) for name in names))
        fitting = [runs for runs in of_setting.values() if _is_of_test_set(run, runs)]
        for runs in fitting or [of_setting.setdefault(own, [])]:
            is_taken = any(other.init == run.init and not other.is_foreign for other in runs)
            runs.append(replace(run, init=f"{run.init} (other)") if is_taken else run)
    for setting, runs in sorted(of_setting.items()):
        by_init = _grouped(runs, lambda run: run.init)
        rows = tuple(_build_row(init, by_init[init]) for init in sorted(by_init, key=_row_order))
        table = Table(setting, rows, (), baseline)
        tables.append(replace(table, problems=tuple(_problems(table))))
    return tables


def _is_of_test_set(run: RunRecord, runs: Sequence[RunRecord]) -> bool:
    """Whether detections of another program are of the test set of the runs of a table."""
    first = runs[0]
    classes, sizes = {*run.classes}, {run.num_images, first.num_images} - {None}
    same_classes = not first.classes or classes == {*first.classes}
    return run.test_set == first.test_set and same_classes and len(sizes) <= 1


def _grouped(
    runs: Iterable[RunRecord], key: Callable[[RunRecord], _K]
) -> dict[_K, list[RunRecord]]:
    groups: dict[_K, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _build_row(init: str, records: Sequence[RunRecord]) -> Row:
    by_seed = sorted(_grouped(records, lambda run: run.seed).items())
    runs = tuple(claims[0] for _, claims in by_seed if len(claims) == 1)
    conflicts = tuple(run for _, claims in by_seed if len(claims) > 1 for run in claims)
    values: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        for kind, group in run.metrics.items():
            for metric, value in group.items():
                if math.isfinite(value):
                    values.setdefault((kind, metric), {})[run.seed] = value
    return Row(init, runs, conflicts, values)


def _row_order(init: str) -> tuple[int, list[tuple[bool, int, str]]]:
    place = FIRST_ROWS.index(init) if init in FIRST_ROWS else len(FIRST_ROWS)
    # Digits compare as numbers, so that moco_200ep comes before moco_1000ep.
    parts = re.split(r"(\d+)", init)
    return place, [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _problems(table: Table) -> Iterator[Problem]:
    """Yield what a reader has to know about missing, conflicting and mixed runs."""
    setting, rows, baseline = table.setting, table.rows, table.baseline_name
    for row in rows:
        messages = (*_run_faults(row, rows), *_undefined_metrics(row, table))
        yield from (Problem(f"row {row.init}", message) for message in messages)
    # The config hash knows only a training set's name there; an evaluated run has none.
    trained = [run for row in rows for run in row.runs if run.train_set]
    folders = _grouped(trained, lambda run: " + ".join(run.train_set))
    if len(folders) > 1:
        shown = (f"{key} in {_listed([r.folder for r in runs])}" for key, runs in folders.items())
        message = "holds runs that were trained on different sets, so that rows differ in more than"
        yield Problem(setting.task, f"{message} their weights: {'; '.join(shown)}.")
    own = (run for row in rows for run in row.runs if not run.is_foreign)
    by_seed = _grouped(own, lambda run: run.seed)
    if mixed := [s for s, runs in by_seed.items() if len({run.label_draw for run in runs}) > 1]:
        message = f"rows have other labelled images with seed {', '.join(map(str, sorted(mixed)))}"
        yield Problem(setting.task, f"{message}, so that they differ in more than their weights.")
    if baseline and not any(row.init == baseline and row.runs for row in rows):
        names = ", ".join(row.init for row in rows)
        message = f"has no averaged run of the baseline {baseline!r} that was asked for"
        yield Problem(setting.task, f"{message}; its rows are {names}.")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _run_faults(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Name conflicting and missing seeds, and averaged runs of other lengths or weight files."""
    for seed, claims in itertools.groupby(row.conflicts, key=lambda run: run.seed):
        shown = [f"{run.folder} ({headline(run)})" for run in claims]
        yield (
            f"{len(shown)} runs claim seed {seed}, none of them is averaged: {'; '.join(shown)}."
            " Remove or move all but one."
        )
    seeds = {run.seed for other in rows for run in other.all_runs if not run.is_foreign}
    if row.is_foreign:
        return
    if missing := sorted(seeds - {run.seed for run in row.all_runs}):
        yield f"no run with seed {', '.join(map(str, missing))}, which another row has."
    iterations = sorted({run.iterations for run in row.runs})
    if len(iterations) > 1:
        yield f"averages runs of {', '.join(map(str, iterations))} iterations."
    files = sorted({run.weights["sha256"][:8] for run in row.runs if run.weights.get("sha256")})
    if len(files) > 1:
        short = ", ".join(files)
        yield f"averages runs from {len(files)} different weight files (sha256 {short})."


def headline(run: RunRecord) -> str:
    """Return what a run is judged by in a few words, e.g. ``bbox AP 40.5``."""
    named = ((kind, headline_metric(kind), group) for kind, group in run.metrics.items())
    shown = (f"{kind} {name} {group[name]:.1f}" for kind, name, group in named if name in group)
    return ", ".join(shown) or "no AP"


def _undefined_metrics(row: Row, table: Table) -> Iterator[str]:
    """Name each metric that is NaN, and each headline metric that a run lacks."""
    headline = [(kind, metric) for kind in table.kinds for metric in table.headline_metrics(kind)]
    names = dict.fromkeys(headline)
    groups = (group for run in row.runs for group in run.metrics.items())
    names |= dict.fromkeys((kind, metric) for kind, group in groups for metric in group)
    by_runs: dict[tuple[str, ...], list[str]] = {}
    for kind, metric in names:
        # A run may lack APs or a class: its test set has no such object.
        absent = math.nan if (kind, metric) in headline else 0.0
        values = ((run.folder, run.metrics.get(kind, {}).get(metric, absent)) for run in row.runs)
        if bad := tuple(folder for folder, value in values if not math.isfinite(value)):
            by_runs.setdefault(bad, []).append(f"{kind} {metric}")
    for folders, metrics in by_runs.items():
        yield f"no finite {_listed(metrics)} in {', '.join(folders)}; left out of the mean."
