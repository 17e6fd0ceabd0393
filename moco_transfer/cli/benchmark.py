"""Fine-tune a matrix of runs, task x initialisation x seed, and make its table.

Shows the matrix first, with the hours it will take; reads all configs, data and weights before the
first run; runs what is missing, goes on with what was interrupted, leaves what is complete, goes on
past a run that fails and names it at the end. The same command, or `benchmark --output FOLDER`
alone, goes on after an interruption, with the launcher that it had. Each run has a folder of its
    own: OUTPUT/TASK/INIT/seedN. At the end OUTPUT holds table.md, report.html and, for each table,
        a sheet of detections.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")  # of a config: SEED, SOLVER.MAX_ITER

EPILOG = """examples:
  the paper's comparison on VOC and COCO, five seeds each, one run per GPU at a time:
    moco-transfer benchmark --tasks pascal_voc_R_50_C4_24k coco_R_50_FPN_1x \\
        --init random --init supervised=R50.pkl --init moco=moco.pkl --seeds 5 --output runs

  each run on all eight GPUs, or through Slurm:
    ... --launcher torchrun --nproc-per-node 8
    ... --launcher slurm --slurm partition=gpu gpus_per_node=8 timeout_min=1440

  what it would do, and every command, without doing it:
    ... --dry-run

  fewer labels: 1 % and 10 % of the labelled images, drawn once, kept in OUTPUT/subsets, the same for every row and seed:
    ... --label-fraction 0.01 0.1 1

  data of one's own, from a file that lists it all (tasks, inits, seeds, label_fractions, engine, datasets, overrides, baseline):
    moco-transfer benchmark --matrix cells.yaml --output runs
        tasks:
          - {name: cells, config: own_R_18_FPN_small, overrides: {DATASETS.TRAIN: cells_train, DATASETS.TEST: cells_test},
             datasets: ["cells_train=voc:BCCD:train:RBC,WBC,Platelets", "cells_test=voc:BCCD:test:RBC,WBC,Platelets"]}
        inits: {random: "", supervised: supervised.pkl, moco: moco.pkl}
        seeds: 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``benchmark``."""
    what = parser.add_argument_group("what is run")
    what.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder of all runs, of matrix.yaml and of the table",
    )
    what.add_argument(
        "--matrix",
        metavar="FILE",
        help="YAML file with the whole matrix, instead of the options of this group",
    )
    what.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="detection configs: files, or names of the package's",
    )
    what.add_argument(
        "--init",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a row: random, or NAME=FILE; may be repeated",
    )
    what.add_argument(
        "--seeds", type=int, metavar="N", help="runs per row, with seeds 0 to N-1 (default: 1)"
    )
    what.add_argument(
        "--label-fraction",
        nargs="+",
        default=[],
        metavar="F",
        help="shares of the labelled images (default: 1)",
    )
    what.add_argument(
        "--engine", metavar="auto|torchvision|detectron2", help="which engine runs (default: auto)"
    )
    what.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=...",
        help="data set of your own, as of `train`; may be repeated",
    )
    what.add_argument(
        "--baseline",
        default="",
        metavar="NAME",
        help="row that differences refer to (default: supervised, else random)",
    )
    what.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change in every run",
    )
    how = parser.add_argument_group("how it is run")
    launchers = ("local", "torchrun", "slurm")
    how.add_argument(
        "--launcher",
        choices=launchers,
        help="one process a run, torchrun, or Slurm (default: local)",
    )
    how.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="local: runs side by side (default: one per GPU, or one)",
    )
    how.add_argument(
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="torchrun: processes of a run (default: one per GPU)",
    )
    how.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="slurm: partition, account, gpus_per_node, timeout_min, mem_gb, ...",
    )
    how.add_argument(
        "--no-timing",
        action="store_true",
        help="do not time a few iterations first to estimate the hours",
    )
    how.add_argument(
        "--dry-run", action="store_true", help="show the matrix and every command; run nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Run the matrix; returns 0, 1 when a run failed or no table could be made, 143 on SIGTERM, 130
    on Ctrl-C.
    """
    from ..benchmark.build import cells_of, prepare, save_matrix, save_subsets
    from ..benchmark.launch import output_lock, train_command
    from ..benchmark.overview import overview
    from ..benchmark.run import Stopped, run_cells
    from ..benchmark.state import COMPLETE, state_of
    from ..benchmark.timing import time_task

    _return_overrides(args)
    matrix, is_saved = _matrix(args)
    settings = _settings(args, matrix.output if is_saved else None)
    num_processes, lanes, num_gpus = _processes(settings)
    prepared = prepare(matrix, world_size=num_processes)
    cells = cells_of(matrix, prepared)
    todo = [(cell, iterations) for cell, iterations in cells if state_of(cell).name != COMPLETE]

    def timed(task):
        return time_task(
            matrix, task, num_processes=num_processes, lanes=lanes, runs=len(todo), num_gpus=_gpus()
        )

    is_timed = (
        not args.no_timing and settings.launcher != "slurm"
    )  # where the jobs run is another machine
    how = {"num_processes": num_processes, "lanes": lanes, "launcher": settings.launcher}
    print(overview(matrix, prepared, **how, time_task=timed if is_timed else None), flush=True)

    def command(cell) -> list[str]:
        return train_command(matrix.arguments(cell), num_processes=num_processes)

    if args.dry_run:
        print("\n".join(shlex.join(command(cell)) for cell, _ in todo))
        return 0
    with output_lock(matrix.output) as lock:
        todo = [(cell, iterations) for cell, iterations in todo if state_of(cell).name != COMPLETE]
        launcher = _launcher(settings, matrix.output, lanes, num_gpus, lock)
        save_matrix(matrix)
        save_subsets(matrix, prepared)
        settings.save(matrix.output)
        try:
            failures = run_cells(todo, launcher, command, on_finished=_say_finished) if todo else []
        except Stopped as stop:
            print(_stopped(stop, launcher, matrix.output), flush=True)
            return 128 + stop.signum
    return _finish(matrix, failures)


def _stopped(stop, launcher, output: Path) -> str:
    again = f"moco-transfer benchmark --output {output}"
    if launcher.goes_on_alone:
        return (
            f"Stopped watching. {stop.num_running} job(s) stay in Slurm's queue or run on there;"
            f" end them with scancel, by the numbers in {output / 'slurm' / 'jobs.json'}. Watch"
            f" them again, and start what is missing, with: {again}"
        )
    if stop.num_killed:
        return (
            f"Stopped; {stop.num_killed} run(s) did not end in time and were killed: they go on"
            f" from their last checkpoint. Go on with: {again}"
        )
    return f"Stopped; every run has saved. Go on with: {again}"


def _return_overrides(args: argparse.Namespace) -> None:
    """Give KEY VALUE words back that an option of several words took with it: ``--label-fraction
    0.1 SOLVER.MAX_ITER 9000``.
    """
    for name in ("tasks", "label_fraction", "slurm"):
        values = getattr(args, name)
        start = next((i for i, word in enumerate(values) if _KEY.fullmatch(word)), len(values))
        args.overrides = [*values[start:], *args.overrides]
        setattr(args, name, values[:start])


def _fraction(word: str) -> float:
    from ..runtime.errors import InputError

    try:
        return float(word)
    except ValueError as error:
        raise InputError(
            f"--label-fraction {word!r}: expected numbers in (0, 1], such as 0.01 0.1."
        ) from error


def _matrix(args: argparse.Namespace) -> tuple:
    """Return the matrix, and whether it is the one that an earlier call has saved."""
    from ..benchmark.matrix import build_matrix, parse_init, parse_task, read_matrix
    from ..runtime.errors import InputError

    saved = Path(args.output) / "matrix.yaml"
    options = ("tasks", "init", "seeds", "label_fraction", "engine", "dataset", "overrides")
    named = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name)]
    if args.matrix and named:
        raise InputError(
            f"--matrix {args.matrix} holds the whole matrix; leave out {', '.join(named)}, or write"
            " it into that file."
        )
    if args.matrix:
        return _with_baseline(read_matrix(args.matrix, args.output), args.baseline), False
    if not named and saved.exists():
        return _with_baseline(read_matrix(saved, args.output), args.baseline), True
    matrix = build_matrix(
        args.output,
        tasks=[parse_task(task) for task in args.tasks],
        inits=[parse_init(text) for text in args.init],
        seeds=1 if args.seeds is None else args.seeds,
        label_fractions=[_fraction(word) for word in args.label_fraction],
        engine=args.engine or "auto",
        datasets=args.dataset,
        overrides=args.overrides,
        baseline=args.baseline,
    )
    return matrix, False


def _with_baseline(matrix, name: str):
    from dataclasses import replace

    from ..runtime.errors import InputError

    rows = [init.name for init in matrix.inits]
    if name and name not in rows:
        raise InputError(
            f"--baseline {name}: the matrix has no such row. Rows are {', '.join(rows)}."
        )
    return replace(matrix, baseline=name) if name else matrix


def _settings(args: argparse.Namespace, saved_in: Path | None):
    """Return how to run: as the options say, or, where they say nothing and the matrix is a saved
    one, as it was begun.
    """
    from ..benchmark.launch import LaunchSettings
    from ..runtime.errors import InputError

    for name in ("jobs", "nproc_per_node"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least 1."
            )
    if saved_in is not None and not (
        args.launcher or args.jobs or args.nproc_per_node or args.slurm
    ):
        settings = LaunchSettings.read(saved_in)
        if settings is not None:
            return settings
    # The processes of a run are part of what it computes: they are noted as a number, not as "one
    # per GPU".
    nproc = args.nproc_per_node or (max(1, _gpus()) if args.launcher == "torchrun" else None)
    return LaunchSettings(args.launcher or "local", args.jobs, nproc, tuple(args.slurm))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _processes(settings) -> tuple[int, int, int]:
    """Return the processes of a run, the runs side by side, and the GPUs that they take turns on."""
    if settings.launcher == "torchrun":
        return settings.nproc_per_node or 1, 1, 0
    if settings.launcher == "slurm":
        return _whole_number(_slurm(settings.slurm), "gpus_per_node"), 1, 0
    gpus = _gpus()
    return 1, settings.jobs or max(1, gpus), gpus if (settings.jobs or gpus) > 1 else 0


def _whole_number(parameters: dict[str, str], key: str) -> int:
    from ..runtime.errors import InputError

    text = parameters.get(key, "1")
    if not text.isdecimal() or text == "0":
        raise InputError(f"--slurm {key}={text}: expected a whole number of at least 1.")
    return int(text)


def _slurm(words: Sequence[str]) -> dict[str, str]:
    from ..runtime.errors import InputError

    for word in words:
        if "=" not in word:
            raise InputError(f"--slurm {word!r}: expected KEY=VALUE, such as partition=gpu.")
    return dict(word.split("=", 1) for word in words)


def _launcher(settings, output: Path, lanes: int, num_gpus: int, lock: int):
    from ..benchmark.launch import LocalLauncher, SlurmLauncher
    from ..runtime.errors import InputError

    if settings.launcher == "slurm":
        parameters = _slurm(settings.slurm)
        if _whole_number(parameters, "nodes") != 1:
            raise InputError(
                f"--slurm nodes={parameters['nodes']}: a run uses one node; give it more GPUs with"
                " gpus_per_node."
            )
        return SlurmLauncher(output / "slurm", parameters)
    return LocalLauncher(lanes=lanes, num_gpus=num_gpus, lock=lock)


def _say_finished(cell) -> None:
    from tqdm import tqdm

    from ..report import read_run

    record = read_run(cell.folder / "results.json")[0]
    numbers = ", ".join(
        f"{kind} AP {group['AP']:.1f}" for kind, group in record.metrics.items() if "AP" in group
    )
    tqdm.write(f"{cell.folder}: {numbers} in {(record.wall_sec or 0) / 60:.1f} min")


def _finish(matrix, failures: list) -> int:
    from ..benchmark.state import COMPLETE, state_of
    from .main import main

    again = f"moco-transfer benchmark --output {matrix.output}"
    for failure in failures:
        print(f"FAILED {failure}", flush=True)
    output, table, page = (
        str(matrix.output),
        matrix.output / "table.md",
        matrix.output / "report.html",
    )
    has_baseline = any(
        cell.init.name == matrix.baseline and state_of(cell).name == COMPLETE
        for cell in matrix.cells()
    )
    words = [output, *(("--baseline", matrix.baseline) if has_baseline else ())]
    status = 0
    if any(matrix.output.rglob("results.json")):
        status = main(["report", *words, "--output", str(table)])
        if status == 0:
            # A sheet that cannot be drawn says why, and the page does without it.
            main(["sheet", output])
            status = main(["report", *words, "--format", "html", "--output", str(page)])
            written = f"{table} and {page}" if status == 0 else str(table)
            print(
                f"\n{table.read_text(encoding='utf-8')}\nwrote {written}; other forms:"
                " moco-transfer report --help"
            )
        if status:
            print(
                "The report could not be made whole (see above); files of an earlier one in"
                f" {output} are left as they are."
            )
    if failures:
        print(
            f"{len(failures)} run(s) failed, named above as FAILED; fix the cause and go on with:"
            f" {again}"
        )
    return 1 if failures or status else 0
