"""Before the first run: the plan of each run of a matrix. All faults are reported at once and
nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.label_subset import LabelSubset, read_label_subset
from ..finetune.datasets import Reads
from ..finetune.describe import describe_plan
from ..finetune.lint import Finding, collecting
from ..finetune.plan import FinetunePlan, Request, plan_finetuning
from ..runtime.errors import InputError
from .cell_states import COMPLETE, CellState, state_of
from .matrix import Cell, Matrix


@dataclass(frozen=True)
class PlannedCell:
    """A run that can start."""

    cell: Cell
    state: CellState
    iterations: int
    lines: tuple[str, ...]  # its plan in words


@dataclass(frozen=True)
class BenchmarkPlan:
    """The runs of a matrix in their order, and the label subsets to be written for them; one that
    is there stays for good.
    """

    matrix: Matrix
    cells: tuple[PlannedCell, ...]
    new_subsets: dict[Path, LabelSubset]


def plan_benchmark(matrix: Matrix, *, world_size: int) -> BenchmarkPlan:
    """Make the plan of every run, of ``world_size`` processes each.

    Raises:
        InputError: One sentence for each fault, all of them.
    """
    planner = _Planner(matrix, world_size)
    cells = [planner.plan(cell) for cell in matrix.cells()]
    if planner.faults:
        lines = [
            f"  - {', '.join(tasks)} from {', '.join(inits)}: {sentence}"
            for sentence, (tasks, inits) in planner.faults.items()
        ]
        first = f"Nothing was started; {len(lines)} thing(s) to fix first:"
        raise InputError("\n".join([first, *lines]))
    return BenchmarkPlan(matrix, tuple(filter(None, cells)), planner.new_subsets)


class _Planner:
    """Plans cell after cell; what several cells share is read once."""

    def __init__(self, matrix: Matrix, world_size: int) -> None:
        self.matrix, self.world_size = matrix, world_size
        self.reads = Reads()
        self.new_subsets: dict[Path, LabelSubset] = {}
        #: Sentence -> names of the tasks and of the rows that it holds for.
        self.faults: dict[str, tuple[dict[str, None], dict[str, None]]] = {}

    def plan(self, cell: Cell) -> PlannedCell | None:
        """Return a run, or None where it cannot start: see ``faults``."""
        findings: list[Finding] = []
        state = state_of(cell)
        planned = None
        with collecting(findings):
            plan = self._finetune_plan(cell, state)
            findings += (Finding("", fault) for fault in self._faults(cell, state, plan))
            lines = tuple(describe_plan(plan))
            planned = PlannedCell(cell, state, plan.schedule.iterations, lines)
        for finding in findings:
            tasks, inits = self.faults.setdefault(finding.sentence, ({}, {}))
            tasks[cell.task_name], inits[cell.init.name] = None, None
        return planned

    def _finetune_plan(self, cell: Cell, state: CellState) -> FinetunePlan:
        matrix = self.matrix
        words, subset = matrix.words(cell), matrix.subset_file(cell)
        if state.name == COMPLETE:  # its record is compared, whether checkpoints are there or not
            words[-1] = str(cell.folder / "not_there")
        request = Request(
            config_file=cell.task.config,
            overrides=words,
            datasets=(*matrix.datasets, *cell.task.datasets),
            engine=matrix.engine,
            precision=matrix.precision,
            task=cell.task.name,
            init=cell.init.name,
            label_subset=cell.labels,
            resume=True,
        )
        if subset is not None and subset.exists():
            read = partial(read_label_subset, subset, cell.labels)
            request = replace(request, label_subset=self.reads.once(("subset", subset), read))
        plan = plan_finetuning(request, world_size=self.world_size, reads=self.reads)
        if subset is not None and plan.data.subset is not None and not subset.exists():
            self.new_subsets[subset] = plan.data.subset
        return plan

    def _faults(self, cell: Cell, state: CellState, plan: FinetunePlan) -> Iterator[str]:
        if not plan.data.test_sets:
            yield "DATASETS.TEST names no data set: a benchmark compares results on one."
        for dataset in (*plan.data.train_sets, *plan.data.test_sets):
            key = ("images", dataset.name, cell.task_name)
            yield from self.reads.once(key, partial(_image_faults, dataset))
        record, header = state.record, plan.header
        if record is None:
            return
        pairs = {
            "task": (record.task, header["task"]),
            "init": (record.init, header["init"]),
            "seed": (record.seed, header["seed"]),
            "engine": (record.engine, header["engine"]),
            "precision": (record.precision or header["precision"], header["precision"]),
            "config hash": (record.config_hash, header["config_hash"]),
            "sha256 of the weights": (record.weights.get("sha256"), header["weights_sha256"]),
            "label subset": (
                record.label_draw or record.label_subset or None,
                header["label_subset_sha256"],
            ),
        }
        other = [f"{key} {was!r}, now {now!r}" for key, (was, now) in pairs.items() if was != now]
        if other:
            remedy = "Choose another --output, or move that folder away to run it again"
            yield f"{cell.folder} holds another run ({'; '.join(other)}). {remedy}."


def _image_faults(dataset: DetectionDataset) -> list[str]:
    """Return a sentence for broken links and empty files, at which a run would fail after hours."""
    files = [record["file_name"] for record in dataset.records]
    with ThreadPoolExecutor(16) as pool:  # a network file system takes its time for each
        sizes = pool.map(_size_of, files, chunksize=256)
        bad = [file for file, size in zip(files, sizes, strict=True) if not size]
    what = f"{len(bad)} of its {len(files)} images are empty or cannot be read"
    return [f"data set {dataset.name}: {what}; the first is {bad[0]}."] if bad else []


def _size_of(file: str) -> int:
    try:
        return os.path.getsize(file) if os.access(file, os.R_OK) else 0
    except OSError:
        return 0
