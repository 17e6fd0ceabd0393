"""Run a matrix of fine-tuning runs, task x initialisation x seed, and make the table.

Configs, data and weights of all runs are checked first, and every fault is reported at once. Each
run has a folder of its own: OUTPUT/TASK/INIT/seedN. Complete runs are skipped and interrupted ones
resumed, so the same command, or `benchmark --output OUTPUT` alone, continues after any
interruption. A run that fails is named at the end and does not stop the others. At the end OUTPUT
holds table.md, report.html and, for each table, a sheet of detections.
"""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError

if TYPE_CHECKING:
    from ..benchmark.launch import LaunchSettings
    from ..benchmark.matrix import Cell, Matrix
    from ..benchmark.plan import BenchmarkPlan, PlannedCell
    from ..benchmark.run import Failure, Stopped

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")  # of a config: SEED, SOLVER.MAX_ITER

EPILOG = """examples:
  the paper's comparison on VOC and COCO, five seeds each, one run per GPU at a time:
    moco-transfer benchmark --tasks pascal_voc_R_50_C4_24k coco_R_50_FPN_1x \\
        --init random --init supervised=R50.pkl --init moco=moco.pkl --seeds 5 --output runs

  each run on all eight GPUs, or through Slurm:
    ... --launcher torchrun --num-gpus 8
    ... --launcher slurm --slurm partition=gpu gpus_per_node=8 timeout_min=1440

  the plan of each task and every command, without running anything:
    ... --dry-run

  fewer labels: 1 % and 10 % of the labelled images, drawn once, kept in OUTPUT/subsets, and the
  same for every row and seed:
    ... --label-fraction 0.01 0.1 1

  your own data, from a file that lists it all (tasks, inits, seeds, label_fractions, engine,
  datasets, overrides, baseline):
    moco-transfer benchmark --matrix cells.yaml --output runs
        tasks:
          - name: cells
            config: own_R_18_FPN_small
            overrides: {DATASETS.TRAIN: cells_train, DATASETS.TEST: cells_test}
            datasets: ["cells_train=voc:BCCD:train:RBC,WBC,Platelets",
                       "cells_test=voc:BCCD:test:RBC,WBC,Platelets"]
        inits: {random: "", supervised: supervised.pkl, moco: moco.pkl}
        seeds: 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``benchmark``."""
    what = parser.add_argument_group("what is run")
    output = "folder of all runs, of matrix.yaml and of the table"
    what.add_argument("--output", required=True, metavar="FOLDER", help=output)
    matrix = "YAML file with the whole matrix, instead of the options of this group"
    what.add_argument("--matrix", metavar="FILE", help=matrix)
    tasks = "detection configs: files, or names of the package's"
    what.add_argument("--tasks", nargs="+", default=[], metavar="CONFIG", help=tasks)
    init = "a row: random, or NAME=FILE; may be repeated"
    what.add_argument("--init", action="append", default=[], metavar="NAME=FILE", help=init)
    seeds = "runs per row, with seeds 0 to N-1 (default: 1)"
    what.add_argument("--seeds", type=int, metavar="N", help=seeds)
    fraction = "shares of the labelled images (default: 1)"
    what.add_argument("--label-fraction", nargs="+", default=[], metavar="F", help=fraction)
    engine = "which engine runs (default: auto)"
    what.add_argument("--engine", metavar="auto|torchvision|detectron2", help=engine)
    dataset = "your own data set, as of `train`; may be repeated"
    what.add_argument("--dataset", action="append", default=[], metavar="NAME=...", help=dataset)
    baseline = "row that differences refer to (default: supervised, else random)"
    what.add_argument("--baseline", default="", metavar="NAME", help=baseline)
    overrides = "config keys to change in every run"
    what.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=overrides)
    how = parser.add_argument_group("how it is run")
    launcher = "one process a run, torchrun, or Slurm (default: local)"
    how.add_argument("--launcher", choices=("local", "torchrun", "slurm"), help=launcher)
    jobs = "local: runs at a time (default: one per GPU, or one)"
    how.add_argument("--jobs", type=int, metavar="N", help=jobs)
    gpus = "torchrun: processes of a run (default: one per GPU)"
    how.add_argument("--num-gpus", "--nproc-per-node", type=int, metavar="N", help=gpus)
    slurm = "slurm: partition, account, gpus_per_node, timeout_min, mem_gb, ..."
    how.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help=slurm)
    dry_run = "print the matrix, a plan of each task and every command; run and write nothing"
    how.add_argument("--dry-run", action="store_true", help=dry_run)


def run(args: argparse.Namespace) -> int:
    """Run the matrix; returns 0, 1 when a run failed or no table could be made, 143 on SIGTERM, 130
    on Ctrl-C.
    """
    from ..benchmark.launch import output_lock, train_command
    from ..benchmark.overview import overview
    from ..benchmark.plan import plan_benchmark
    from ..benchmark.run import Stopped, run_cells
    from ..benchmark.state import COMPLETE, state_of

    _return_overrides(args)
    matrix, is_saved = _matrix(args)
    settings = _settings(args, matrix.output if is_saved else None)
    num_processes, num_gpus = settings.num_processes(), _num_gpus()
    plan = plan_benchmark(matrix, world_size=num_processes)
    print(overview(plan, settings, lanes=settings.lanes(num_gpus)), flush=True)

    def command(cell: Cell) -> list[str]:
        return train_command(matrix.arguments(cell), num_processes=num_processes)

    if args.dry_run:
        _print_plan(plan, command)
        return 0
    with output_lock(matrix.output) as lock:
        todo = [
            (planned.cell, planned.iterations)
            for planned in plan.cells
            if state_of(planned.cell).name != COMPLETE
        ]
        launcher = settings.make(matrix.output, num_gpus=num_gpus, lock=lock)
        matrix.save()
        plan.save_subsets()
        settings.save(matrix.output)
        try:
            failures = run_cells(todo, launcher, command, on_finished=_print_finished)
        except Stopped as stop:
            print(_stopped(stop, launcher, matrix.output), flush=True)
            return 128 + stop.signum
    return _finish(matrix, failures)


def _print_plan(plan: BenchmarkPlan, command: Any) -> None:
    """Print the plan of one run of each task, the weights of its other rows, and every command."""
    from ..benchmark.state import COMPLETE

    rows: dict[str, dict[str, PlannedCell]] = {}
    for planned in plan.cells:
        rows.setdefault(planned.cell.task_name, {}).setdefault(planned.cell.init.name, planned)
    for first, *others in (list(task.values()) for task in rows.values()):
        print("\n".join(["", str(first.cell.folder), *(f"  {line}" for line in first.lines)]))
        for other in others:
            lines = [line for line in other.lines if line.startswith(("weights:", "stamp:"))]
            print("\n".join([f"  row {other.cell.init.name}", *(f"    {line}" for line in lines)]))
    left = (planned.cell for planned in plan.cells if planned.state.name != COMPLETE)
    print("\n".join(["", *(shlex.join(command(cell)) for cell in left)]))


def _stopped(stop: Stopped, launcher: Any, output: Path) -> str:
    again = f"moco-transfer benchmark --output {output}"
    if launcher.outlives_benchmark:
        return (
            f"Stopped watching. {stop.num_running} job(s) stay in Slurm's queue or run on there;"
            f" end them with scancel, by the numbers in {output / 'slurm' / 'jobs.json'}. Watch"
            f" them again, and start what is missing, with: {again}"
        )
    if stop.num_killed:
        killed = f"{stop.num_killed} run(s) did not end in time and were killed"
        return f"Stopped; {killed}; they resume from their last checkpoint. Continue with: {again}"
    return f"Stopped; every run has saved. Continue with: {again}"


def _return_overrides(args: argparse.Namespace) -> None:
    """Give KEY VALUE words back that an option of several words took with it: ``--label-fraction
    0.1 SOLVER.MAX_ITER 9000``.
    """
    for name in ("tasks", "label_fraction", "slurm"):
        values = getattr(args, name)
        start = next((i for i, word in enumerate(values) if _KEY.fullmatch(word)), len(values))
        args.overrides = [*values[start:], *args.overrides]
        setattr(args, name, values[:start])


def _matrix(args: argparse.Namespace) -> tuple[Matrix, bool]:
    """Return the matrix, and whether it is the one that an earlier call has saved."""
    from ..benchmark import matrix as parts

    saved = Path(args.output) / "matrix.yaml"
    options = ("tasks", "init", "seeds", "label_fraction", "engine", "dataset", "overrides")
    named = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name)]
    if args.matrix and named:
        also = ", ".join(named)
        raise InputError(f"--matrix {args.matrix} holds the whole matrix; leave out {also}.")
    is_saved = not args.matrix and not named and saved.exists()
    if args.matrix or is_saved:
        matrix = parts.read_matrix(args.matrix or saved, args.output)
        return (replace(matrix, baseline=args.baseline) if args.baseline else matrix), is_saved
    matrix = parts.Matrix(
        Path(args.output),
        tuple(map(parts.parse_task, args.tasks)),
        tuple(map(parts.parse_init, args.init)),
        parts.parse_seeds(1 if args.seeds is None else args.seeds),
        parts.parse_fractions(args.label_fraction),
        args.engine or "auto",
        tuple(args.dataset),
        tuple(args.overrides),
        args.baseline,
    )
    return matrix, False


def _settings(args: argparse.Namespace, saved_in: Path | None) -> LaunchSettings:
    """Return how to run: by the options or, where there are none and the matrix is a saved
    one, as before.
    """
    from ..benchmark.launch import LaunchSettings

    for name in ("jobs", "num_gpus"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected at least 1.")
    if saved_in is not None and not (args.launcher or args.jobs or args.num_gpus or args.slurm):
        settings = LaunchSettings.read(saved_in)
        if settings is not None:
            return settings
    launcher = args.launcher or ("torchrun" if args.num_gpus else "local")
    for name, owner in {"jobs": "local", "num_gpus": "torchrun", "slurm": "slurm"}.items():
        if getattr(args, name) and launcher != owner:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is for --launcher {owner}, got --launcher {launcher}.")
    # The processes of a run are part of what it computes: a number is saved, not "one per GPU".
    processes = args.num_gpus or (max(1, _num_gpus()) if launcher == "torchrun" else None)
    return LaunchSettings(launcher, args.jobs, processes, tuple(args.slurm))


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _print_finished(cell: Cell) -> None:
    from tqdm import tqdm

    from ..benchmark.state import state_of
    from ..report.aggregate import headline

    if (record := state_of(cell).record) is not None:
        tqdm.write(f"{cell.folder}: {headline(record)} in {(record.wall_sec or 0) / 60:.1f} min")


def _finish(matrix: Matrix, failures: list[Failure]) -> int:
    from ..benchmark.state import COMPLETE, state_of
    from .main import main

    for failure in failures:
        print(f"FAILED {failure}", flush=True)
    output, table, page = matrix.output, matrix.output / "table.md", matrix.output / "report.html"
    complete = {cell.init.name for cell in matrix.cells() if state_of(cell).name == COMPLETE}
    words = [str(output)]
    words += ["--baseline", matrix.baseline] if matrix.baseline in complete else []
    status = 0
    if any(output.rglob("results.json")):
        status = main(["report", *words, "--output", str(table)])
        if status == 0:
            # A sheet that cannot be drawn prints why; the page has none then.
            main(["sheet", str(output)])
            status = main(["report", *words, "--format", "html", "--output", str(page)])
            written = f"{table} and {page}" if status == 0 else str(table)
            print(f"\n{table.read_text(encoding='utf-8')}\nwrote {written}")
        if status:
            print(f"No complete report (see above); earlier files in {output} are unchanged.")
    if failures:
        again = f"moco-transfer benchmark --output {output}"
        print(
            f"{len(failures)} run(s) failed, named above. Fix the cause and continue with: {again}"
        )
    return 1 if failures or status else 0
