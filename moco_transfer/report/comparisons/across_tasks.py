"""Initialisations over many tasks: mean rank, wins and the mean difference to one of them.

A task counts once, with its mean over seeds: the tests ask whether other tasks would give the same
order. Runs on different amounts of labels, engines or precisions are compared apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..aggregate import BASELINES, FIRST_ROWS, Row, Table
from ..records import Problem
from ..seed_statistics import Summary, summarize
from .rank_statistics import (
    CONFIDENCE,
    Friedman,
    friedman,
    holm,
    ranks_of,
    sign_test,
    t_interval,
    wilcoxon,
)  # fmt: skip


@dataclass(frozen=True)
class PairedDifference:
    """A row minus the base row in one task: difference of the means in points, and Student's 95 %
    interval over the seeds, None below two or where the rows have different seeds.
    """

    value: float
    interval: tuple[float, float] | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class TaskScores:
    """One task: its table, and the kind of result and metric that it is judged by."""

    table: Table
    kind: str
    metric: str

    @property
    def name(self) -> str:
        """The task's name, without its amount of labels."""
        return self.table.runs[0].base_task

    @cached_property
    def means(self) -> dict[str, Summary]:
        """Init -> mean, std and n over seeds, of the rows that have the metric."""
        found = {row.init: row.summary(self.kind, self.metric) for row in self.table.rows}
        return {init: summary for init, summary in found.items() if summary.n}

    def _row(self, init: str) -> Row:
        return next(row for row in self.table.rows if row.init == init)

    def difference(self, init: str, base: str) -> PairedDifference | None:
        """Return a row minus the base row; None where one of them has no value."""
        if init == base or init not in self.means or base not in self.means:
            return None
        ours, theirs = (self._row(i).values[self.kind, self.metric] for i in (init, base))
        seeds = sorted(ours) if ours.keys() == theirs.keys() else ()
        pairs = [ours[seed] - theirs[seed] for seed in seeds]
        gap = self.means[init].mean - self.means[base].mean
        return PairedDifference(gap, t_interval(pairs))


@dataclass(frozen=True)
class Standing:
    """One initialisation over the tasks; what compares it with the base is empty for the base.

    Attributes:
        mean_rank: Over the ranked tasks, 1 is the best; None without any.
        wins, ties, losses: Tasks in which its mean is above, equal to, below the base's.
        clear_wins, clear_losses: Of these, where the interval over seeds leaves out 0.
        difference, interval: Mean over tasks of the difference, and its 95 % interval.
        p_sign: Of the wins against the losses.
        p_wilcoxon: Of the differences, corrected for the number of rows (Holm).
    """

    init: str
    num_tasks: int
    mean_rank: float | None
    num_best: int
    wins: int = 0
    ties: int = 0
    losses: int = 0
    clear_wins: int = 0
    clear_losses: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_sign: float | None = None
    p_wilcoxon: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Initialisations over tasks that share their amount of labels, engine and precision.

    ``ranked`` are the tasks that every row has: ranks of fewer rows are no ranks of these.
    """

    title: str
    kind: str  # of the tasks' results; "" where each has its own
    tasks: tuple[TaskScores, ...]
    inits: tuple[str, ...]
    base: str  # "" where there is none
    problems: tuple[Problem, ...]

    @cached_property
    def ranked(self) -> list[TaskScores]:
        """The tasks in which every row has a value."""
        return [task for task in self.tasks if all(init in task.means for init in self.inits)]

    @cached_property
    def _ranks(self) -> list[list[float]]:
        return [ranks_of([t.means[init].mean for init in self.inits]) for t in self.ranked]

    @property
    def friedman(self) -> Friedman | None:
        """Friedman's test over the ranked tasks."""
        return friedman(self._ranks)

    @cached_property
    def standings(self) -> list[Standing]:
        """The rows, random and supervised first."""
        others = [init for init in self.inits if init != self.base]
        gaps = {init: self.differences(init) for init in others}
        tested = [init for init in others if any(gap.value for gap in gaps[init])]
        ps = holm([wilcoxon([gap.value for gap in gaps[init]]) for init in tested])
        p_of = dict(zip(tested, ps, strict=True))
        return [self._standing(init, gaps.get(init, []), p_of.get(init)) for init in self.inits]

    def differences(self, init: str) -> list[PairedDifference]:
        """Return the differences to the base, of the tasks that have both."""
        found = [task.difference(init, self.base) for task in self.tasks]
        return [gap for gap in found if gap is not None]

    def _standing(
        self, init: str, gaps: Sequence[PairedDifference], p_wilcoxon: float | None
    ) -> Standing:
        ranks = [row[self.inits.index(init)] for row in self._ranks]
        values = [gap.value for gap in gaps]
        wins, losses = sum(v > 0 for v in values), sum(v < 0 for v in values)
        clear = [gap.value for gap in gaps if gap.is_clear]
        return Standing(
            init,
            num_tasks=sum(init in task.means for task in self.tasks),
            mean_rank=summarize(ranks).mean if ranks else None,
            num_best=sum(rank == 1 for rank in ranks),
            wins=wins,
            ties=len(values) - wins - losses,
            losses=losses,
            clear_wins=sum(v > 0 for v in clear),
            clear_losses=sum(v < 0 for v in clear),
            difference=summarize(values).mean if values else None,
            interval=t_interval(values),
            p_sign=sign_test(wins, losses) if wins + losses else None,
            p_wilcoxon=p_wilcoxon,
        )


def smallest_p(num_tasks: int) -> float:
    """Return the smallest two-sided p that the two tests can give for so many tasks."""
    return min(1.0, 2 / 2**num_tasks)


def build_comparisons(tables: Sequence[Table]) -> list[Comparison]:
    """Return a comparison for each amount of labels, engine and precision with two or more tasks
    and rows: by each task's first kind of result and, where several tasks have more, by those.

    Differences refer to the tables' baseline, else to supervised, else to random. A task with
    several tables in one group (they differ in config, norm or labelled images) is left out and
    named. Rows of other programs are left out.
    """
    tables = [
        replace(table, rows=tuple(row for row in table.rows if not row.is_foreign))
        for table in tables
        if table.own_runs
    ]
    baseline = next((table.baseline_name for table in tables if table.baseline_name), "")
    groups: dict[tuple[str, str, str], list[Table]] = {}
    for table in tables:
        key = table.runs[0].labels, table.setting.engine, table.setting.precision
        groups.setdefault(key, []).append(table)
    found = []
    for (labels, engine, precision), members in groups.items():
        single, problems = _single_tables(members)
        title = f"{labels or 'all'} labels, {', '.join(filter(None, (engine, precision)))}"
        others = dict.fromkeys(kind for table in single for kind in table.kinds[1:])
        for kind in ("", *others):
            comparison = _comparison(single, kind, title, baseline, problems)
            if len(comparison.tasks) > 1 and len(comparison.inits) > 1:
                found.append(comparison)
    return found


def _single_tables(tables: Sequence[Table]) -> tuple[list[Table], list[Problem]]:
    by_task: dict[tuple[str, tuple[str, ...]], list[Table]] = {}
    for table in tables:
        by_task.setdefault((table.runs[0].base_task, table.setting.test_set), []).append(table)
    problems = [
        Problem(name, f"has {len(found)} tables, so it is left out of the summary over tasks.")
        for (name, _), found in by_task.items()
        if len(found) > 1
    ]
    return [found[0] for found in by_task.values() if len(found) == 1], problems


def _comparison(
    tables: Sequence[Table], kind: str, title: str, baseline: str, problems: Sequence[Problem]
) -> Comparison:
    chosen = [(table, kind or table.kinds[0]) for table in tables]
    scores = [TaskScores(t, own, _main_metric(t, own)) for t, own in chosen if own in t.kinds]
    tasks = tuple(task for task in scores if task.means)
    seen = dict.fromkeys(init for task in tasks for init in task.means)
    first = [init for init in FIRST_ROWS if init in seen]
    inits = (*first, *(init for init in seen if init not in first))
    base = next((name for name in (baseline, *BASELINES) if name in seen), "")
    missing = [
        Problem(task.name, f"has no run of {', '.join(without)}: left out of the ranks.")
        for task in tasks
        if (without := [init for init in inits if init not in task.means])
    ]
    return Comparison(title, kind, tasks, inits, base, (*problems, *missing))


def _main_metric(table: Table, kind: str) -> str:
    found = {metric for row in table.rows for own, metric in row.values if own == kind}
    return next((m for m in ("AP", *table.headline_metrics(kind)) if m in found), "AP")


__all__ = ["CONFIDENCE", "Comparison", "Standing", "TaskScores", "build_comparisons", "smallest_p"]
