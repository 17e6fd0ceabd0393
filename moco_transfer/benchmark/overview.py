"""The matrix as text, before anything runs: how many runs, how far they are, how long the rest will take."""

from __future__ import annotations

import logging

from .build import PreparedTask, measure_speed
from .matrix import Cell, Matrix, Task
from .state import COMPLETE, INTERRUPTED, state_of

logger = logging.getLogger(__name__)


def overview(matrix: Matrix, prepared: dict[str, PreparedTask], *, num_processes: int, lanes: int, launcher: str, timing: bool) -> str:
    """Return the matrix as a table: one line per task and label fraction, and the sum.

    Args:
        matrix: The matrix.
        prepared: Its tasks, read.
        num_processes: Processes of a run.
        lanes: Runs side by side.
        launcher: Name of the launcher, for the text.
        timing: Estimate hours: from the task's complete runs where there are any, else by timing a few iterations here.
    """
    cells = matrix.cells()
    rows = [("task", "iterations", "test pictures", "complete", "interrupted", "to run", "s/iteration", "hours")]
    hours_known, hours_sum = True, 0.0
    for task in matrix.tasks:
        for fraction in matrix.label_fractions:
            mine = [cell for cell in cells if cell.task == task and cell.fraction == fraction]
            states = [state_of(cell) for cell in mine]
            left = [state for state in states if state.name != COMPLETE]
            each, per_iteration = _seconds_of_a_run(matrix, task, prepared[task.name], states, num_processes, timing and bool(left))
            hours = None if each is None else sum(each * (1 - s.iteration / prepared[task.name].num_iterations) for s in left) / 3600 / lanes
            hours_known, hours_sum = hours_known and hours is not None, hours_sum + (hours or 0)
            counts = [sum(s.name == name for s in states) for name in (COMPLETE, INTERRUPTED)]
            rows.append(
                (
                    mine[0].task_name,
                    str(prepared[task.name].num_iterations),
                    str(prepared[task.name].num_test_images),
                    str(counts[0]),
                    str(counts[1]),
                    str(len(left) - counts[1]),
                    "–" if per_iteration is None else f"{per_iteration:.2f}",
                    "–" if hours is None else f"{hours:.2f}",
                )
            )
    headline = _headline(matrix, cells, launcher, num_processes, lanes)
    return "\n".join([headline, *_align(rows), *_sum(hours_known, hours_sum, timing)])


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *(word.rjust(w) for word, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]


def _headline(matrix: Matrix, cells: list[Cell], launcher: str, num_processes: int, lanes: int) -> str:
    parts = [f"{len(matrix.tasks)} task(s)", f"{len(matrix.inits)} initialisation(s): {', '.join(i.name for i in matrix.inits)}"]
    if len(matrix.label_fractions) > 1 or matrix.label_fractions[0] != 1:
        parts.append(f"label fractions {', '.join(f'{f:g}' for f in matrix.label_fractions)}")
    parts.append(f"{len(matrix.seeds)} seed(s)")
    how = f"{launcher}, {num_processes} process(es) a run" + (f", {lanes} runs side by side" if lanes > 1 else "")
    return f"{len(cells)} runs = {' x '.join(parts)} -> {matrix.output} ({how})"


def _sum(is_known: bool, hours: float, timing: bool) -> list[str]:
    if not timing or not is_known:
        return []
    return [f"  about {hours:.2f} hours to go" if hours >= 0.1 else f"  about {60 * hours:.0f} minutes to go"]


def _seconds_of_a_run(
    matrix: Matrix, task: Task, prepared: PreparedTask, states: list, num_processes: int, timing: bool
) -> tuple[float | None, float | None]:
    """Return the seconds of a whole run and of one iteration of it, evaluation included; None where they are not known."""
    durations = [state.wall_sec for state in states if state.name == COMPLETE and state.wall_sec]
    if durations:
        whole = sum(durations) / len(durations)
        return whole, whole / prepared.num_iterations
    if not timing:
        return None, None
    logger.info("timing a few iterations of %s", task.name)
    per_iteration, per_picture = measure_speed(prepared, matrix.engine, world_size=num_processes)
    return per_iteration * prepared.num_iterations + per_picture * prepared.num_test_images / num_processes, per_iteration
