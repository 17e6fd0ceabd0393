"""What a benchmark consists of: tasks, initialisations, seeds and fractions of the labels, and the
runs that follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..data.annotations.label_subset import subset_suffix
from ..runtime.errors import InputError, MissingFileError, UnknownKeyError, did_you_mean

RANDOM = "random"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")  # it names a folder
_KEYS = (
    "tasks",
    "inits",
    "seeds",
    "label_fractions",
    "engine",
    "datasets",
    "overrides",
    "baseline",
)
_PATHS_IN_FLAG = {
    "coco": (0, 1),
    "voc": (0, 2),
}  # places of paths behind NAME=KIND: in a --dataset flag
_TASK_KEYS = ("name", "config", "datasets", "overrides")


@dataclass(frozen=True)
class Task:
    """A detection config, and what changes it.

    Attributes:
        name: Its name in tables and folders.
        config: A YAML file, or the name of one that comes with the package.
        datasets: ``--dataset`` flags for data of one's own.
        overrides: KEY VALUE words.
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
    """One run of the matrix.

    Attributes:
        task: What is trained.
        init: From which weights.
        seed: The run's seed, >= 0.
        fraction: Share of the training images whose labels are used, in (0, 1].
        folder: Its OUTPUT_DIR.
    """

    task: Task
    init: Initialisation
    seed: int
    fraction: float
    folder: Path

    @property
    def task_name(self) -> str:
        """The task's name in results.json; runs on a part of the labels are a task of their own."""
        return self.task.name + subset_suffix(self.fraction)


@dataclass(frozen=True)
class Matrix:
    """Every run of a benchmark; ``cells`` lists them, one comparison of all initialisations after
    the other.

    ``baseline`` names the row that differences refer to; "" means supervised, else random.
    """

    tasks: tuple[Task, ...]
    inits: tuple[Initialisation, ...]
    seeds: tuple[int, ...]
    output: Path
    label_fractions: tuple[float, ...] = (1.0,)
    engine: str = "auto"
    datasets: tuple[str, ...] = ()
    overrides: tuple[str, ...] = field(default=())
    baseline: str = ""

    def cells(self) -> list[Cell]:
        """Return the runs in the order in which they are run: seed by seed, so that a first whole
        comparison is there early.
        """
        return [
            Cell(
                task,
                init,
                seed,
                fraction,
                self.output / (task.name + subset_suffix(fraction)) / init.name / f"seed{seed}",
            )
            for seed in self.seeds
            for task in self.tasks
            for fraction in self.label_fractions
            for init in self.inits
        ]

    def subset_file(self, task: Task, fraction: float) -> Path | None:
        """Return where the images of a label fraction are kept, or None for all labels."""
        return (
            None
            if fraction == 1
            else self.output / "subsets" / f"{task.name}{subset_suffix(fraction)}.json"
        )

    def arguments(self, cell: Cell, *, resume: bool = True) -> list[str]:
        """Return the words after ``moco-transfer train`` for a run."""
        words = [
            "--config-file",
            cell.task.config,
            "--engine",
            self.engine,
            "--task",
            cell.task.name,
            "--init",
            cell.init.name,
        ]
        words += ["--resume"] if resume else []
        subset = self.subset_file(cell.task, cell.fraction)
        words += ["--label-subset", str(subset)] if subset else []
        for flag in (*self.datasets, *cell.task.datasets):
            words += ["--dataset", flag]
        words += [*self.overrides, *cell.task.overrides]
        return [
            *words,
            "MODEL.WEIGHTS",
            cell.init.weights,
            "SEED",
            str(cell.seed),
            "OUTPUT_DIR",
            str(cell.folder),
        ]

    def with_absolute_paths(self) -> Matrix:
        """Return the same matrix with paths that hold in any folder: it is saved to be gone on with
        from anywhere.
        """
        tasks = (
            replace(
                task,
                config=_absolute(task.config, only_files=True),
                datasets=tuple(map(_absolute_flag, task.datasets)),
            )
            for task in self.tasks
        )
        inits = (replace(init, weights=_absolute(init.weights)) for init in self.inits)
        return replace(
            self,
            tasks=tuple(tasks),
            inits=tuple(inits),
            datasets=tuple(map(_absolute_flag, self.datasets)),
        )

    def dump(self) -> str:
        """Return the matrix as YAML that :func:`read_matrix` reads again."""
        data = {
            "tasks": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(task).items() if v}
                for task in self.tasks
            ],
            "inits": {init.name: init.weights for init in self.inits},
            "seeds": list(self.seeds),
            "label_fractions": list(self.label_fractions),
            "engine": self.engine,
            "datasets": list(self.datasets),
            "overrides": list(self.overrides),
            "baseline": self.baseline,
        }
        return yaml.safe_dump(data, sort_keys=False)


def build_matrix(
    output: str | Path,
    *,
    tasks: Sequence[Task],
    inits: Sequence[Initialisation],
    seeds: int | Sequence[int] = 1,
    label_fractions: Sequence[float] = (),
    engine: str = "auto",
    datasets: Sequence[str] = (),
    overrides: Sequence[str] = (),
    baseline: str = "",
) -> Matrix:
    """Check the parts of a matrix and put them together.

    Args:
        output: Folder of all runs.
        tasks: At least one; names differ.
        inits: At least one; names differ.
        seeds: How many (0, 1, ...), or which.
        label_fractions: Shares in (0, 1]; none means all labels.
        engine: As of ``train --engine``.
        datasets: ``--dataset`` flags for every task.
        overrides: KEY VALUE words for every task.
        baseline: Name of the row that differences refer to; "" means supervised, else random.

    Raises:
        InputError: If a part is empty, named twice, or out of range.
    """
    if isinstance(seeds, int):
        if seeds < 1:
            raise InputError(
                f"seeds is {seeds}, expected how many runs each row has (at least 1), or a list of"
                " seeds."
            )
        seeds = range(seeds)
    fractions = tuple(dict.fromkeys(label_fractions)) or (1.0,)
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise InputError(
                f"label fraction {fraction:g} is not in (0, 1]; 0.1 uses a tenth of the labelled"
                " images."
            )
    if any(seed < 0 for seed in seeds) or len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds are {list(seeds)}, expected different numbers from 0 on.")
    for kind, names in (
        ("task", [task.name for task in tasks]),
        ("init", [init.name for init in inits]),
    ):
        _check_names(kind, names)
    if len(overrides) % 2:
        raise InputError(
            f"KEY VALUE words must come in pairs, got {len(overrides)}: {' '.join(overrides)}"
        )
    if baseline and baseline not in [init.name for init in inits]:
        raise InputError(
            f"The baseline {baseline!r} is no row of the matrix. Rows are"
            f" {', '.join(init.name for init in inits)}."
        )
    return Matrix(
        tuple(tasks),
        tuple(inits),
        tuple(seeds),
        Path(output),
        fractions,
        engine,
        tuple(datasets),
        tuple(overrides),
        baseline,
    )


def _absolute(path: str, *, only_files: bool = False) -> str:
    # A config may be a name of the package's, which no folder changes.
    return str(Path(path).absolute()) if path and (not only_files or Path(path).is_file()) else path


def _absolute_flag(flag: str) -> str:
    name, equals, rest = flag.partition("=")
    kind, *fields = rest.split(":")
    for place in _PATHS_IN_FLAG.get(kind, ()):
        if place < len(fields):  # of VOC the third may be the class names themselves
            fields[place] = _absolute(fields[place], only_files=place == 2)
    return f"{name}{equals}{':'.join([kind, *fields])}"


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(
            f"The matrix has no {kind}. Give"
            f" --{'tasks pascal_voc_R_50_C4_24k' if kind == 'task' else 'init moco=backbone.pkl'}."
        )
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{kind} name {name!r} cannot name a folder; use letters, digits, '_', '-', '.' and"
                " '+'."
            )
        if names.count(name) > 1:
            raise InputError(
                f"{kind} {name!r} is given twice; each row and each task needs a name of its own."
            )


def parse_init(text: str) -> Initialisation:
    """Return the initialisation of ``--init random`` or ``--init NAME=FILE``.

    Raises:
        InputError: If a name other than random has no file, or random has one.
    """
    name, equals, weights = text.partition("=")
    if bool(weights) == (name == RANDOM):
        what = "random takes no file" if weights else "a file is missing"
        raise InputError(
            f"--init {text!r}: {what}. Expected --init random, or --init NAME=FILE such as --init"
            " moco=out/moco/backbone.pkl."
        )
    return Initialisation(name, weights)


def parse_task(item: str | Mapping[str, Any], where: str = "--tasks") -> Task:
    """Return the task of a config's name or file, or of a YAML mapping with ``config`` and
    optionally ``name``, ``datasets``, ``overrides``.

    Raises:
        InputError: If the mapping has no config, an unknown key, or a value of another type.
    """
    if isinstance(item, str):
        return Task(Path(item).stem, item)
    if not isinstance(item, Mapping) or not isinstance(item.get("config"), str):
        raise InputError(
            f"{where}: {item!r} is no task; expected the name of a config, or a mapping with the"
            " key 'config'."
        )
    _refuse_unknown(item, _TASK_KEYS, where)
    name = item.get("name", Path(item["config"]).stem)
    return Task(str(name), item["config"], _words(item, "datasets", where), _overrides(item, where))


def read_matrix(file: str | Path, output: str | Path) -> Matrix:
    """Read a matrix from YAML: ``tasks`` (names or mappings), ``inits`` (name: file), ``seeds``,
    and optionally ``label_fractions``, ``engine``, ``datasets``, ``overrides`` and ``baseline``.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is not such a YAML.
    """
    file = Path(file)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{file} does not exist; expected a YAML file with tasks, inits and seeds."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{file} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(data, Mapping):
        raise InputError(
            f"{file} holds {type(data).__name__}, expected a mapping with the keys"
            f" {', '.join(_KEYS)}."
        )
    _refuse_unknown(data, _KEYS, str(file))
    inits = data.get("inits") or {}
    if not isinstance(inits, Mapping):
        raise InputError(
            f"{file}: inits is {inits!r}, expected a mapping such as {{random: '', moco:"
            " moco.pkl}."
        )
    return build_matrix(
        output,
        tasks=[parse_task(item, f"{file}: tasks") for item in _list(data, "tasks", file)],
        inits=[
            parse_init(f"{name}={weights}" if weights else str(name))
            for name, weights in inits.items()
        ],
        seeds=_seeds(data.get("seeds", 1), file),
        label_fractions=[_fraction(value, file) for value in _list(data, "label_fractions", file)],
        engine=str(data.get("engine", "auto")),
        datasets=_words(data, "datasets", str(file)),
        overrides=_overrides(data, str(file)),
        baseline=str(data.get("baseline") or ""),
    )


def _refuse_unknown(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise UnknownKeyError(
                f"{where}: unknown key {key!r}.{did_you_mean(str(key), known)} Expected:"
                f" {', '.join(known)}."
            )


def _list(data: Mapping[str, Any], key: str, file: Path) -> list:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise InputError(f"{file}: {key} is {value!r}, expected a list.")
    return value


def _words(data: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} is {value!r}, expected a list of words.")
    return tuple(map(str, value))


def _overrides(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return KEY VALUE words from a list of words or, easier to read, a mapping."""
    value = data.get("overrides") or []
    if isinstance(value, Mapping):
        return tuple(str(word) for pair in value.items() for word in pair)
    words = _words(data, "overrides", where)
    if len(words) % 2:
        raise InputError(
            f"{where}: overrides are {len(words)} words, expected pairs of KEY and VALUE."
        )
    return words


def _seeds(value: Any, file: Path) -> int | list[int]:
    good = isinstance(value, int) or (
        isinstance(value, list) and all(isinstance(seed, int) for seed in value)
    )
    if not good or isinstance(value, bool):
        raise InputError(
            f"{file}: seeds is {value!r}, expected how many, or a list of whole numbers."
        )
    return value


def _fraction(value: Any, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{file}: label_fractions holds {value!r}, expected numbers in (0, 1].")
    return float(value)
