"""`report --watch`: the page of a matrix, written again while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from ..report.html.progress import render_progress
from ..runtime.errors import MissingFileError
from ..runtime.files import atomic_write_text
from ..runtime.stop import StopRequest
from .cell_states import COMPLETE, progress_of
from .matrix import Matrix, read_matrix

PERIOD_SEC = 10  # between two looks at the folder, and between two reloads of the page
_POLL_SEC = 0.1
_PROGRESS = "<!-- progress -->"  # where the part that changes most is put

#: Returns the page: the folders that are not complete, the progress, seconds between reloads.
RenderPage = Callable[[set[Path], str, int], str]


def matrix_of(folder: Path) -> Matrix:
    """Return the matrix of a benchmark's output folder, or raise MissingFileError."""
    if not (folder / "matrix.yaml").is_file():
        raise MissingFileError(
            f"--watch {folder}: it has no matrix.yaml, which `benchmark --output {folder}` writes"
            " when it starts. Start the benchmark first, and name its folder."
        )
    return read_matrix(folder / "matrix.yaml", folder)


def watch(matrix: Matrix, file: Path, render_page: RenderPage) -> int:
    """Write the page again and again, until every run is complete or failed and no benchmark is
    running, or until a signal; return 0, 1 if a run failed, or 128 + the signal.

    The last page does not reload itself. Tables and plots are made again when a run has ended.
    """
    known, page, said = None, "", None
    with StopRequest(waits=True) as stop:
        while True:
            runs, is_running = progress_of(matrix)
            counts = {state: sum(r.state == state for r in runs) for state in (COMPLETE, "failed")}
            is_over = sum(counts.values()) == len(runs) and not is_running
            is_last = is_over or bool(stop.signum)
            complete = {run.folder for run in runs if run.state == COMPLETE}
            if is_last or complete != known:
                left = {Path(run.folder) for run in runs} - set(map(Path, complete))
                page = render_page(left, _PROGRESS, 0 if is_last else PERIOD_SEC)
                known = complete
            written = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            progress = render_progress(runs, is_running=is_running, written=written)
            atomic_write_text(file, page.replace(_PROGRESS, progress, 1))
            text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            if text != said:
                print(
                    f"{written}  {len(runs)} runs: {text or 'none complete'} -> {file}", flush=True
                )
                said = text
            if is_last:
                break
            until = time.monotonic() + PERIOD_SEC
            while time.monotonic() < until and not stop.signum:
                time.sleep(_POLL_SEC)
    if is_over:
        return 1 if counts["failed"] else 0
    print(f"Stopped watching; the runs go their way, and {file} no longer reloads itself.")
    return 128 + stop.signum
