"""Published numbers: the paper's rows by name, and the published row that stands beside one of
ours.

The numbers are in published.yaml, each with its source. This module only looks them up; nothing is
computed from them but gaps (row minus supervised row, as the papers print them) and distances in
published std.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import yaml


@dataclass(frozen=True)
class PublishedRow:
    """One published initialisation.

    Attributes:
        init: The name that our tables give this initialisation.
        label: The name that the source gives it.
        values: Column (``"bbox/AP50"``) to value on 0-100, in the order of the source.
        source: Full reference and table.
        is_independent: True when others than the method's authors measured it.
    """

    init: str
    label: str
    values: dict[str, float]
    source: str
    is_independent: bool


@dataclass(frozen=True)
class PublishedSetting:
    """One published protocol and its rows.

    Attributes:
        name: How ``moco-transfer reference`` calls it, e.g. ``"voc07+12 R50-C4"``.
        title: What was trained and tested on what.
        tasks: Detection configs (file name without .yaml) that follow this protocol.
        test_set: Data sets that a run of such a task must have been tested on to be comparable.
        iterations: Fine-tuning iterations, or None where no source states them.
        batch: Images an iteration.
        trials: Number of trials behind each mean, or None where no source states it.
        std: Column to published std over trials; empty where none is published.
        std_source: Where the std is stated.
        note: What a reader has to know about the numbers, or "".
        rows: The rows in the order of the sources.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    test_set: tuple[str, ...]
    iterations: int | None
    batch: int
    trials: int | None
    std: dict[str, float]
    std_source: str
    note: str
    rows: tuple[PublishedRow, ...]

    @property
    def columns(self) -> list[str]:
        """Metric columns such as ``"bbox/AP50"``, in the order of the source."""
        return list(self.rows[0].values)

    def row_for(self, init: str) -> PublishedRow | None:
        """Return the row that stands beside our row ``init``; the authors' own before independent
        ones.
        """
        init = _load()["aliases"].get(init, init)
        rows = sorted(
            (row for row in self.rows if row.init == init), key=lambda row: row.is_independent
        )
        return rows[0] if rows else None

    def distance_in_std(self, init: str, column: str, value: float) -> float | None:
        """Return (``value`` - published mean) / published std, or None where either is not
        published.
        """
        row = self.row_for(init)
        if row is None or column not in row.values or not self.std.get(column):
            return None
        return (value - row.values[column]) / self.std[column]


@functools.cache
def published_settings() -> tuple[PublishedSetting, ...]:
    """Return all published settings in the order of the data file."""
    return tuple(_setting(item) for item in _load()["settings"])


def setting_for_task(task: str, test_set: Sequence[str]) -> PublishedSetting | None:
    """Return the published setting whose protocol the detection config ``task``, tested on
    ``test_set``, follows, or None.
    """
    matches = (s for s in published_settings() if task in s.tasks and s.test_set == tuple(test_set))
    return next(matches, None)


def find_settings(words: Sequence[str]) -> list[PublishedSetting]:
    """Return the settings that a user means.

    Args:
        words: Parts of a name in any case, e.g. ``["voc07+12", "R50-C4"]`` or ``["coco", "fpn"]``;
            none means all.

    Returns:
        The one setting of that name, else every setting whose name holds each word; [] when there
        is none.
    """
    wanted = " ".join(words).casefold().split()
    exact = [
        setting for setting in published_settings() if setting.name.casefold().split() == wanted
    ]
    return exact or [
        setting
        for setting in published_settings()
        if all(word in setting.name.casefold() for word in wanted)
    ]


@functools.cache
def _load() -> dict:
    text = (resources.files(__package__) / "published.yaml").read_text(encoding="utf-8")
    # libyaml's loader is ten times faster, but it is not in every build of PyYAML.
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _setting(item: dict) -> PublishedSetting:
    columns, std = item["columns"], item.get("std") or {}
    return PublishedSetting(
        name=item["name"],
        title=item["title"],
        tasks=tuple(item["tasks"]),
        test_set=tuple(item.get("test") or ()),
        iterations=item.get("iterations"),
        batch=item.get("batch", _load()["batch"]),
        trials=item.get("trials"),
        std=dict(zip(columns, std["values"], strict=True)) if std else {},
        std_source=_full_source(std["source"]) if std else "",
        note=item.get("note", ""),
        rows=tuple(_row(row, columns) for row in item["rows"]),
    )


def _row(row: dict, columns: Sequence[str]) -> PublishedRow:
    values = dict(zip(columns, map(float, row["values"]), strict=True))
    return PublishedRow(
        row["init"], row["label"], values, _full_source(row["source"]), bool(row.get("independent"))
    )


def _full_source(source: str) -> str:
    key, _, place = source.partition(", ")
    return f"{_load()['sources'][key]}, {place}"
