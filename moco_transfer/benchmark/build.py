"""Before the first run: every config, data set and weight file of a matrix is read and held against
each other, and all faults are said at once.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.label_subset import (
    LabelSubset,
    draw_label_subset,
    read_label_subset,
    take_label_subset,
    write_label_subset,
)
from ..finetune.datasets import Reads
from ..finetune.engine import engine_class
from ..finetune.lint import PlanError
from ..finetune.plan import FinetunePlan, Request, plan_finetuning
from ..finetune.trainer import start, step
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from .matrix import Cell, Initialisation, Matrix, Task, read_matrix
from .state import COMPLETE, INTERRUPTED, difference_from_record, state_of

logger = logging.getLogger(__name__)


@dataclass
class PreparedTask:
    """A task, read.

    Attributes:
        plans: The plan of a run from each initialisation, by its name.
        subsets: Label fraction below 1 to the images that it uses: those of its file, or those
            that it will be given.
    """

    plans: dict[str, FinetunePlan]
    subsets: dict[float, LabelSubset] = field(default_factory=dict)

    @property
    def plan(self) -> FinetunePlan:
        """One of the plans; data and schedule are the same in all."""
        return next(iter(self.plans.values()))

    @property
    def num_iterations(self) -> int:
        """Length of a run."""
        return self.plan.schedule.iterations

    @property
    def num_test_images(self) -> int:
        """Of all test sets together."""
        return sum(len(dataset.records) for dataset in self.plan.data.test_sets)


def prepare(matrix: Matrix, *, world_size: int) -> dict[str, PreparedTask]:
    """Make the plans of a matrix's runs, and write nothing.

    Args:
        matrix: The matrix.
        world_size: Number of processes of each run.

    Returns:
        The tasks by name.

    Raises:
        InputError: One sentence for each fault, all of them.
    """
    reads = Reads()
    where: dict[str, list[tuple[str, str]]] = {}  # most faults are the same for many runs
    prepared = {}
    engine_class(matrix.engine)
    for task in matrix.tasks:
        plans = {}
        for init in matrix.inits:
            try:
                plans[init.name] = plan_task(matrix, task, init, world_size, reads)
            except PlanError as error:
                for finding in error.findings:
                    where.setdefault(finding.sentence, []).append((task.name, init.name))
            except InputError as error:
                where.setdefault(str(error), []).append((task.name, init.name))
        if plans:
            prepared[task.name] = PreparedTask(plans)
    faults = [f"{_whose(matrix, pairs)}: {sentence}" for sentence, pairs in where.items()]
    for read in prepared.values():
        faults += _image_faults([*read.plan.data.train_sets, *read.plan.data.test_sets])
    if not faults:
        faults += _prepare_subsets(matrix, prepared)
    if not faults:
        faults += _foreign_runs(matrix, prepared, world_size, reads)
    if faults:
        faults = list(dict.fromkeys(faults))
        raise InputError(
            "\n".join(
                [
                    f"Nothing was started; {len(faults)} thing(s) to fix first:",
                    *(f"  - {fault}" for fault in faults),
                ]
            )
        )
    return prepared


def _whose(matrix: Matrix, pairs: list[tuple[str, str]]) -> str:
    tasks, inits = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    if len(inits) == len(matrix.inits):
        return f"task {', '.join(tasks)}"
    if len(tasks) == len(matrix.tasks):
        return f"init {', '.join(inits)}"
    return f"task {', '.join(tasks)} from {', '.join(inits)}"


def plan_task(
    matrix: Matrix,
    task: Task,
    init: Initialisation,
    world_size: int,
    reads: Reads,
    *,
    subset: LabelSubset | None = None,
    cell: Cell | None = None,
    force: bool = False,
) -> FinetunePlan:
    """Return the plan of a run of a matrix.

    Args:
        matrix, task, init: Which run.
        world_size: Number of processes.
        reads: Shared by all runs.
        subset: The images whose labels are used; None for all.
        cell: A run that continues; by default it is a new one, with any seed.
        force: Plan it in spite of the linter.

    Raises:
        InputError: With all that prevents it.
    """
    seed, folder = (cell.seed, cell.folder) if cell else (0, matrix.output / task.name / "new")
    words = [*matrix.overrides, *task.overrides]
    words += ["MODEL.WEIGHTS", init.weights, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
    request = Request(
        task.config,
        words,
        (*matrix.datasets, *task.datasets),
        engine=matrix.engine,
        task=task.name,
        init=init.name,
        label_subset=subset,
        resume=cell is not None,
        force=force,
    )
    return plan_finetuning(request, world_size=world_size, reads=reads)


def _image_faults(datasets: Iterable[DetectionDataset]) -> Iterator[str]:
    """Name images that a run would stumble over after hours: a broken link or an empty file is
    listed in its folder all the same.
    """
    for dataset in datasets:
        files = [record["file_name"] for record in dataset.records]
        with ThreadPoolExecutor(16) as pool:  # a network file system takes its time for each
            bad = [
                file
                for file, size in zip(files, pool.map(_size_of, files, chunksize=256), strict=True)
                if not size
            ]
        if bad:
            yield (
                f"data set {dataset.name}: {len(bad)} of its {len(files)} images are empty or"
                f" cannot be read; the first is {bad[0]}."
            )


def _size_of(file: str) -> int:
    try:
        return os.path.getsize(file) if os.access(file, os.R_OK) else 0
    except OSError:
        return 0


def _prepare_subsets(matrix: Matrix, prepared: dict[str, PreparedTask]) -> Iterator[str]:
    for task in matrix.tasks:
        read = prepared[task.name]
        for fraction in matrix.label_fractions:
            file = matrix.subset_file(task, fraction)
            if file is None:
                continue
            try:
                read.subsets[fraction] = (
                    read_label_subset(file)
                    if file.exists()
                    else _as_written(draw_label_subset(read.plan.data.train_sets, fraction))
                )
                take_label_subset(read.plan.data.train_sets, read.subsets[fraction], file)
            except InputError as error:
                yield str(error)


def _as_written(subset: LabelSubset) -> LabelSubset:
    """Return a subset as it reads from a file: with its digest."""
    with tempfile.TemporaryDirectory() as folder:
        write_label_subset(Path(folder) / "subset.json", subset)
        return read_label_subset(Path(folder) / "subset.json")


def save_subsets(matrix: Matrix, prepared: dict[str, PreparedTask]) -> None:
    """Write the label subsets that are not there yet; one that is there stays as it is for good."""
    for task in matrix.tasks:
        for fraction, subset in prepared[task.name].subsets.items():
            file = matrix.subset_file(task, fraction)
            if file is not None and not file.exists():
                write_label_subset(file, subset)


def _foreign_runs(
    matrix: Matrix, prepared: dict[str, PreparedTask], world_size: int, reads: Reads
) -> Iterator[str]:
    for cell in matrix.cells():
        state, read = state_of(cell).name, prepared[cell.task.name]
        plan, subset = read.plans[cell.init.name], read.subsets.get(cell.fraction)
        if state == COMPLETE:
            fault = difference_from_record(
                cell,
                config_hash=plan.header["config_hash"],
                engine=plan.engine.name,
                weights_sha256=plan.weights.sha256,
                label_subset_sha256=subset.sha256 if subset is not None else None,
            )
            if fault:
                yield fault
        elif state == INTERRUPTED:
            try:
                plan_task(matrix, cell.task, cell.init, world_size, reads, subset=subset, cell=cell)
            except InputError as error:
                yield f"{cell.folder}: {error}"


def measure_speed(
    prepared: PreparedTask,
    *,
    world_size: int,
    num_iterations: int = 3,
    on_ready: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Time a few iterations and test images of a task on this machine, from random weights.

    What it takes of the GPU's memory stays taken: :mod:`moco_transfer.benchmark.timing` calls it in
    a process of its own.

    Args:
        prepared: The task.
        world_size: Number of processes that share the batch; one process's share is timed.
        num_iterations: Iterations and images that are timed, after one each that is not.
        on_ready: Called when all is built, before the first iteration.

    Returns:
        Seconds an iteration, and seconds a test image.
    """
    plan = prepared.plan
    cfg = plan.engine.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= world_size
    cfg.SEED = max(0, cfg.SEED)
    cfg.freeze()
    device = plan.engine.device
    made = type(plan.engine)(cfg, device)
    run = start(made, made.build_model(), {}, amp_dtype=plan.amp_dtype)

    def train(batch: list[dict]) -> None:
        run.begin_iteration(0)
        step(run, batch)

    on_ready()
    run.model.train()
    with made.training():
        train_sec = _seconds_each(
            made.training_batches(plan.data.train_sets, 0), train, num_iterations, device
        )
    run.model.eval()
    with torch.inference_mode():
        return train_sec, _seconds_each(
            made.test_batches(plan.data.test_sets[0]),
            made.detector(run.model),
            num_iterations,
            device,
        )


def _seconds_each(items, function, count: int, device: torch.device) -> float:
    started, done = time.perf_counter(), 0
    for number, item in enumerate(items):
        if number == 1:
            _wait_for(device)
            started = time.perf_counter()
        function(item)
        done = number
        if number == count:
            break
    _wait_for(device)
    return (time.perf_counter() - started) / max(1, done)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def save_matrix(matrix: Matrix) -> Path:
    """Write matrix.yaml into the output folder, so that ``benchmark --output FOLDER`` alone goes
    on, and return its path.

    Raises:
        InputError: If the matrix there gives another meaning to a name: a table must not mix the
            two.
    """
    file = matrix.output / "matrix.yaml"
    if file.exists():
        # Paths are compared as absolute ones; the options may have them as they are typed.
        matrix, old = (
            matrix.with_absolute_paths(),
            read_matrix(file, matrix.output).with_absolute_paths(),
        )
        before = {
            **{f"init {i.name}": i for i in old.inits},
            **{f"task {t.name}": t for t in old.tasks},
        }
        now = {
            **{f"init {i.name}": i for i in matrix.inits},
            **{f"task {t.name}": t for t in matrix.tasks},
        }
        for name in before.keys() & now.keys():
            if before[name] != now[name]:
                raise InputError(
                    f"{file} has another {name}: {before[name]}, now {now[name]}. Choose another"
                    " --output or another name."
                )
    atomic_write_text(file, matrix.with_absolute_paths().dump())
    return file


def cells_of(matrix: Matrix, prepared: dict[str, PreparedTask]) -> list[tuple[Cell, int]]:
    """Return the runs of a matrix, each with its number of iterations."""
    return [(cell, prepared[cell.task.name].num_iterations) for cell in matrix.cells()]
