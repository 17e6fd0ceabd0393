"""What a benchmark consists of: tasks, initialisations, seeds and amounts of labels, and the runs
that follow from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..config import name_of
from ..data.annotations.label_subset import LabelDraw
from ..runtime.errors import InputError, UnknownKeyError, did_you_mean
from ..runtime.files import atomic_write_text
from ..runtime.text import read_yaml

RANDOM = "random"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")  # it names a folder
# Places of paths behind NAME=KIND: in a --dataset flag; at 2 may be the names of classes.
_PATHS = {
    "coco": (0, 1),
    "lvis": (0, 1),
    "voc": (0, 2),
    "yolo": (0,),
    "cityscapes": (0, 1),
    "semantic": (0, 1, 2),
}


@dataclass(frozen=True)
class Task:
    """A detection config (a YAML file, or the name of one that comes with the package), with data
    sets of one's own (``--dataset`` flags) and KEY VALUE words; ``name`` is for tables and folders.
    """

    name: str
    config: str
    datasets: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Initialisation:
    """A row of the table: its name, and the file for MODEL.WEIGHTS ("" for random weights)."""

    name: str
    weights: str = ""


@dataclass(frozen=True)
class Cell:
    """One run of the matrix; ``labels`` is how many of them it uses, ``folder`` its OUTPUT_DIR."""

    task: Task
    init: Initialisation
    seed: int
    labels: LabelDraw
    folder: Path

    @property
    def task_name(self) -> str:
        """The task's name in results.json; runs on a part of the labels are a task of their own."""
        return self.task.name + self.labels.suffix


@dataclass(frozen=True)
class Matrix:
    """Every run of a benchmark.

    Raises:
        InputError: If a part is empty, named twice, or out of range.
    """

    output: Path  # folder of all runs
    tasks: tuple[Task, ...]
    inits: tuple[Initialisation, ...]
    seeds: tuple[int, ...] = (0,)
    label_fractions: tuple[float, ...] = ()  # shares of the labelled images in (0, 1]
    shots: tuple[int, ...] = ()  # objects of each class; without these and shares: all labels
    subset_per_seed: bool = False  # each seed has its own part of the labels, the same in all rows
    engine: str = "auto"
    precision: str = "auto"
    datasets: tuple[str, ...] = ()  # --dataset flags for every task
    overrides: tuple[str, ...] = ()  # KEY VALUE words for every task
    baseline: str = ""  # row that differences refer to; "" means supervised, else random

    def __post_init__(self) -> None:
        """Check the parts."""
        rows = [init.name for init in self.inits]
        _check_names("task", [task.name for task in self.tasks], "--tasks pascal_voc_R_50_C4_24k")
        _check_names("init", rows, "--init moco=backbone.pkl")
        if self.subset_per_seed and all(draw.is_all for draw in self.amounts(0)):
            expected = "--label-fraction below 1 or --shots"
            raise InputError(f"--subset-per-seed draws a part of the labels: give {expected} too.")
        for words in (self.overrides, *(task.overrides for task in self.tasks)):
            if len(words) % 2:
                raise InputError(f"KEY VALUE words, expected pairs: {' '.join(words)}.")
        if self.baseline and self.baseline not in rows:
            known = ", ".join(rows)
            raise InputError(f"The baseline {self.baseline!r} is no row. Rows are {known}.")

    def amounts(self, seed: int) -> list[LabelDraw]:
        """Return how many labels the runs of a seed use."""
        own = self.subset_per_seed
        draw = partial(LabelDraw, seed=seed if own else 0, per_seed=own)
        fractions = self.label_fractions or (() if self.shots else (1.0,))
        shares = [draw(fraction) if fraction < 1 else LabelDraw() for fraction in fractions]
        return [*shares, *(draw(None, shots) for shots in self.shots)]

    def cells(self) -> list[Cell]:
        """Return the runs, seed by seed, so that a first comparison of all rows is there early."""
        return [
            Cell(
                task, init, seed, labels,
                self.output / (task.name + labels.suffix) / init.name / f"seed{seed}",
            )
            for seed in self.seeds
            for task in self.tasks
            for labels in self.amounts(seed)
            for init in self.inits
        ]  # fmt: skip

    def subset_file(self, cell: Cell) -> Path | None:
        """Return where the labelled images of a run are listed, or None for all of them."""
        if cell.labels.is_all:
            return None
        seed = f"_seed{cell.seed}" if cell.labels.per_seed else ""
        return self.output / "subsets" / f"{cell.task_name}{seed}.json"

    def words(self, cell: Cell) -> list[str]:
        """Return the KEY VALUE words of a run."""
        start = ["MODEL.WEIGHTS", cell.init.weights, "SEED", str(cell.seed)]
        return [*self.overrides, *cell.task.overrides, *start, "OUTPUT_DIR", str(cell.folder)]

    def arguments(self, cell: Cell) -> list[str]:
        """Return the words after ``moco-transfer train`` for a run."""
        arguments = ["--config-file", cell.task.config, "--engine", self.engine]
        arguments += ["--precision", self.precision] if self.precision != "auto" else []
        arguments += ["--task", cell.task.name, "--init", cell.init.name, "--resume"]
        subset = self.subset_file(cell)
        arguments += ["--label-subset", str(subset)] if subset else []
        for flag in (*self.datasets, *cell.task.datasets):
            arguments += ["--dataset", flag]
        return [*arguments, *self.words(cell)]

    def with_absolute_paths(self) -> Matrix:
        """Return the same matrix with paths that hold in any folder."""

        def flags(datasets: Sequence[str]) -> tuple[str, ...]:
            return tuple(map(_absolute_flag, datasets))

        tasks = tuple(
            Task(t.name, _absolute(t.config, only_files=True), flags(t.datasets), t.overrides)
            for t in self.tasks
        )
        inits = tuple(
            replace(init, weights=_absolute(init.weights, only_files=True)) for init in self.inits
        )
        return replace(self, tasks=tasks, inits=inits, datasets=flags(self.datasets))

    def dump(self) -> str:
        """Return the matrix as YAML that :func:`read_matrix` reads again."""
        data = json.loads(json.dumps(asdict(self), default=str))  # with lists for tuples
        del data["output"]
        data["inits"] = {init.name: init.weights for init in self.inits}
        return yaml.safe_dump(data, sort_keys=False)

    def save(self) -> Path:
        """Write matrix.yaml into the output folder, so that ``benchmark --output FOLDER`` alone
        continues, and return its path.
        """
        file = self.output / "matrix.yaml"
        atomic_write_text(file, self.with_absolute_paths().dump())
        return file


def _absolute(path: str, *, only_files: bool = False) -> str:
    # A config may be a name of the package's and weights published ones, which no folder changes.
    return str(Path(path).absolute()) if path and (not only_files or Path(path).is_file()) else path


def _absolute_flag(flag: str) -> str:
    name, equals, rest = flag.partition("=")
    kind, *fields = rest.split(":")
    for place in _PATHS.get(kind, ()):
        if place < len(fields):
            fields[place] = _absolute(fields[place], only_files=place == 2)
    flag = f"{name}{equals}{':'.join([kind, *fields])}"
    return re.sub(r"(?<=\blist_file=)[^,:]+", lambda found: _absolute(found[0]), flag)


def _check_names(kind: str, names: Sequence[str], example: str) -> None:
    if not names:
        raise InputError(f"The matrix has no {kind}. Give {example}.")
    for name in names:
        if not _NAME.fullmatch(name):
            legal = "letters, digits, '_', '-', '.' and '+'"
            raise InputError(f"{kind} name {name!r} cannot name a folder; use {legal}.")
        if names.count(name) > 1:
            raise InputError(f"{kind} {name!r} is given twice; names must differ.")


def parse_init(text: str) -> Initialisation:
    """Return the initialisation of ``random`` or ``NAME=FILE``; InputError for anything else."""
    name, _, weights = text.partition("=")
    if bool(weights) == (name == RANDOM):
        what = "random takes no file" if weights else "a file is missing"
        expected = "expected --init random, or --init NAME=FILE such as --init moco=backbone.pkl"
        raise InputError(f"--init {text!r}: {what}; {expected}.")
    return Initialisation(name, weights)


def parse_task(item: Any) -> Task:
    """Return the task of a config's name or file, or of a YAML mapping with ``config`` and
    optionally ``name``, ``datasets``, ``overrides``; InputError for anything else.
    """
    if isinstance(item, str):
        return Task(name_of(item), item)
    if not isinstance(item, Mapping) or not isinstance(item.get("config"), str):
        expected = "expected the name of a config, or a mapping with the key 'config'"
        raise InputError(f"{item!r} is no task; {expected}.")
    _refuse_unknown(item, Task)
    name = str(item.get("name", name_of(item["config"])))
    return Task(name, item["config"], _words(item, "datasets"), _words(item, "overrides"))


def parse_seeds(value: Any) -> tuple[int, ...]:
    """Return the seeds of a number of runs (0, 1, ...) or of a list; InputError for others."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    seeds = list(range(value)) if is_count else value
    fits = isinstance(seeds, list) and all(isinstance(s, int) and s >= 0 for s in seeds)
    if not fits or not seeds or len(set(seeds)) < len(seeds):
        expected = "expected how many (at least 1), or a list of different numbers from 0 on"
        raise InputError(f"seeds is {value!r}, {expected}.")
    return tuple(seeds)


def parse_amounts(values: Sequence[Any], key: str) -> tuple[Any, ...]:
    """Return ``label_fractions`` or ``shots``, each once; InputError for other values."""
    is_share = key == "label_fractions"
    expected = "numbers in (0, 1]" if is_share else "whole numbers of at least 1"
    try:
        found = tuple(dict.fromkeys(map(float, values)))
        fits = all(0 < x <= 1 if is_share else x >= 1 and x.is_integer() for x in found)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(f"{key} holds {', '.join(map(repr, values))}, expected {expected}.")
    return found if is_share else tuple(map(int, found))


def read_matrix(file: str | Path, output: str | Path) -> Matrix:
    """Read a matrix from YAML: ``tasks`` (names or mappings), ``inits`` (name: file), ``seeds``,
    and optionally ``label_fractions``, ``shots``, ``subset_per_seed``, ``engine``, ``precision``,
    ``datasets``, ``overrides``, ``baseline``.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is not such a YAML.
    """
    data = read_yaml(file)
    try:
        return make_matrix(data, output)
    except InputError as error:
        raise type(error)(f"{file}: {error}") from error


def make_matrix(data: Any, output: str | Path) -> Matrix:
    """Return the matrix of a mapping with :func:`read_matrix`'s keys; ``inits`` may be a list of
    ``random`` and ``NAME=FILE`` too. InputError for anything else.
    """
    if not isinstance(data, Mapping):
        expected = "expected a mapping with tasks and inits"
        raise InputError(f"the file holds {type(data).__name__}, {expected}.")
    _refuse_unknown(data, Matrix)
    return Matrix(
        Path(output),
        tuple(map(parse_task, _list(data, "tasks"))),
        tuple(map(parse_init, _list(data, "inits"))),
        parse_seeds(data.get("seeds", 1)),
        parse_amounts(_list(data, "label_fractions"), "label_fractions"),
        parse_amounts(_list(data, "shots"), "shots"),
        data.get("subset_per_seed", False) is True,
        str(data.get("engine", "auto")),
        str(data.get("precision", "auto")),
        _words(data, "datasets"),
        _words(data, "overrides"),
        str(data.get("baseline") or ""),
    )


def _refuse_unknown(data: Mapping[Any, Any], kind: type[Task | Matrix]) -> None:
    known = [name for name in kind.__dataclass_fields__ if name != "output"]
    for key in data:
        if key not in known:
            hint = f"{did_you_mean(str(key), known)} Expected: {', '.join(known)}."
            raise UnknownKeyError(f"unknown key {key!r}.{hint}")


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list; ``inits`` and ``overrides`` may be mappings."""
    value = data.get(key) or []
    if key == "inits" and isinstance(value, Mapping):
        value = [f"{name}={weights}" if weights else name for name, weights in value.items()]
    if key == "overrides" and isinstance(value, Mapping):
        value = [word for pair in value.items() for word in pair]
    if not isinstance(value, list):
        raise InputError(f"{key} is {value!r}, expected a list.")
    return value


def _words(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(map(str, _list(data, key)))
