"""The matrix as text, before anything runs: how many runs, how far they are, how long the rest will
take.
"""

from __future__ import annotations

import functools
import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..report import BASELINES
from .build import PreparedTask
from .matrix import Cell, Matrix, Task
from .state import COMPLETE, INTERRUPTED, CellState, state_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duration:
    """What a run of a task takes, in seconds.

    Attributes:
        training: All iterations.
        evaluation: What comes once, at the end; 0 where it is part of ``training``.
    """

    training: float
    evaluation: float = 0.0

    def left(self, state: CellState, num_iterations: int) -> float:
        """Return what a run that stands at ``state`` still takes."""
        return self.training * max(0.0, 1 - state.iteration / num_iterations) + self.evaluation


def overview(
    matrix: Matrix,
    prepared: dict[str, PreparedTask],
    *,
    num_processes: int,
    lanes: int,
    launcher: str,
    time_task: Callable[[Task], tuple[float, float] | None] | None,
) -> str:
    """Return the matrix as a table: one line per task and label fraction, and the sum.

    Args:
        matrix: The matrix.
        prepared: Its tasks, read.
        num_processes: Processes of a run.
        lanes: Runs side by side.
        launcher: Name of the launcher, for the text.
        time_task: Times a task: seconds an iteration and seconds a test image of one process, or
            None where it cannot. It is asked for tasks without a complete run that has recorded its
                duration. None: nothing is timed.
    """
    cells = matrix.cells()
    rows = [
        (
            "task",
            "iterations",
            "test images",
            "complete",
            "interrupted",
            "to run",
            "s/iteration",
            "run hours",
        )
    ]
    to_go: dict[Cell, float | None] = {}
    once = (
        functools.cache(time_task) if time_task else None
    )  # a task takes the same on a part of the labels
    for task in matrix.tasks:
        for fraction in matrix.label_fractions:
            mine = [cell for cell in cells if cell.task == task and cell.fraction == fraction]
            states = [state_of(cell) for cell in mine]
            left = [
                (cell, state)
                for cell, state in zip(mine, states, strict=True)
                if state.name != COMPLETE
            ]
            num_iterations = prepared[task.name].num_iterations
            each = _duration(
                task, prepared[task.name], states, num_processes, once if left else None
            )
            seconds = {
                cell: None if each is None else each.left(state, num_iterations)
                for cell, state in left
            }
            to_go |= seconds
            counts = [sum(s.name == name for s in states) for name in (COMPLETE, INTERRUPTED)]
            rows.append(
                (
                    mine[0].task_name,
                    str(num_iterations),
                    str(prepared[task.name].num_test_images),
                    str(counts[0]),
                    str(counts[1]),
                    str(len(left) - counts[1]),
                    "–" if each is None else f"{each.training / num_iterations:.2f}",
                    "–" if each is None else f"{sum(seconds.values()) / 3600:.2f}",
                )
            )
    # In the order in which they are started; None where a task could not be timed.
    durations = [to_go[cell] for cell in cells if cell in to_go]
    headline = _headline(matrix, cells, launcher, num_processes, lanes)
    return "\n".join(
        [
            headline,
            *_align(rows),
            *_sum(durations, lanes, launcher, num_processes),
            *_baseline(matrix),
        ]
    )


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            [
                row[0].ljust(widths[0]),
                *(word.rjust(w) for word, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _headline(
    matrix: Matrix, cells: list[Cell], launcher: str, num_processes: int, lanes: int
) -> str:
    parts = [
        f"{len(matrix.tasks)} task(s)",
        f"{len(matrix.inits)} initialisation(s): {', '.join(i.name for i in matrix.inits)}",
    ]
    if len(matrix.label_fractions) > 1 or matrix.label_fractions[0] != 1:
        parts.append(f"label fractions {', '.join(f'{f:g}' for f in matrix.label_fractions)}")
    parts.append(f"{len(matrix.seeds)} seed(s)")
    how = f"{launcher}, {num_processes} process(es) a run" + (
        f", {lanes} runs side by side" if lanes > 1 else ""
    )
    return f"{len(cells)} runs = {' x '.join(parts)} -> {matrix.output} ({how})"


def _sum(
    durations: Sequence[float | None], lanes: int, launcher: str, num_processes: int
) -> list[str]:
    if launcher == "slurm":
        return [
            "  Hours are those of complete runs; nothing is timed here: the jobs run on other"
            " machines, as many at a time as Slurm lets."
        ]
    if not durations or None in durations:
        return []
    hours = seconds_until_done(durations, lanes) / 3600
    how = f", {lanes} runs side by side" if lanes > 1 else ""
    how += (
        f"; without what the {num_processes} processes of a run tell each other"
        if num_processes > 1
        else ""
    )
    return [
        (
            f"  about {hours:.2f} hours to go{how}"
            if hours >= 0.1
            else f"  about {60 * hours:.0f} minutes to go{how}"
        )
    ]


def seconds_until_done(durations: Sequence[float], lanes: int) -> float:
    """Return when the last of some runs ends: each starts, in their order, on the lane that is free
    first.
    """
    free = [0.0] * lanes
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _baseline(matrix: Matrix) -> list[str]:
    names = [init.name for init in matrix.inits]
    found = next((name for name in (matrix.baseline, *BASELINES) if name in names), None)
    if len(names) == 1 or found == BASELINES[0]:
        return []
    if found is None:
        return [
            f"  no row is called {' or '.join(BASELINES)}: the table will have no differences;"
            " --baseline NAME takes another row"
        ]
    hint = (
        ""
        if matrix.baseline
        else f" (no row is called {BASELINES[0]}; --baseline NAME takes another)"
    )
    return [f"  differences refer to the row {found}{hint}"]


def _duration(
    task: Task,
    prepared: PreparedTask,
    states: Sequence[CellState],
    num_processes: int,
    time_task: Callable[[Task], tuple[float, float] | None] | None,
) -> Duration | None:
    """Return what a whole run takes: the mean of the complete ones, else timed; None where it is
    not known.
    """
    durations = [state.wall_sec for state in states if state.name == COMPLETE and state.wall_sec]
    if durations:
        return Duration(sum(durations) / len(durations))
    if time_task is None:
        return None
    logger.info("timing a few iterations of %s", task.name)
    timed = time_task(task)
    if timed is None:
        return None
    per_iteration, per_image = timed
    return Duration(
        per_iteration * prepared.num_iterations,
        per_image * prepared.num_test_images / num_processes,
    )
