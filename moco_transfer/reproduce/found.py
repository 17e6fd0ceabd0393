"""The run records of this machine next to the papers' rows.

A fine-tuning run belongs to a row by its task, test set and initialisation, as in the transfer
table. A test of features and a pre-training belong to a row by the name of the pre-training, which
is a folder of the checkpoint or of the run: ``reproduce`` names folders so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import flatten_config, load_pretrain_config
from ..report import Problem, Row, Table, build_tables, read_runs
from ..report.cells import run_caveats
from ..report.pretraining import find_pretraining
from ..report.records import CONFIG_FILE, RESULTS_FILE, text_of
from ..report.seed_statistics import Summary, summarize
from ..report.sentences import schedule_sentences
from ..runtime.files import regular
from ..runtime.text import parse_json, parse_yaml
from .paper import PaperRow, Part, Pretraining

_SCHEMAS = {"moco_transfer.linear/1": "linear/top1", "moco_transfer.knn/1": "knn/top1"}
_SERIES = {"knn_top1": "knn/top1", "contrast_acc1": "pretext/acc1"}  # of metrics.json
_PROTOCOL_EPOCHS = 100  # of the linear layer
#: Keys whose values may differ between machines, images and programs without another experiment.
_FREE = ("OUTPUT_DIR", "SEED", "DATA.ROOT", "DATA.NUM_WORKERS", "KNN.", "TRAIN.", "DATA.LAYOUT")


@dataclass(frozen=True)
class Found:
    """Runs of one row under one setting, averaged over seeds."""

    label: str  # the row's name, or that of a row which the paper does not have
    about: str  # engine, norm, folder
    values: Mapping[str, Summary]  # column -> mean, std and n
    folders: tuple[str, ...]
    remarks: tuple[str, ...] = ()  # what differs from the published protocol

    @property
    def n(self) -> int:
        """Runs behind the mean."""
        return max((summary.n for summary in self.values.values()), default=0)


@dataclass(frozen=True)
class FeatureResult:
    """One number of an encoder's features."""

    metric: str  # e.g. "linear/top1"
    value: float  # 0-100
    folder: Path
    checkpoint: Path
    epochs: int | None = None  # of the linear layer
    counts: tuple[int, ...] = ()  # training images, test images, classes; () if not recorded
    note: str = ""

    @property
    def names(self) -> set[str]:
        """Folders of the result and of the checkpoint."""
        return {*self.folder.parts, *self.checkpoint.parts[:-1]}


@dataclass(frozen=True)
class Records:
    """Everything that was found below some folders."""

    tables: tuple[Table, ...] = ()
    features: tuple[FeatureResult, ...] = ()
    problems: tuple[Problem, ...] = ()

    def of_row(self, part: Part, row: PaperRow) -> list[Found]:
        """Return the runs next to a row of the paper."""
        if part.setting is None:
            return self._features(part, row)
        return [found for _, label, found in self._transfer(part) if label == row.label]

    def others(self, part: Part) -> list[Found]:
        """Return the runs of a part whose initialisation the paper does not have there."""
        labels = {row.label for row in part.rows}
        return [found for _, label, found in self._transfer(part) if label not in labels]

    def _transfer(self, part: Part) -> Iterator[tuple[Table, str, Found]]:
        setting = part.setting
        for table in self.tables if setting else ():
            key = table.setting
            if setting is None or key.task not in setting.tasks:
                continue
            if list(key.test_set) != list(setting.test_set):
                continue
            for row in (row for row in table.rows if not row.is_foreign):
                published = setting.row_for(row.init, key.task)
                yield table, published.label if published else "", _found(table, row, part)

    def _features(self, part: Part, row: PaperRow) -> list[Found]:
        found: dict[str, dict[str, list[FeatureResult]]] = {}
        for column, pretraining in row.pretrainings.items():
            metric, name = part.metric_of(column), pretraining.name
            for one in self.features:
                if one.metric == metric and name in one.names:
                    about = "features" if row.vary else f"features of {name}"
                    found.setdefault(about, {}).setdefault(column, []).append(one)
        return [_of_features(part, row, about, columns) for about, columns in found.items()]


def _found(table: Table, row: Row, part: Part) -> Found:
    setting = table.setting
    values = {column: row.summary(*column.split("/")) for column in part.columns}
    about = f"{setting.task}, {setting.engine}, {setting.norm}, config {setting.config_hash[:8]}"
    about += f", {setting.precision}" if setting.precision else ""
    remarks = [caveat for run in row.runs for caveat in run_caveats(run)]
    if part.setting is not None:
        remarks += schedule_sentences(row.runs, part.setting)
    remarks += [str(problem) for problem in table.problems if problem.path == f"row {row.init}"]
    folders = tuple(run.folder for run in row.runs)
    return Found(row.init, about, values, folders, tuple(dict.fromkeys(remarks)))


def _of_features(
    part: Part, row: PaperRow, about: str, columns: Mapping[str, list[FeatureResult]]
) -> Found:
    values = {c: summarize(one.value for one in results) for c, results in columns.items()}
    remarks: dict[str, None] = {}
    for column, results in columns.items():
        for one in results:
            own = _protocol_differences(part, one)
            remarks |= dict.fromkeys([*own, *_differences(one, row.pretrainings[column])])
    folders = tuple(str(one.folder) for results in columns.values() for one in results)
    return Found(row.label, about, values, folders, tuple(remarks))


def _protocol_differences(part: Part, one: FeatureResult) -> Iterator[str]:
    """Yield what a test of features has otherwise than the published one."""
    if one.note:
        yield one.note
    if one.epochs not in (None, _PROTOCOL_EPOCHS):
        yield f"linear layer of {one.epochs} epochs, published {_PROTOCOL_EPOCHS}"
    if one.counts and part.counts and one.counts != part.counts:
        text = "{} training and {} test images of {} classes"
        yield f"{text.format(*one.counts)}, published {text.format(*part.counts)}"


def _differences(one: FeatureResult, pretraining: Pretraining) -> Iterator[str]:
    """Yield what the config next to a checkpoint has otherwise than the published one."""
    try:
        config = parse_yaml(text_of(one.checkpoint.parent, CONFIG_FILE))
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        yield f"no readable config next to {one.checkpoint}: not compared with the published one"
        return
    published = load_pretrain_config(pretraining.config, list(pretraining.overrides))
    for key, value in flatten_config(published).items():
        if key.startswith(_FREE):
            continue
        here: Any = config
        for name in key.split("."):
            here = here.get(name) if isinstance(here, dict) else None
        if _comparable(here) != _comparable(value):
            yield f"{key} {here}, published {value}"


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_records(paths: Iterable[str | Path]) -> Records:
    """Read everything below ``paths``: runs of ``train``, tests of features, pre-trainings."""
    folders = [str(path) for path in paths if Path(path).exists()]
    runs, problems = read_runs(folders)
    # A folder of pre-trainings alone has no results.json, which is no fault here.
    problems = [problem for problem in problems if problem.path not in folders]
    features = [*_feature_tests(folders), *_monitors(folders)]
    return Records(tuple(build_tables(runs)), tuple(features), tuple(problems))


def _feature_tests(paths: Iterable[str]) -> Iterator[FeatureResult]:
    files = {file.resolve(): file for path in paths for file in Path(path).rglob(RESULTS_FILE)}
    for file in sorted(files.values()):
        try:
            data = parse_json(regular(file).read_text(encoding="utf-8"))
            metric = _SCHEMAS.get(str(data["schema"]))
            value, checkpoint = float(data["top1"]), Path(data["checkpoint"])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # a record of `train`, or one that read_runs has named
        if metric and math.isfinite(value):
            epochs = (data.get("protocol") or {}).get("epochs")
            names = ("num_train", "num_test", "num_classes")
            counts = tuple(data[name] for name in names if name in data)
            counts = counts if len(counts) == len(names) else ()
            yield FeatureResult(metric, value, file.parent, checkpoint, epochs, counts)


def _monitors(paths: Iterable[str]) -> Iterator[FeatureResult]:
    """Yield the last values that pre-trainings have logged."""
    for run in find_pretraining(paths)[0]:
        folder = Path(run.folder)
        for series, metric in _SERIES.items():
            if points := run.series.get(series):
                file = folder / "checkpoint.pth"
                note = f"{run.iterations} iterations so far"
                yield FeatureResult(metric, points[-1][1], folder, file, note=note)
