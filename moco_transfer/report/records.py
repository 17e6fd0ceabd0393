"""Run records: find and read the results.json of finished fine-tuning runs.

A file that cannot be used never stops the others: it becomes a :class:`Problem`, which the tables
    name below
themselves. Nothing here (or anywhere in ``report``) imports torch, so that a table of hundreds of
runs is quick.

Conventions:
    Metrics are on 0-100, nested as Detectron2 nests them: ``{"bbox": {"AP": 57.0, "AP50": 82.4,
    ...}, "segm": {...}}``. A metric that is ``null`` in the file reads as NaN.
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
_OF_FEATURES = (
    "moco_transfer.knn/",
    "moco_transfer.linear/",
)  # results of tests of features: no rows of a transfer table


@dataclass(frozen=True)
class Problem:
    """Something that keeps a run, or a part of it, out of a table.

    Attributes:
        path: The file or folder that is meant, as the user would type it.
        message: One clause that says what is wrong and what was done about it.
    """

    path: str
    message: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class RunRecord:
    """One finished fine-tuning run.

    Attributes:
        folder: The run folder, as the user would type it.
        task: Name of the detection config, without ``.yaml``.
        config: Path of the config as the run recorded it ("" where it did not).
        config_hash: Hash of the merged config without what may differ within a row (weights, seed,
            output folder).
        engine: ``"torchvision"`` or ``"detectron2"``.
        init: Name of the initialisation: ``"random"``, ``"supervised"``, ``"moco"``, ...
        seed: Seed of the run.
        norm: The normalisation that was really used, e.g. ``"BN"`` or ``"SyncBN"``.
        test_set: Names of the data sets that the metrics are of.
        train_set: Names of the data sets it was trained on.
        metrics: Kind (``"bbox"``, ``"segm"``, ...) to metric name to value on 0-100; NaN where it
            is undefined.
        iterations: Iterations finished.
        wall_sec: Duration in seconds, or None.
        world_size: Number of processes.
        versions: Package name to version.
        git: Commit of the code, or None.
        weights: What the run recorded about the weights it started from: path, sha256, stamp,
            coverage.
        flags: ``allow_partial`` (bool) and ``forced`` (list of overruled checks).
        command: The command line that made the run, or None where it was not recorded.
        label_subset: sha256 of the list of images whose labels it was trained on; "" for all
            labels.
    """

    folder: str
    task: str
    config: str
    config_hash: str
    engine: str
    init: str
    seed: int
    norm: str
    test_set: tuple[str, ...]
    train_set: tuple[str, ...]
    metrics: dict[str, dict[str, float]]
    iterations: int
    wall_sec: float | None
    world_size: int
    versions: dict[str, str]
    git: str | None
    weights: dict[str, Any]
    flags: dict[str, Any]
    command: str | None = None
    label_subset: str = ""

    def value(self, kind: str, metric: str) -> float | None:
        """Return a metric on 0-100, NaN when the run could not compute it, or None when the run
        does not have it.
        """
        return self.metrics.get(kind, {}).get(metric)


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[RunRecord], list[Problem]]:
    """Read every run below ``paths``.

    Args:
        paths: Run folders, folders that hold run folders at any depth, or results.json files. Links
            to folders are followed; a run that is reached by two ways is read once. Folders whose
            name starts with a dot are skipped, and in a run's folder the repeated evaluations on
            its own test set (``eval_*``).

    Returns:
        The readable runs in the order of their paths, and one problem for each results.json that
        cannot be used, each named path that does not exist or holds no run, and each fine-tuning
        run that has no results.json yet.
    """
    records, problems, seen, seen_files = [], [], set(), set()
    for path in map(Path, paths):
        if not path.exists():
            problems.append(Problem(str(path), "does not exist."))
            continue
        is_known = path.resolve() in seen
        items = [path] if path.name == RESULTS_FILE and path.is_file() else list(_walk(path, seen))
        if not items and not is_known:
            problems.append(Problem(str(path), f"no {RESULTS_FILE} in it or below it."))
        for item in items:
            if isinstance(item, Path):
                if item.resolve() in seen_files:
                    continue
                seen_files.add(item.resolve())
            found = item if isinstance(item, Problem) else read_run(item)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                records += found
    return _without_repeated_evaluations(records), problems


def _without_repeated_evaluations(records: list[RunRecord]) -> list[RunRecord]:
    """Leave out what ``train --eval-only`` measured again below a run on the set that the run
    itself was tested on.
    """
    of_runs = {(run.folder, run.test_set) for run in records}
    return [
        run
        for run in records
        if not (
            Path(run.folder).name.startswith("eval_")
            and (str(Path(run.folder).parent), run.test_set) in of_runs
        )
    ]


def read_run(file: str | os.PathLike[str]) -> list[RunRecord] | Problem:
    """Read one results.json.

    Args:
        file: The file; it is not changed.

    Returns:
        One record per test set (a run that was tested on several nests its metrics below their
        names, as Detectron2 does), none for what ``knn`` and ``linear`` measured, or a
        :class:`Problem` when the file is damaged or of another schema.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        return Problem(
            str(file), f"cannot be read ({error.strerror or error}); the run is left out."
        )
    except (ValueError, RecursionError) as error:
        return Problem(
            str(file),
            f"is no valid JSON ({error}); the run is left out. Is it cut short? Repeat its"
            " evaluation.",
        )
    if isinstance(data, dict) and str(data.get("schema")).startswith(_OF_FEATURES):
        return []
    # Half a surrogate pair is legal JSON, but no text that a table could be written with.
    fault = (
        "holds half a character (a lone surrogate)"
        if "\\ud" in text.lower() and not _is_text(data)
        else _fault_in(data)
    )
    if fault:
        return Problem(str(file), f"{fault}; the run is left out.")
    return [
        _record(file, data, test_set, metrics) for test_set, metrics in _by_test_set(data).items()
    ]


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
    return RunRecord(
        folder=str(file.parent),
        task=data["task"],
        config=str(data.get("config") or ""),
        config_hash=data["config_hash"],
        engine=data["engine"],
        init=data["init"],
        seed=data["seed"],
        norm=data["norm"],
        test_set=test_set,
        train_set=tuple(data["dataset"].get("train") or ()),
        metrics={
            kind: {name: _number(value) for name, value in group.items()}
            for kind, group in metrics.items()
        },
        iterations=data["iterations"],
        wall_sec=data.get("wall_sec"),
        world_size=data.get("world_size") or 1,
        versions={str(key): str(value) for key, value in (data.get("versions") or {}).items()},
        git=data.get("git"),
        weights=data.get("weights") or {},
        label_subset=(data["dataset"].get("label_subset") or {}).get("sha256") or "",
        flags=data.get("flags") or {},
        command=data.get("command") or None,
    )


def _walk(root: Path, seen: set[Path]) -> Iterator[Path | Problem]:
    # Depth first in the order of names, so that the same tree always gives the same table. `seen`
    # holds resolved
    # folders: it ends cycles of links and keeps `report runs runs/a` from reading runs/a twice.
    if not root.is_dir() or (resolved := root.resolve()) in seen:
        return
    seen.add(resolved)
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        yield Problem(
            str(root),
            f"cannot be read ({error.strerror or error}); nothing below it is in the table.",
        )
        return
    names = {entry.name for entry in entries}
    if RESULTS_FILE in names:
        yield root / RESULTS_FILE
    elif (
        METRICS_FILE in names
        and (iteration := _last_detection_iteration(root / METRICS_FILE)) is not None
    ):
        message = (
            f"has no {RESULTS_FILE}: not finished (last logged iteration {iteration}). Continue it"
            " with --resume."
        )
        yield Problem(str(root), message)
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir():
            yield from _walk(Path(entry.path), seen)


def _last_detection_iteration(file: Path) -> int | None:
    # Pre-training folders have a metrics.json as well and rightly no results.json: only a detector
    # logs loss_rpn_cls, though perhaps not in the first line, which may be an evaluation's.
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    for line in reversed(text.splitlines()) if '"loss_rpn_cls"' in text else ():
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, LookupError, TypeError):
            continue  # a kill may have cut the last line off
    return None


_NUMBER = (int, float)
_REQUIRED = {
    "task": str, "config_hash": str, "engine": str, "init": str, "seed": int, "norm": str,
    "metrics": dict, "iterations": int, "dataset": dict,
}  # fmt: skip
_OPTIONAL = {
    "wall_sec": _NUMBER,
    "world_size": int,
    "versions": dict,
    "git": str,
    "weights": dict,
    "flags": dict,
    "command": str,
}
# Below an optional table: what the tables and the page read of it.
_NESTED = {
    "weights.path": str, "weights.sha256": str, "weights.stamp": dict, "weights.coverage": dict,
    "flags.forced": (list, str), "dataset.label_subset": dict, "dataset.label_subset.sha256": str,
}  # fmt: skip
#: No metric, duration or count of a run is larger; a damaged one may not even fit a float.
_LARGEST = 1e15
_SHOWN = 60  # letters of a wrong value
_NO_METRICS = "key 'metrics' is empty: the run was never evaluated"


def _fault_in(data: Any) -> str | None:
    """Return what is wrong with the parsed file as a clause without a full stop, or None."""
    if not isinstance(data, dict) or "schema" not in data:
        return f"has no key 'schema'; expected the {RESULTS_FILE} of a fine-tuning run"
    if data["schema"] != SCHEMA:
        return f"has schema {_shown(data['schema'])}, expected {SCHEMA}"
    for key, kind in _REQUIRED.items():
        if key not in data:
            return f"has no key '{key}'"
        if not _is(data[key], kind):
            return f"key '{key}' is {_shown(data[key])}, expected {_kind_name(kind)}"
    for key, kind in (_OPTIONAL | _NESTED).items():
        value = _below(data, key)
        if value is not None and not _is(value, kind):
            return f"key '{key}' is {_shown(value)}, expected {_kind_name(kind)}"
    for key in ("test", "train"):
        names = data["dataset"].get(key, None if key == "test" else [])
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or (key == "test" and not names)
        ):
            return f"key 'dataset.{key}' is {_shown(names)}, expected a list of names"
    if not data["metrics"]:
        return _NO_METRICS
    parts = _by_test_set(data)
    return next(filter(None, map(_fault_in_metrics, parts.values())), None)


def _below(data: dict[str, Any], path: str) -> Any:
    value: Any = data
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fault_in_metrics(metrics: Any) -> str | None:
    if not isinstance(metrics, dict) or not any(metrics.values()):
        return _NO_METRICS
    for kind, group in metrics.items():
        if not isinstance(group, dict):
            return (
                f"key 'metrics.{kind}' is {_shown(group)}, expected a table of metric names and"
                " numbers"
            )
        for name, value in group.items():
            # NaN and infinity are named below the table, and only their metric is left out.
            if (
                value is not None
                and not _is(value, _NUMBER)
                and not (isinstance(value, float) and not math.isfinite(value))
            ):
                return f"key 'metrics.{kind}.{name}' is {_shown(value)}, expected a number"
    return None


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    # bool is an int in Python, and `"seed": true` is no seed.
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    return not isinstance(value, _NUMBER) or -_LARGEST < value < _LARGEST


def _is_text(data: Any) -> bool:
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _kind_name(kind: type | tuple[type, ...]) -> str:
    names = {str: "a string", int: "an integer", dict: "a table", (list, str): "a list"}
    return names.get(kind, "a number")


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
