"""Run records: find and read the results.json of finished fine-tuning runs.

A file that cannot be used becomes a :class:`Problem`, which the tables name; the others are read.
Metrics are on 0-100, nested as Detectron2 nests them: ``{"bbox": {"AP": 57.0, ...}, "segm": ...}``.
A metric that is ``null`` in the file reads as NaN.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
SCHEMA = 1
_FEATURE_SCHEMAS = ("moco_transfer.knn/", "moco_transfer.linear/")  # no rows of a transfer table


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
    label_subset: str = ""  # sha256 of the list of labelled images; "" for all labels

    def value(self, kind: str, metric: str) -> float | None:
        """Return a metric on 0-100; NaN where it is undefined, None where the run lacks it."""
        return self.metrics.get(kind, {}).get(metric)


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[RunRecord], list[Problem]]:
    """Read every run below ``paths``: run folders, folders above them at any depth, results.json.

    Links to folders are followed, each run is read once, and folders whose name starts with a dot
    are skipped. So is an ``eval_*`` folder of a run on the run's own test set.

    Returns:
        The runs in the order of their paths, and a problem for each results.json that cannot be
        used, each named path without a run, and each fine-tuning run without results.json.
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
    """Read one results.json.

    Returns:
        One record per test set (several nest their metrics below their names), none for results of
        ``knn`` and ``linear``, or a :class:`Problem` for a damaged file or another schema.
    """
    file = Path(file)
    fault: str | None
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text)
        if "\\ud" in text.lower():  # half a surrogate pair is legal JSON, but no UTF-8
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError) as error:
        fault = f"is no valid JSON ({error}), perhaps cut short; repeat its evaluation"
    else:
        if isinstance(data, dict) and str(data.get("schema")).startswith(_FEATURE_SCHEMAS):
            return []
        fault = _fault_in(data)
    if fault:
        return Problem(str(file), f"{fault}; the run is left out.")
    return [_record(file, data, *part) for part in _by_test_set(data).items()]


def text_of(folder: str | Path, name: str) -> str:
    """Return a text file of a run folder, or "" where there is none."""
    try:
        return (Path(folder) / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _by_test_set(data: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    names, metrics = data["dataset"]["test"], data["metrics"]
    if len(names) > 1 and set(metrics) <= set(names):
        return {(name,): metrics[name] for name in names if name in metrics}
    return {tuple(names): metrics}


def _record(
    file: Path, data: dict[str, Any], test_set: tuple[str, ...], metrics: dict[str, Any]
) -> RunRecord:
    same = ("task", "config_hash", "engine", "init", "seed", "norm", "iterations")
    return RunRecord(
        **{key: data[key] for key in same},
        folder=str(file.parent),
        config=str(data.get("config") or ""),
        test_set=test_set,
        train_set=tuple(data["dataset"].get("train") or ()),
        metrics={
            kind: {k: math.nan if v is None else float(v) for k, v in group.items()}
            for kind, group in metrics.items()
        },
        wall_sec=data.get("wall_sec"),
        world_size=data.get("world_size") or 1,
        versions={key: str(value) for key, value in (data.get("versions") or {}).items()},
        git=data.get("git"),
        weights=data.get("weights") or {},
        flags=data.get("flags") or {},
        command=data.get("command") or None,
        label_subset=(data["dataset"].get("label_subset") or {}).get("sha256") or "",
    )


def _walk(root: Path, seen: set[Path]) -> Iterator[Path | Problem]:
    """Yield results.json files depth first by name. ``seen`` ends cycles of links."""
    if not root.exists() or (resolved := root.resolve()) in seen:
        return
    seen.add(resolved)
    if root.is_file():
        if root.name == RESULTS_FILE:
            yield root
        return
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        reason = error.strerror or error
        yield Problem(str(root), f"cannot be read ({reason}); nothing below it is in the table.")
        return
    names = {entry.name for entry in entries}
    if RESULTS_FILE in names:
        yield from _walk(root / RESULTS_FILE, seen)
    # A pre-training folder rightly has no results.json: only a detector logs loss_rpn_cls.
    elif '"loss_rpn_cls"' in text_of(root, METRICS_FILE):
        last = f"last logged iteration {last_iteration(root)}"
        message = f"has no {RESULTS_FILE}: not finished ({last}). Continue it with --resume."
        yield Problem(str(root), message)
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir():
            yield from _walk(Path(entry.path), seen)


def last_iteration(folder: Path) -> int:
    """Return the last iteration in metrics.json, 0 where there is none."""
    try:
        with open(folder / METRICS_FILE, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, LookupError, TypeError):
            continue  # a kill may have cut the last line off
    return 0


_NUMBER = (int, float)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "a string": str, "an integer": int, "a table": dict, "a number": _NUMBER, "a list": (list, str),
}  # fmt: skip
_REQUIRED = {
    "a string": "task config_hash engine init norm",
    "an integer": "seed iterations",
    "a table": "metrics dataset",
}
_OPTIONAL = {
    "a table": "versions weights flags weights.stamp weights.coverage dataset.label_subset",
    "a string": "git command weights.path weights.sha256 dataset.label_subset.sha256",
    "an integer": "world_size",
    "a number": "wall_sec",
    "a list": "flags.forced weights.coverage.missing weights.coverage.misshapen",
}
_LARGEST = 1e15  # of any metric, duration or count; a damaged one may not even fit a float
_NO_METRICS = "key 'metrics' is empty: the run was never evaluated"


def _fault_in(data: Any) -> str | None:
    """Return what is wrong with the parsed file as a clause without a full stop, or None."""
    if not isinstance(data, dict) or "schema" not in data:
        return f"has no key 'schema'; expected the {RESULTS_FILE} of a fine-tuning run"
    if data["schema"] != SCHEMA:
        return f"has schema {str(data['schema'])[:60]}, expected {SCHEMA}"
    for kind, key in ((kind, key) for kind, keys in _REQUIRED.items() for key in keys.split()):
        if key not in data:
            return f"has no key '{key}'"
        if not _is(data[key], _KINDS[kind]):
            return _wrong(key, data[key], kind)
    for kind, key in ((kind, key) for kind, keys in _OPTIONAL.items() for key in keys.split()):
        value: Any = data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not _is(value, _KINDS[kind]):
            return _wrong(key, value, kind)
    for key in ("test", "train"):
        names = data["dataset"].get(key, None if key == "test" else [])
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or (key == "test" and not names):
            return _wrong(f"dataset.{key}", names, "a list of names")
    if not data["metrics"]:
        return _NO_METRICS
    return next(filter(None, map(_fault_in_metrics, _by_test_set(data).values())), None)


def _fault_in_metrics(metrics: Any) -> str | None:
    if not isinstance(metrics, dict) or not any(metrics.values()):
        return _NO_METRICS
    for kind, group in metrics.items():
        if not isinstance(group, dict):
            return _wrong(f"metrics.{kind}", group, "a table of metric names and numbers")
        for name, value in group.items():
            # NaN and infinity are named below the table, and only their metric is left out.
            is_nan = isinstance(value, float) and not math.isfinite(value)
            if value is not None and not is_nan and not _is(value, _NUMBER):
                return _wrong(f"metrics.{kind}.{name}", value, "a number")
    return None


def _wrong(key: str, value: Any, expected: str) -> str:
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"key '{key}' is {shown}, expected {expected}"


def _is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    # bool is an int in Python, and `"seed": true` is no seed.
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return not isinstance(value, _NUMBER) or -_LARGEST < value < _LARGEST
