"""A matrix of fine-tuning runs, and its table."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError
from .options import KEY, key_value

if TYPE_CHECKING:
    from ..benchmark.launch import LaunchSettings
    from ..benchmark.matrix import Cell, Matrix
    from ..benchmark.plan import BenchmarkPlan, PlannedCell
    from ..benchmark.run import Failure

_FILES = ("table.md", "summary.md", "report.html", "**/detections_*.png")
_LAUNCHER_OF = {"jobs": "local", "num_gpus": "torchrun", "slurm": "slurm"}  # option -> launcher


def run(args: argparse.Namespace) -> int:
    """Run the matrix; returns 0, 1 when a run failed or no table could be made, 143 on SIGTERM, 130
    on Ctrl-C.
    """
    from ..benchmark.overview import overview
    from ..benchmark.plan import plan_benchmark
    from ..benchmark.run import Stopped, run_benchmark, train_command

    _return_overrides(args)
    matrix, is_saved = _matrix(args)
    settings = _settings(args, matrix.output if is_saved else None)
    num_gpus = _num_gpus()
    plan = plan_benchmark(matrix, world_size=settings.num_processes())
    print(overview(plan, settings, lanes=settings.lanes(num_gpus)), flush=True)
    if args.dry_run:
        _print_plan(plan, partial(train_command, matrix, settings))
        return 0
    try:
        how: dict[str, Any] = {"num_gpus": num_gpus, "on_end": partial(_finish, matrix)}
        return run_benchmark(plan, settings, on_finished=_print_finished, **how)
    except Stopped as stop:
        print(stop.advice(matrix.output), flush=True)
        return 128 + stop.signum


def _print_plan(plan: BenchmarkPlan, command: Any) -> None:
    """Print the plan of one run of each task, the weights of its other rows, and every command."""
    from ..benchmark.cell_states import COMPLETE

    rows: dict[str, dict[str, PlannedCell]] = {}
    for planned in plan.cells:
        rows.setdefault(planned.cell.task_name, {}).setdefault(planned.cell.init.name, planned)
    for first, *others in (list(task.values()) for task in rows.values()):
        print("\n".join(["", str(first.cell.folder), *(f"  {line}" for line in first.lines)]))
        for other in others:
            lines = [
                line for line in other.lines if line.startswith(("weights:", "new part:", "stamp:"))
            ]
            print("\n".join([f"  row {other.cell.init.name}", *(f"    {line}" for line in lines)]))
    left = (planned.cell for planned in plan.cells if planned.state.name != COMPLETE)
    print("\n".join(["", *(shlex.join(command(cell)) for cell in left)]))


def _return_overrides(args: argparse.Namespace) -> None:
    """Give KEY VALUE words back that an option of several words took with it: ``--label-fraction
    0.1 SOLVER.MAX_ITER 9000``.
    """
    for name in ("tasks", "label_fractions", "shots", "slurm"):
        values = getattr(args, name)
        is_key = [bool(re.fullmatch(f"{KEY}(=.*)?", word)) for word in values]
        start = [*is_key, True].index(True)
        args.overrides = [*key_value(values[start:]), *args.overrides]
        setattr(args, name, values[:start])


def _matrix(args: argparse.Namespace) -> tuple[Matrix, bool]:
    """Return the matrix, and whether it is the one that an earlier call has saved."""
    from ..benchmark.matrix import make_matrix, read_matrix

    saved = Path(args.output) / "matrix.yaml"
    names = ["tasks", "inits", "seeds", "label_fractions", "shots", "subset_per_seed"]
    names += ["engine", "precision", "datasets", "overrides"]
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    if args.matrix and given:
        also = ", ".join(given)
        raise InputError(
            f"--matrix {args.matrix} holds the whole matrix; give no {also} next to it."
        )
    is_saved = not args.matrix and not given and saved.exists()
    if args.matrix or is_saved:
        matrix = read_matrix(args.matrix or saved, args.output)
        return (replace(matrix, baseline=args.baseline) if args.baseline else matrix), is_saved
    return make_matrix(given | {"baseline": args.baseline}, args.output), False


def _settings(args: argparse.Namespace, saved_in: Path | None) -> LaunchSettings:
    """Return how to run: by the options or, where there are none and the matrix is a saved
    one, as before.
    """
    from ..benchmark.launch import LaunchSettings

    given = [name for name in _LAUNCHER_OF if getattr(args, name)]
    if saved_in and not args.launcher and not given and (old := LaunchSettings.read(saved_in)):
        return old
    launcher = args.launcher or ("torchrun" if args.num_gpus else "local")
    for name in given:
        if launcher != _LAUNCHER_OF[name]:
            option = f"--{name.replace('_', '-')} is for --launcher {_LAUNCHER_OF[name]}"
            raise InputError(f"{option}, got --launcher {launcher}.")
    # The processes of a run are part of what it computes: a number is saved, not "one per GPU".
    processes = args.num_gpus or (max(1, _num_gpus()) if launcher == "torchrun" else None)
    return LaunchSettings(launcher, args.jobs, processes, tuple(args.slurm))


def _num_gpus() -> int:
    from ..runtime.device import num_gpus  # imports torch

    return num_gpus()


def _print_finished(cell: Cell) -> None:
    from tqdm import tqdm

    from ..benchmark.cell_states import state_of
    from ..report.aggregate import headline

    if (record := state_of(cell).record) is not None:
        tqdm.write(f"{cell.folder}: {headline(record)} in {(record.wall_sec or 0) / 60:.1f} min")


def _track(matrix: Matrix) -> None:
    """Hand the tables and sheets to the trackers of LOGGERS that hold files."""
    from ..config import load_detection_config
    from ..runtime.trackers.record import Trackers
    from ..runtime.trackers.writers import EXTRAS, RunFacts

    cfg = load_detection_config(matrix.tasks[0].config, matrix.overrides)
    if names := [name for name in cfg.get("LOGGERS", ()) if name in EXTRAS]:
        folder = matrix.output / "report"
        folder.mkdir(exist_ok=True)
        trackers = Trackers(names, RunFacts(folder))
        trackers.save(sorted(file for kind in _FILES for file in matrix.output.glob(kind)))
        trackers.close(finished=True)


def _finish(matrix: Matrix, failures: list[Failure]) -> int:
    """Name the failures and write table.md, the sheets and report.html; return the exit status."""
    from ..benchmark.cell_states import COMPLETE, state_of
    from .main import main

    for failure in failures:
        print(f"FAILED {failure}", flush=True)
    output, table, page = matrix.output, matrix.output / "table.md", matrix.output / "report.html"
    complete = {cell.init.name for cell in matrix.cells() if state_of(cell).name == COMPLETE}
    words = [str(output)]
    words += ["--baseline", matrix.baseline] if matrix.baseline in complete else []
    status = 0
    if any(output.rglob("results.json")):
        if (status := main(["report", *words, "--output", str(table)])) == 0:
            # A sheet that cannot be drawn prints why; the page has none then.
            main(["sheet", str(output)])
            if len(matrix.tasks) > 1:
                main(["report", *words, "--summary", "--output", str(output / "summary.md")])
            status = main(["report", *words, "--format", "html", "--output", str(page)])
            written = f"{table} and {page}" if status == 0 else str(table)
            _track(matrix)
            print(f"\n{table.read_text(encoding='utf-8')}\nwrote {written}")
        if status:
            print(f"No complete report (see above); earlier files in {output} are unchanged.")
    if failures:
        again = f"fix the cause and continue with: moco-transfer benchmark --output {output}"
        print(f"{len(failures)} run(s) failed, named above; {again}")
    return 1 if failures or status else 0
