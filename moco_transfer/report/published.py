"""Published numbers: the paper's rows by name, and the published row next to one of ours.

The numbers are in published.yaml, each with its source. Nothing is computed from them but gaps (row
minus supervised row, as the papers print them) and distances in published std.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedRow:
    """One published initialisation."""

    init: str  # the name that our tables give it
    label: str  # the name that the source gives it
    values: dict[str, float]  # column ("bbox/AP50") -> value on 0-100
    source: str  # full reference and table
    is_independent: bool  # measured by others than the method's authors
    task: str = ""  # the only config whose runs it is shown next to; "" for all of its setting


@dataclass(frozen=True)
class PublishedSetting:
    """One published protocol and its rows; None and "" mean that no source states it."""

    name: str  # as `moco-transfer reproduce --reference` calls it, e.g. "voc07+12 R50-C4"
    title: str  # what was trained and tested on what
    tasks: list[str]  # detection configs (without .yaml) that follow this protocol
    rows: list[PublishedRow]
    batch: int  # images an iteration
    std: dict[str, float]  # column -> published std over trials
    std_source: str
    test_set: Sequence[str] = ()  # that a run of such a task must have to be comparable
    test_images: int | None = None  # of the published test set
    iterations: int | None = None
    trials: int | None = None  # behind each mean
    note: str = ""

    @property
    def columns(self) -> list[str]:
        """Metric columns such as ``"bbox/AP50"``, in the order of the source."""
        return list(self.rows[0].values)

    def row_for(self, init: str, task: str = "") -> PublishedRow | None:
        """Return the published row of our ``init``: that of the config ``task`` before others, the
        authors' own before independent ones.
        """
        init = _load()["aliases"].get(init, init)
        rows = [row for row in self.rows if row.init == init and row.task in ("", task)]
        return min(rows, key=lambda row: (row.is_independent, not row.task), default=None)

    def distance_in_std(self, init: str, column: str, value: float) -> float | None:
        """Return (``value`` - published mean) / published std, or None where one is missing."""
        row = self.row_for(init)
        if row is None or column not in row.values or not self.std.get(column):
            return None
        return (value - row.values[column]) / self.std[column]


@functools.cache
def published_settings() -> tuple[PublishedSetting, ...]:
    """Return all published settings in the order of the data file."""
    return tuple(map(_setting, _load()["settings"]))


def setting_for_task(task: str, test_set: Sequence[str]) -> PublishedSetting | None:
    """Return the published setting that a detection config on a test set follows, or None."""
    settings = published_settings()
    return next((s for s in settings if task in s.tasks and [*s.test_set] == [*test_set]), None)


def find_settings(words: Sequence[str]) -> list[PublishedSetting]:
    """Return the setting of that name, else every setting whose name holds each word, in any case,
    e.g. ``["coco", "fpn"]``; no words mean all.
    """
    wanted = " ".join(words).casefold().split()
    settings = published_settings()
    exact = [s for s in settings if s.name.casefold().split() == wanted]
    return exact or [s for s in settings if all(word in s.name.casefold() for word in wanted)]


@functools.cache
def _load() -> dict[str, Any]:
    return dict(
        parse_own_yaml((resources.files(__package__) / "published.yaml").read_text("utf-8"))
    )


def parse_own_yaml(text: str) -> Any:
    """Read a YAML of the package with libyaml's loader where there is one: ten times as fast."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both safe


def _setting(item: dict[str, Any]) -> PublishedSetting:
    """Return a setting of the data file, whose keys are the fields of the dataclasses."""
    facts = {"batch": _load()["batch"], **item}
    columns, std, rows = facts.pop("columns"), facts.pop("std", None), []
    for row in facts.pop("rows"):
        values = dict(zip(columns, map(float, row["values"]), strict=True))
        source, independent = _full_source(row["source"]), bool(row.get("independent"))
        names = row["init"], row["label"]
        rows.append(PublishedRow(*names, values, source, independent, row.get("task", "")))
    return PublishedSetting(
        **facts,
        rows=rows,
        std=dict(zip(columns, std["values"], strict=True)) if std else {},
        std_source=_full_source(std["source"]) if std else "",
    )


def _full_source(source: str) -> str:
    key, _, place = source.partition(", ")
    return f"{_load()['sources'][key]}, {place}"
