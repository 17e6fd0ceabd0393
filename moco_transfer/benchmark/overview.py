"""The matrix as text, before anything runs: how many runs, how far they are, how long the rest will
take by the duration of complete ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ..report import BASELINES
from .cell_states import COMPLETE, INTERRUPTED
from .launch import LaunchSettings
from .matrix import Cell, Matrix
from .plan import BenchmarkPlan, PlannedCell

_HEADER = ("task", "iterations", "complete", "interrupted", "to run", "hours to go")


def overview(plan: BenchmarkPlan, settings: LaunchSettings, *, lanes: int) -> str:
    """Return the matrix as a table: one line per task and amount of labels, and the sum, for
    ``lanes`` runs at a time.
    """
    matrix = plan.matrix
    rows: list[tuple[str, ...]] = [_HEADER]
    to_go: dict[Cell, float | None] = {}
    for name in dict.fromkeys(run.cell.task_name for run in plan.cells):
        mine = [run for run in plan.cells if run.cell.task_name == name]
        left = [run for run in mine if run.state.name != COMPLETE]
        hours = {run.cell: _hours_left(run, mine) for run in left}
        to_go |= hours
        stopped = sum(run.state.name == INTERRUPTED for run in left)
        counts = (mine[0].iterations, len(mine) - len(left), stopped, len(left) - stopped)
        rows.append((name, *map(str, counts), _sum_text(list(hours.values()))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{row[i]:{'>' if i else '<'}{width}}" for i, width in enumerate(widths))
        for row in rows
    ]
    how = f"{settings.launcher}, {settings.num_processes()} process(es) a run"
    how += f", {lanes} runs at a time" if 1 < lanes < len(plan.cells) else ""
    fractions = ", ".join(f"{fraction:g}" for fraction in matrix.label_fractions)
    amounts = [f"label fractions {fractions}"] if fractions else []
    amounts += [f"shots {', '.join(map(str, matrix.shots))}"] if matrix.shots else []
    parts = [
        f"{len(matrix.tasks)} task(s)",
        f"{len(matrix.inits)} initialisation(s): {', '.join(i.name for i in matrix.inits)}",
        *([" and ".join(amounts)] if amounts and amounts != ["label fractions 1"] else []),
        f"{len(matrix.seeds)} seed(s)",
    ]
    first = f"{len(plan.cells)} runs = {' x '.join(parts)} -> {matrix.output} ({how})"
    # In the order in which they are started.
    hours_left = [to_go[run.cell] for run in plan.cells if run.cell in to_go]
    known = [hours for hours in hours_left if hours is not None]
    if known and len(known) == len(hours_left):
        lines.append(f"about {until_done(known, min(lanes, len(known))):.2f} hours to go")
    return "\n".join([first, *(f"  {line}" for line in [*lines, *_baseline(matrix)])])


def _hours_left(run: PlannedCell, mine: Sequence[PlannedCell]) -> float | None:
    """Return what a run still takes by the mean duration of complete ones, None without one."""
    durations = [other.state.wall_sec for other in mine if other.state.wall_sec]
    if not durations:
        return None
    part = max(0.0, 1 - run.state.iteration / run.iterations)
    return part * sum(durations) / len(durations) / 3600


def _sum_text(hours: Sequence[float | None]) -> str:
    return "–" if not hours or None in hours else f"{sum(filter(None, hours)):.2f}"


def until_done(durations: Sequence[float], lanes: int) -> float:
    """Return when the last run ends: each starts, in order, on the lane that is free first."""
    free = [0.0] * lanes
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _baseline(matrix: Matrix) -> list[str]:
    names = [init.name for init in matrix.inits]
    found = next((name for name in (matrix.baseline, *BASELINES) if name in names), None)
    if len(names) == 1 or found == BASELINES[0]:
        return []
    none = f"no row is called {' or '.join(BASELINES)}: the table has no differences"
    line = f"differences refer to the row {found}" if found else none
    return [line if matrix.baseline else f"{line}; --baseline NAME takes another"]
