"""The commands that make a table: pretrain, linear, convert, benchmark, in this order.

Folders below the output: ``pretrain/NAME``, ``linear/NAME/seedN``, ``backbones/NAME.pkl`` and those
of the benchmark, ``TASK/INIT/seedN``; NAME is that of the pre-training or of ``--init``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import load_pretrain_config
from ..runtime.errors import InputError
from .paper import PaperTable, Part, Pretraining
from .render import can_run

_LINEAR = "linear/top1"
_BACKBONE = ".pkl"  # ends the name of a file that `benchmark` takes as it is


@dataclass(frozen=True)
class Request:
    """What to make, and with what."""

    tables: Sequence[PaperTable]  # with the parts, rows and columns that are wanted
    output: Path
    weights: dict[str, str]  # init -> file of --init; "" for random
    images: Path | None = None  # pre-training and the linear protocol need them
    seeds: int | None = None  # None: the published number of trials, or one
    engine: str = ""
    num_gpus: int | None = None
    msra: bool = False  # the configs of the paper's own supervised row
    pretrain_words: tuple[str, ...] = ()
    finetune_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One command, ``moco-transfer`` and ``words``."""

    words: tuple[str, ...]
    result: Path | None = None  # what exists when it is done; None: the verb itself looks
    gpu_hours: float | None = None  # published; None: not known

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        return self.result is not None and self.result.exists()


def plan_steps(request: Request) -> list[Step]:
    """Return the commands, those that are done included.

    Raises:
        InputError: If there is nothing to run, or an option is missing for it.
    """
    wanted = list(_wanted_features(request))
    transfer = [part for table in request.tables for part in table.parts if part.setting]
    pretrained = _pretrained_inits(request, transfer)
    if request.images is None and not (request.weights and transfer):
        names = ", ".join(table.name for table in request.tables)
        need = "--init NAME=FILE (or random)" if transfer else "--images FOLDER"
        raise InputError(f"{names}: nothing to run. Give {need}; without --output, it is shown.")
    steps: dict[Step, None] = {}
    encoders = {name: (file, table) for name, file, table in _linear_encoders(request, wanted)}

    def test_features(name: str) -> None:
        file, table = encoders.pop(name)
        for seed in range(request.seeds or 1):
            steps[_linear(request, name, file, table, seed)] = None

    for pretraining, images, monitor in [*_once(wanted), *pretrained.values()]:
        if pretraining.name not in request.weights:
            steps[_pretrain(request, pretraining, images, monitor)] = None
            if pretraining.name in encoders:
                test_features(pretraining.name)
    for name in list(encoders):
        test_features(name)
    backbones = {}
    for name, file in _encoder_files(request, pretrained).items():
        backbones[name] = file
        if file and not file.endswith(_BACKBONE) and transfer:
            backbones[name] = str(request.output / "backbones" / f"{name}{_BACKBONE}")
            steps[Step(("convert", file, backbones[name]), Path(backbones[name]))] = None
    for step in _benchmarks(request, transfer, backbones) if transfer and backbones else ():
        steps[step] = None
    if not steps:
        names = ", ".join(table.name for table in request.tables)
        raise InputError(f"{names}: none of these rows can be run here; `reproduce` says why.")
    return _without_repeated(steps)


_Wanted = tuple[Pretraining, Path, bool, bool]  # its images, whether kNN watches, whether linear


def _wanted_features(request: Request) -> Iterator[_Wanted]:
    """Yield the pre-trainings behind the numbers of features, with what has to be measured."""
    for table in request.tables if request.images else ():
        for part in table.parts:
            for row in part.rows if part.setting is None else ():
                for column, pretraining in row.pretrainings.items() if can_run(row) else ():
                    is_linear = part.metric_of(column) == _LINEAR
                    images = _images(request, table, "train")
                    yield pretraining, images, row.monitor, is_linear


def _once(wanted: Iterable[_Wanted]) -> Iterator[tuple[Pretraining, Path, bool]]:
    """Yield each pre-training once; kNN watches it if it does so for one of its numbers."""
    wanted = list(wanted)
    for pretraining in dict.fromkeys(one for one, *_ in wanted):
        same = [item for item in wanted if item[0] == pretraining]
        yield pretraining, same[0][1], any(monitor for _, _, monitor, _ in same)


def _pretrained_inits(
    request: Request, parts: Iterable[Part]
) -> dict[str, tuple[Pretraining, Path, bool]]:
    """Return the rows of transfer tables that have to be pre-trained: by their init."""
    if request.images is None:
        return {}
    rows = [row for part in parts for row in part.rows]
    table = request.tables[0]
    return {
        row.init: (next(iter(row.pretrainings.values())), _images(request, table, "train"), False)
        for row in rows
        if row.pretrainings and can_run(row) and row.init not in request.weights
    }


def _images(request: Request, table: PaperTable, split: str) -> Path:
    """Return the folder of the training images or, for "test", of the labelled test images."""
    root = Path(request.images or "")
    if table.images == "cifar10" and not (root / "train").is_dir():
        return root  # the data set as it is downloaded
    if split == "train":
        return root / "train"
    return root / "test" if (root / "test").is_dir() else root / "val"


def _pretrain_config(request: Request, pretraining: Pretraining) -> list[str]:
    if "SOLVER.MAX_ITER" in request.pretrain_words:
        raise InputError(
            "--pretrain SOLVER.MAX_ITER: checkpoints are named by epochs here. Shorten the"
            " pre-training with SOLVER.EPOCHS."
        )
    return [*pretraining.overrides, *request.pretrain_words]


def _checkpoint(request: Request, pretraining: Pretraining) -> str:
    """Return the last checkpoint of a pre-training."""
    words = _pretrain_config(request, pretraining)
    epochs = load_pretrain_config(pretraining.config, words).SOLVER.EPOCHS
    return str(request.output / "pretrain" / pretraining.name / f"checkpoint_{epochs:04d}.pth")


def _pretrain(request: Request, pretraining: Pretraining, images: Path, monitor: bool) -> Step:
    checkpoint = Path(_checkpoint(request, pretraining))
    words = ["pretrain", *_processes(request), "--config-file", pretraining.config, "--resume"]
    words += [*_pretrain_config(request, pretraining), "DATA.ROOT", str(images)]
    if monitor:
        tables = (t for t in request.tables for p in t.parts for r in p.rows if r.monitor)
        words += ["KNN.TEST", str(_images(request, next(tables), "test"))]
    words += ["OUTPUT_DIR", str(checkpoint.parent)]
    return Step(tuple(words), checkpoint, pretraining.gpu_hours)


def _linear_encoders(
    request: Request, wanted: Iterable[_Wanted]
) -> Iterator[tuple[str, str, PaperTable]]:
    """Yield name, file and table of each encoder whose features are tested."""
    for table in request.tables if request.images else ():
        linear_rows = [
            row
            for part in table.parts
            for row in part.rows
            if any(part.metric_of(column) == _LINEAR for column in row.pretrainings)
        ]
        known = [p for row in linear_rows for p in dict.fromkeys(row.pretrainings.values())]
        for pretraining in dict.fromkeys(p for p, _, _, is_linear in wanted if is_linear):
            if pretraining in known:
                file = request.weights.get(pretraining.name) or _checkpoint(request, pretraining)
                yield pretraining.name, file, table
        own = set(request.weights) - {pretraining.name for pretraining in known} - {"random"}
        if linear_rows and not any(row.vary for row in linear_rows):
            for name in sorted(own):
                yield name, request.weights[name], table


def _linear(request: Request, name: str, file: str, table: PaperTable, seed: int) -> Step:
    output = request.output / "linear" / name / f"seed{seed}"
    words = ["linear", *_processes(request), file]
    for split in ("train", "test"):
        words += [f"--{split}", str(_images(request, table, split))]
    words += ["--output", str(output), "--seed", str(seed), "--resume"]
    return Step(tuple(words), output / "results.json")


def _encoder_files(
    request: Request, pretrained: dict[str, tuple[Pretraining, Path, bool]]
) -> dict[str, str]:
    """Return the rows of the benchmark: init -> file, "" for random."""
    made = {init: _checkpoint(request, one) for init, (one, _, _) in pretrained.items()}
    return request.weights | made


def _benchmarks(
    request: Request, parts: Sequence[Part], backbones: dict[str, str]
) -> Iterator[Step]:
    """Yield one matrix for each number of trials, with all tasks that have it."""
    by_trials: dict[int, dict[str, Part]] = {}
    for part in parts:
        by_trials.setdefault(request.seeds or part.trials or 1, {})[_task(request, part)] = part
    for trials, tasks in by_trials.items():
        words = ["benchmark", "--output", str(request.output), "--tasks", *tasks]
        for name, file in backbones.items():
            words += ["--init", f"{name}={file}" if file else name]
        words += ["--seeds", str(trials)]
        words += ["--engine", request.engine] if request.engine else []
        words += [*_processes(request), *request.finetune_words]
        hours = [part.gpu_hours for part in tasks.values()]
        known = [h * trials * len(backbones) for h in hours if h is not None]
        yield Step(tuple(words), gpu_hours=sum(known) if len(known) == len(hours) else None)


def _task(request: Request, part: Part) -> str:
    tasks = part.setting.tasks if part.setting else []
    found = [task for task in tasks if task.endswith("_msra") == request.msra]
    if not found:
        raise InputError(f"{part.name}: there is no config for it{' of --msra' * request.msra}.")
    return found[0]


def _processes(request: Request) -> list[str]:
    return ["--num-gpus", str(request.num_gpus)] if request.num_gpus else []


def _without_repeated(steps: Iterable[Step]) -> list[Step]:
    """Drop a pre-training that kNN does not watch where the same one is watched."""
    found: dict[object, Step] = {}
    for step in steps:
        key = step.result or step.words
        if key not in found or len(step.words) > len(found[key].words):
            found[key] = step
    return list(found.values())
