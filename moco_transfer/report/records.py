"""Run records: find and read the results.json of finished fine-tuning runs.

A file that cannot be used becomes a :class:`Problem`, which the tables name; the others are read.
Metrics are on 0-100, nested as Detectron2 nests them: ``{"bbox": {"AP": 57.0, ...}, "segm": ...}``.
A metric that is ``null`` in the file reads as NaN.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..runtime.files import regular
from ..runtime.text import parse_json
from .published import parse_own_yaml

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
BY_SEED = "by seed"  # a list of labelled images for each seed
SCHEMA = 1
_FEATURE_SCHEMAS = ("moco_transfer.knn/", "moco_transfer.linear/")  # no rows of a transfer table
_KINDS: dict[str, Any] = {
    "a string": str, "an integer": int, "a table": dict, "a number": (int, float),
    "a list": (list, str), "a list of names": list, "true or false": bool,
}  # fmt: skip
#: Dotted key of results.json -> what it holds, and the default of one that may be absent or null.
KEYS: dict[str, tuple[Any, ...]] = parse_own_yaml(
    (resources.files(__package__) / "results_keys.yaml").read_text("utf-8")
)
_FINETUNING_LOSS = re.compile(r'"loss_(rpn_cls|sem_seg)"')  # that no pre-training logs
_LARGEST = 1e15  # of any metric, duration or count; a damaged one may not even fit a float
_NO_METRICS = "key 'metrics' is empty: the run was never evaluated"


@dataclass(frozen=True)
class Problem:
    """Why a run, or a part of it, is missing from a table: a file or folder, and one clause."""

    path: str
    message: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class RunRecord:
    """One finished fine-tuning run on one test set."""

    folder: str  # as the user would type it
    task: str  # the detection config, without .yaml
    config: str  # its path, "" where it was not recorded
    config_hash: str  # of the merged config without weights, seed and output folder
    engine: str
    init: str  # "random", "supervised", "moco", ...
    seed: int
    norm: str  # the normalisation that was used, e.g. "BN" or "SyncBN"
    test_set: tuple[str, ...]
    train_set: tuple[str, ...]
    metrics: dict[str, dict[str, float]]  # kind -> metric -> value on 0-100, NaN if undefined
    iterations: int
    wall_sec: float | None
    world_size: int
    versions: dict[str, str]
    git: str | None
    weights: dict[str, Any]  # path, sha256, stamp, coverage
    flags: dict[str, Any]  # allow_partial (bool), forced (overruled checks)
    command: str | None = None
    precision: str = ""  # of the training: fp32, bf16, fp16; "" where it was not recorded
    # sha256 of the list of labelled images, or BY_SEED; "" for all labels.
    label_subset: str = ""
    # Of that list: the share of the labelled images, or the objects of each class that were asked
    # for; None where there is no such list, or it does not say so.
    label_fraction: float | None = None
    label_shots: int | None = None
    labelled_images: int | None = None  # that it was trained on; None where it was not recorded
    label_draw: str = ""  # its sha256 where label_subset is BY_SEED
    classes: tuple[str, ...] = ()  # of the data; () where they were not recorded
    num_images: int | None = None  # of the test set; None where it was not recorded
    tide: dict[str, dict[str, float]] = field(default_factory=dict)  # kind -> error -> AP50 points
    # Kind -> RATES -> value; kind -> class of objects -> class of detections on them -> count.
    operating_point: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    matches: str = ""  # name of the file of matches in the folder; "" where there is none
    selection: dict[str, Any] = field(default_factory=dict)  # {} for a fixed schedule
    # Of another program: path and sha256 of its detections; {} for a run of ours.
    predictions: dict[str, Any] = field(default_factory=dict)

    @property
    def is_foreign(self) -> bool:
        """Whether another program made the detections, so that its training is not known."""
        return bool(self.predictions)

    @property
    def base_task(self) -> str:
        """The task without what says how many of the labels were used."""
        suffix = self.labels.replace("%", "pct").replace("-", "")
        return self.task.removesuffix(f"_{suffix}") if suffix else self.task

    @property
    def labels(self) -> str:
        """The amount of labels, ``10%`` or ``5-shot``; "" for all, and where it is not known."""
        if self.label_shots is not None:
            return f"{self.label_shots}-shot"
        return "" if self.label_fraction is None else f"{100 * self.label_fraction:g}%"

    def value(self, kind: str, metric: str) -> float | None:
        """Return a metric on 0-100; NaN where it is undefined, None where the run lacks it."""
        return self.metrics.get(kind, {}).get(metric)


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[RunRecord], list[Problem]]:
    """Read every run below ``paths``: run folders, folders above them at any depth, results.json.

    Links to folders are followed and each run is read once. Skipped are folders whose name starts
    with a dot, and an ``eval_*`` folder of a run on the run's own test set. A problem names each
    unusable results.json, named path without a run, and fine-tuning run without results.json.
    """
    records: list[RunRecord] = []
    problems: list[Problem] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        is_known = path.resolve() in seen
        items = list(_walk(path, seen))
        if not items and not is_known:
            what = f"no {RESULTS_FILE} in it or below it." if path.exists() else "does not exist."
            items.append(Problem(str(path), what))
        for item in items:
            found = item if isinstance(item, Problem) else read_run(item)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                records += found
    own = {(Path(run.folder), run.test_set) for run in records}

    def is_repeated(run: RunRecord) -> bool:
        folder = Path(run.folder)
        return folder.name.startswith("eval_") and (folder.parent, run.test_set) in own

    return [run for run in records if not is_repeated(run)], problems


def read_run(file: str | os.PathLike[str]) -> list[RunRecord] | Problem:
    """Return one record per test set of a results.json (several nest their metrics below their
    names), none for results of ``knn`` and ``linear``, or a problem for a damaged file.
    """
    file = Path(file)
    try:
        text = regular(file).read_text(encoding="utf-8")
        data = parse_json(text)
        if "\\ud" in text.lower():  # half a surrogate pair is legal JSON, but no UTF-8
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        if isinstance(data, dict) and str(data.get("schema")).startswith(_FEATURE_SCHEMAS):
            return []
        return _records(str(file.parent), data)
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    except (json.JSONDecodeError, UnicodeError, RecursionError) as error:
        fault = f"is no valid JSON ({error}), perhaps cut short; repeat its evaluation"
    except ValueError as error:
        fault = str(error)
    return Problem(str(file), f"{fault}; the run is left out.")


def text_of(folder: str | Path, name: str) -> str:
    """Return a text file of a run folder, or "" where there is none."""
    try:
        return regular(Path(folder) / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _records(folder: str, data: Any) -> list[RunRecord]:
    """Return one record per test set; ValueError names what is missing or of another type."""
    if not isinstance(data, dict) or "schema" not in data:
        raise ValueError(f"has no key 'schema'; expected the {RESULTS_FILE} of a fine-tuning run")
    if data["schema"] != SCHEMA:
        raise ValueError(f"has schema {str(data['schema'])[:60]}, expected {SCHEMA}")
    found = {key: _get(data, key, *rule) for key, rule in KEYS.items()}
    names, metrics = found["dataset.test"], found["metrics"]
    by_test_set = {tuple(names): metrics}
    if len(names) > 1 and set(metrics) <= set(names):
        by_test_set = {(name,): metrics[name] for name in names if name in metrics}
    parts = [(part, _metrics(values)) for part, values in by_test_set.items()]
    if not parts:
        raise ValueError(_NO_METRICS)
    is_per_seed = found["dataset.label_subset.per_seed"]
    same = {key: value for key, value in found.items() if key in RunRecord.__dataclass_fields__}
    same |= {
        "folder": folder,
        "train_set": tuple(found["dataset.train"]),
        "classes": tuple(found["dataset.classes"]),
        "label_subset": BY_SEED if is_per_seed else found["dataset.label_subset.sha256"],
        "label_draw": found["dataset.label_subset.sha256"] if is_per_seed else "",
        "label_fraction": found["dataset.label_subset.fraction"],
        "label_shots": found["dataset.label_subset.shots"],
        "labelled_images": found["dataset.label_subset.pictures"]
        or found["dataset.num_labelled_images"],
        "versions": {key: str(value) for key, value in found["versions"].items()},
    }
    return [
        RunRecord(**same | {"test_set": part, "metrics": values} | _of_test_set(found, part))
        for part, values in parts
    ]


def _of_test_set(found: dict[str, Any], part: tuple[str, ...]) -> dict[str, Any]:
    """Return what is recorded of one test set next to its metrics."""
    name = part[0] if len(part) == 1 else ""
    tables = {
        key: _checked(f"{key}.{name}", found[key].get(name) or {}, "a table")
        for key in ("tide", "operating_point", "confusion")
    }
    confusion = {
        kind: _numbers(f"confusion.{kind}", _checked(f"confusion.{kind}", pairs, "a table"))
        for kind, pairs in tables.pop("confusion").items()
    }
    matches = _checked(f"matches.{name}", found["matches"].get(name) or "", "a string")
    numbers = {key: _numbers(key, table) for key, table in tables.items()}
    counts = found["dataset.num_images"]
    known = [counts[one] for one in part if isinstance(counts.get(one), int)]
    size = sum(known) if len(known) == len(part) else None
    return {**numbers, "confusion": confusion, "matches": Path(matches).name, "num_images": size}


def _metrics(metrics: Any) -> dict[str, dict[str, float]]:
    if not isinstance(metrics, dict) or not any(metrics.values()):
        raise ValueError(_NO_METRICS)
    return _numbers("metrics", metrics)


def _numbers(key: str, groups: dict[str, Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for kind, group in groups.items():
        found[kind] = {}
        for name, value in _checked(f"{key}.{kind}", group, "a table").items():
            # NaN and infinity are named below the table, and only their metric is left out.
            value = math.nan if value is None else value
            if not isinstance(value, float) or math.isfinite(value):
                value = float(_checked(f"{key}.{kind}.{name}", value, "a number"))
            found[kind][name] = value
    return found


def _get(data: dict[str, Any], key: str, expected: str, *default: Any) -> Any:
    """Return the value at a dotted key; ``default`` where it is absent or null."""
    value: Any = data
    path = ""
    for part in key.split("."):
        path = f"{path}.{part}" if path else part
        if not default and part not in value:
            raise ValueError(f"has no key '{path}'")
        value = value.get(part) if isinstance(value, dict) else None
    return default[0] if default and value is None else _checked(key, value, expected)


def _checked(key: str, value: Any, expected: str) -> Any:
    is_bool = isinstance(value, bool)  # an int in Python, and `"seed": true` is no seed
    fits = isinstance(value, _KINDS[expected]) and is_bool == (expected == "true or false")
    if isinstance(value, (int, float)):
        fits = fits and -_LARGEST < value < _LARGEST
    if expected == "a list of names" and fits:
        fits = all(isinstance(name, str) for name in value) and bool(value or key != "dataset.test")
    if not fits:
        text = repr(value)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise ValueError(f"key '{key}' is {shown}, expected {expected}")
    return value


def _walk(root: Path, seen: set[Path]) -> Iterator[Path | Problem]:
    """Yield results.json files depth first by name. ``seen`` ends cycles of links."""
    if root.is_file():
        if root.name == RESULTS_FILE and root.resolve() not in seen:
            seen.add(root.resolve())
            yield root
        return
    unread: list[OSError] = []  # a missing root is named by the caller
    for place, folders, files in os.walk(root, onerror=unread.append, followlinks=True):
        folder = Path(place)
        if folder.resolve() in seen:
            folders.clear()
            continue
        seen.add(folder.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if RESULTS_FILE in files:
            yield from _walk(folder / RESULTS_FILE, seen)
        # A pre-training folder rightly has no results.json.
        elif METRICS_FILE in files and _FINETUNING_LOSS.search(text_of(folder, METRICS_FILE)):
            last = f"last logged iteration {last_iteration(folder)}"
            message = (
                f"has no {RESULTS_FILE}: not finished, or trained without a test set ({last})."
                " Continue it with --resume, or evaluate it with --eval-only."
            )
            yield Problem(str(folder), message)
    for error in unread if root.exists() else ():
        message = f"cannot be read ({error.strerror}); nothing below it is in the table."
        yield Problem(error.filename, message)


def metric_rows(text: str) -> Iterator[dict[str, Any] | None]:
    """Yield the lines of a metrics.json; None for a damaged one, such as a last line that a kill
    cut off.
    """
    for line in filter(str.strip, text.splitlines()):
        try:
            row = parse_json(line)
            yield row if 0 <= row["iteration"] < _LARGEST else None
        except (ValueError, LookupError, TypeError):
            yield None


def last_iteration(folder: Path) -> int:
    """Return the last iteration in metrics.json, 0 where there is none."""
    try:
        with open(regular(folder / METRICS_FILE), "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            rows = list(metric_rows(file.read().decode("utf-8", "replace")))
    except OSError:
        return 0
    return next((int(row["iteration"]) for row in reversed(rows) if row), 0)
