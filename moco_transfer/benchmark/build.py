"""Before the first run: every config, data set and weight file of a matrix is read and held against
each other, and all faults are said at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import is_set_by_user, load_detection_config, reference_batch_and_lr
from ..data.annotations.catalog import DetectionDataset, parse_dataset_flag
from ..data.annotations.label_subset import (
    LabelSubset,
    draw_label_subset,
    read_label_subset,
    take_label_subset,
    write_label_subset,
)
from ..finetune.build import build_run
from ..finetune.build_data import find_datasets, fit_class_count, takes_class_count_from_data
from ..finetune.engines import build_model, choose_engine, engine_class
from ..finetune.handover import InitialWeights, coverage_gap, read_weights
from ..finetune.lint import lint
from ..finetune.results import config_hash
from ..finetune.scaling import scale_to_world_size
from ..finetune.trainer import step
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from .matrix import Cell, Initialisation, Matrix, Task, read_matrix
from .state import (
    COMPLETE,
    INTERRUPTED,
    difference_from_checkpoint,
    difference_from_record,
    state_of,
)

logger = logging.getLogger(__name__)


@dataclass
class PreparedTask:
    """A task, read.

    Attributes:
        cfg: Merged config, scaled to the number of processes.
        config_hash: That a run of it will record.
        train_sets: Training sets, with all labels.
        test_sets: Test sets.
        num_test_images: Of all test sets together.
        subsets: Label fraction below 1 to the images that it uses: those of its file, or those
            that it will be given.
    """

    cfg: object
    config_hash: str
    train_sets: list[DetectionDataset]
    test_sets: list[DetectionDataset]
    num_test_images: int
    subsets: dict[float, LabelSubset] = field(default_factory=dict)

    @property
    def num_iterations(self) -> int:
        """Length of a run."""
        return self.cfg.SOLVER.MAX_ITER


def prepare(matrix: Matrix, *, world_size: int) -> dict[str, PreparedTask]:
    """Read and check everything that the runs of a matrix need, and write nothing.

    Args:
        matrix: The matrix.
        world_size: Number of processes of each run.

    Returns:
        The tasks by name.

    Raises:
        InputError: One sentence for each fault, all of them.
    """
    faults: list[str] = []
    engine = choose_engine(matrix.engine)
    weights = _read_weights(matrix.inits, faults)
    prepared = {}
    for task in matrix.tasks:
        try:
            written, prepared[task.name] = prepare_task(matrix, task, world_size)
        except InputError as error:
            faults.append(f"task {task.name}: {error}")
            continue
        faults += _image_faults([*prepared[task.name].train_sets, *prepared[task.name].test_sets])
        faults += _hand_over_faults(task, written, weights, world_size, engine)
    if not faults:
        faults += _prepare_subsets(matrix, prepared)
        faults += _foreign_runs(matrix, prepared, weights, engine)
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


def _read_weights(
    inits: tuple[Initialisation, ...], faults: list[str]
) -> dict[str, InitialWeights]:
    found = {}
    for init in inits:
        try:
            found[init.name] = read_weights(init.weights, init=init.name)
        except InputError as error:
            faults.append(f"init {init.name}: {error}")
    return found


def prepare_task(matrix: Matrix, task: Task, world_size: int) -> tuple[object, PreparedTask]:
    """Return a task's config as it is written, and the task read; its annotations are, and its
    images are listed.

    Raises:
        InputError: If config or data cannot be used.
    """
    overrides = [*matrix.overrides, *task.overrides]
    written = load_detection_config(task.config, overrides)
    own = [parse_dataset_flag(flag) for flag in (*matrix.datasets, *task.datasets)]
    said = is_set_by_user(task.config, overrides, "MODEL.ROI_HEADS.NUM_CLASSES")
    used = {*written.DATASETS.TRAIN, *written.DATASETS.TEST}
    from_data = takes_class_count_from_data(
        written, [name for name in own if name in used], is_set_by_user=said
    )
    engine_class(matrix.engine).check(written)
    cfg = scale_to_world_size(written, world_size)
    train_sets, test_sets = find_datasets(cfg)
    cfg = fit_class_count(cfg, [*train_sets, *test_sets], from_data=from_data)
    return written, PreparedTask(
        cfg, config_hash(cfg), train_sets, test_sets, sum(len(d.records) for d in test_sets)
    )


def _hand_over_faults(
    task: Task, written, weights: dict[str, InitialWeights], world_size: int, engine: str
) -> Iterator[str]:
    with (
        torch.device("meta") if engine == "torchvision" else contextlib.nullcontext()
    ):  # Detectron2 moves its models to a real device
        model = build_model(written, engine)
    whose: dict[str, list[str]] = {}  # most faults are the same for every row
    for name, initial in weights.items():
        findings = [
            f.sentence
            for f in lint(
                written,
                initial,
                world_size=world_size,
                reference=reference_batch_and_lr(task.config),
            )
        ]
        gap = coverage_gap(model, initial, f"resnet{written.MODEL.RESNETS.DEPTH}")
        for sentence in [*findings, *([gap] if gap else [])]:
            whose.setdefault(sentence, []).append(name)
    for sentence, names in whose.items():
        yield f"task {task.name} from {', '.join(names)}: {sentence}"


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
                    else _as_written(draw_label_subset(read.train_sets, fraction))
                )
                take_label_subset(read.train_sets, read.subsets[fraction], file)
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
    matrix: Matrix,
    prepared: dict[str, PreparedTask],
    weights: dict[str, InitialWeights],
    engine: str,
) -> Iterator[str]:
    differences = {COMPLETE: difference_from_record, INTERRUPTED: difference_from_checkpoint}
    for cell in matrix.cells():
        compare = differences.get(state_of(cell).name)
        if compare is None:
            continue
        content, read = weights[cell.init.name].content, prepared[cell.task.name]
        subset = read.subsets.get(cell.fraction)
        fault = compare(
            cell,
            config_hash=read.config_hash,
            engine=engine,
            weights_sha256=content.sha256 if content is not None else None,
            label_subset_sha256=subset.sha256 if subset is not None else None,
        )
        if fault:
            yield fault


def measure_speed(
    prepared: PreparedTask,
    engine: str,
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
        engine: That will run it.
        world_size: Number of processes that share the batch; one process's share is timed.
        num_iterations: Iterations and images that are timed, after one each that is not.
        on_ready: Called when all is built, before the first iteration.

    Returns:
        Seconds an iteration, and seconds a test image.
    """
    cfg = prepared.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= world_size
    cfg.SEED = max(0, cfg.SEED)
    cfg.freeze()
    device = torch.device(
        "cuda" if cfg.MODEL.DEVICE == "cuda" and torch.cuda.is_available() else "cpu"
    )
    made = engine_class(engine)(cfg, device)
    run = build_run(cfg, made, made.build_model(), {})

    def train(batch: list[dict]) -> None:
        run.begin_iteration(0)
        step(run, batch)

    on_ready()
    run.model.train()
    with made.training():
        train_sec = _seconds_each(
            made.training_batches(prepared.train_sets, 0), train, num_iterations, device
        )
    run.model.eval()
    with torch.inference_mode():
        return train_sec, _seconds_each(
            made.test_batches(prepared.test_sets[0]),
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
