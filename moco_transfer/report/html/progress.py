"""How far the runs of a matrix are: the part of a watched page that is rewritten most often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..templating import render

#: State -> its mark, and what the legend says of it.
MARKS = {
    "complete": ("✓", "complete, with its result"),
    "running": ("▶", "running"),
    "failed": ("✗", "failed"),
    "interrupted": ("‖", "interrupted, to be resumed"),
    "missing": ("·", "to run"),
}


@dataclass(frozen=True)
class RunProgress:
    """How far one run is."""

    task: str
    init: str
    seed: int
    state: str  # a key of MARKS
    folder: str
    iteration: int = 0  # finished
    iterations: int = 0  # of the whole run; 0 where it is not known
    text: str = ""  # of a complete run its result, of a failed one why, of a running one its hang

    @property
    def mark(self) -> str:
        """The mark of its state."""
        return MARKS[self.state][0]

    @property
    def words(self) -> str:
        """What its cell of the table shows next to the mark."""
        if self.state == "complete":
            return self.text.split(", ")[0].rsplit(" ", 1)[-1]  # of "bbox AP 40.5, segm AP 37.1"
        if self.iteration and self.state in ("running", "interrupted"):
            whole = f" of {self.iterations}" if self.iterations else ""
            return f"{self.iteration}{whole}{'; hangs' * bool(self.text)}"
        return "hangs" if self.text and self.state == "running" else ""


def render_progress(runs: Sequence[RunProgress], *, is_running: bool, written: str) -> str:
    """Return the runs as a section of the page: one row for each task and initialisation, one
    column for each seed. ``written``: when, as text.
    """
    seeds = sorted({run.seed for run in runs})
    rows: dict[tuple[str, str], dict[int, RunProgress]] = {}
    for run in runs:
        rows.setdefault((run.task, run.init), {})[run.seed] = run
    counts = {state: sum(run.state == state for run in runs) for state in MARKS}
    return render(
        "page_progress.html",
        rows=rows,
        seeds=seeds,
        marks=MARKS,
        counts=counts,
        failed=[run for run in runs if run.state == "failed"],
        hanging=[run for run in runs if run.state == "running" and run.text],
        num_runs=len(runs),
        is_running=is_running,
        written=written,
    )
