"""What the papers print: tables, their parts, rows and numbers, with the configs that make them.

Numbers of transfer tables are those of report/published.yaml, the others stand in tables.yaml.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from ..config import available, load_detection_config
from ..report.published import PublishedSetting, parse_own_yaml, published_settings

_NUM_GPUS = 8  # of the zoo's timings
_TWIN = "_msra"  # ends the name of the config of the paper's own supervised row
_SUPERVISED = "super."  # begins the label of the row that the papers' gaps refer to


@dataclass(frozen=True)
class Pretraining:
    """One pre-training: its name in folders, its config and KEY VALUE words."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    gpu_hours: float | None = None  # None: nobody has published them
    hours_source: str = ""


@dataclass(frozen=True)
class PaperRow:
    """One row of a part, with the numbers as printed: 0-100, or the text where none is printed."""

    label: str
    values: Mapping[str, float | str]  # column -> value; columns without a number are missing
    source: str  # full reference and place
    init: str = ""  # the name that our tables give it; "" in tables without fine-tuning
    task: str = ""  # detection or segmentation config; "" where nothing is fine-tuned
    #: Column -> pre-training behind its number.
    pretrainings: Mapping[str, Pretraining] = field(default_factory=dict)
    why: str = ""  # the reason for which it cannot be run here
    monitor: bool = False  # the numbers are of the kNN monitor during pre-training
    vary: str = ""  # key whose value is the column
    std: float | None = None  # printed, of every column
    trials: int | None = None  # behind each number


@dataclass(frozen=True)
class Part:
    """Rows under the same columns."""

    name: str  # e.g. "coco R50-FPN 1x"
    title: str
    columns: tuple[str, ...]  # e.g. "bbox/AP50"; "256" where `column` names what varies
    rows: tuple[PaperRow, ...]
    known: tuple[str, ...]  # of the protocol
    assumed: tuple[str, ...]
    column: str = ""  # what varies over the columns, e.g. "negatives K"
    metric: str = ""  # of every number then, e.g. "linear/top1"
    has_gaps: bool = False  # whether the paper prints the gaps to the supervised row
    setting: PublishedSetting | None = None  # of a fine-tuning part
    #: Training images, test images and classes of the published test of features; () elsewhere.
    counts: tuple[int, ...] = ()
    trials: int | None = None  # behind each number; None: not stated
    gpu_hours: float | None = None  # of one fine-tuning run
    hours_source: str = ""

    def gap(self, row: PaperRow, column: str) -> float | None:
        """Return the value minus the first supervised row's, in points, as the papers print it."""
        base = next((one for one in self.rows if one.label.startswith(_SUPERVISED)), None)
        no_gap = base is None or row.label.startswith(_SUPERVISED) or row.init == "random"
        if no_gap or base is None or not self.has_gaps:
            return None
        value, other = row.values.get(column), base.values.get(column)
        if isinstance(value, str) or isinstance(other, str) or value is None or other is None:
            return None
        return round(value - other, 1)

    def metric_of(self, column: str) -> str:
        """Return the metric of a column; one that no record has, such as "params (M)", too."""
        return self.metric or column


@dataclass(frozen=True)
class PaperTable:
    """One table or figure."""

    name: str  # as the command line takes it, e.g. "table6"
    paper: str  # full reference
    place: str  # e.g. "Table 6"
    title: str
    parts: tuple[Part, ...]
    images: str = "imagenet"  # which images are pre-trained on


@functools.cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Return all tables in the order of the papers."""
    return tuple(map(_table, _data()["tables"]))


@functools.cache
def _data() -> dict[str, Any]:
    return dict(parse_own_yaml((resources.files(__package__) / "tables.yaml").read_text("utf-8")))


def full_source(source: str) -> str:
    """Return a source with its reference instead of its key: "moco, Table 1" -> "He et al., …"."""
    key, comma, place = source.partition(", ")
    return f"{_data()['sources'].get(key, key)}{comma}{place}"


def _table(item: Mapping[str, Any]) -> PaperTable:
    images = item.get("images", "imagenet")
    counts = tuple(_data()["images"][images])
    found = (_part(part, item["place"]) for part in item["parts"])
    parts = tuple(replace(part, counts=() if part.setting else counts) for part in found)
    key, _, place = item["place"].partition(", ")
    about = item["name"], full_source(key), place, item["title"]
    return PaperTable(*about, parts, images)


def _part(item: Mapping[str, Any], place: str) -> Part:
    source = full_source(item.get("place", place))
    if "setting" in item:
        return _transfer_part(item, source)
    columns = tuple(map(str, item["columns"]))
    known, assumed = _protocols(item.get("protocols", []))
    rows = tuple(_feature_row(row, columns, source) for row in item["rows"])
    title = item.get("title", "")
    names = {key: item.get(key, "") for key in ("column", "metric")}
    gaps = bool(item.get("gaps"))
    return Part(title, title, columns, rows, known, assumed, **names, has_gaps=gaps)


def _protocols(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is known and what is assumed of protocols, with full references."""
    found = []
    for key in ("known", "assumed"):
        sentences = [s for name in names for s in _data()["protocols"][name].get(key, ())]
        found.append(tuple(sentences))
    return found[0], found[1]


def _feature_row(item: Mapping[str, Any], columns: tuple[str, ...], source: str) -> PaperRow:
    """Return a row whose numbers are in tables.yaml."""
    printed = zip(columns, item["values"], strict=True)
    values = {column: value for column, value in printed if value is not None}
    pretrainings = {}
    if name := item.get("pretrain"):
        words = tuple(item.get("with", ()))
        for column in values:
            varied = (item["vary"], column) if "vary" in item else ()
            pretrainings[column] = _varied(_pretraining(name), (*words, *varied))
    return PaperRow(
        item["label"],
        values,
        full_source(item["source"]) if "source" in item else source,
        pretrainings=pretrainings,
        why=_data()["reasons"][item["why"]] if "why" in item else "",
        monitor=bool(item.get("monitor")),
        vary=item.get("vary", ""),
        std=item.get("std"),
        trials=item.get("trials"),
    )


@functools.cache
def _pretraining(name: str) -> Pretraining:
    item = _data()["pretrainings"][name]
    hours = item.get("gpu_hours"), full_source(item.get("hours_source", ""))
    return Pretraining(name, item["config"], tuple(item.get("with", ())), *hours)


def _varied(base: Pretraining, words: tuple[str, ...]) -> Pretraining:
    """Return a pre-training with more KEY VALUE words; what they do not change is left out."""
    pairs = list(zip(words[::2], words[1::2], strict=True))
    pairs = [pair for pair in pairs if _default(base, pair[0]) != _number(pair[1])]
    if not pairs:
        return base
    suffix = "".join(f"_{key.rpartition('.')[2].lower()}_{value}" for key, value in pairs)
    words = tuple(word for pair in pairs for word in pair)
    # A batch of another size takes another time; a queue does not.
    same_time = not any(key == "DATA.BATCH_SIZE_TOTAL" for key, _ in pairs)
    known = [
        other
        for other in map(_pretraining, _data()["pretrainings"])
        if (other.config, other.overrides) == (base.config, (*base.overrides, *words))
    ]
    if known:
        return known[0]
    hours = (base.gpu_hours, base.hours_source) if same_time else (None, "")
    return Pretraining(base.name + suffix, base.config, (*base.overrides, *words), *hours)


@functools.cache
def _default(base: Pretraining, key: str) -> Any:
    from ..config import flatten_config, load_pretrain_config

    return flatten_config(load_pretrain_config(base.config, list(base.overrides)))[key]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _transfer_part(item: Mapping[str, Any], source: str) -> Part:
    """Return a part whose numbers are those of a published setting."""
    setting = next(s for s in published_settings() if s.name == item["setting"])
    names = [*item.get("extra", ()), setting.name]
    known, assumed = _protocols(names)
    protocol = _data()["protocols"][setting.name]
    rows = tuple(_transfer_row(setting, name, source) for name in item["rows"])
    iterations = setting.iterations or _iterations(setting)
    hours = None
    if iterations and "seconds" in protocol:
        hours = protocol["seconds"] * iterations * _NUM_GPUS / 3600
    return Part(
        setting.name,
        setting.title,
        tuple(setting.columns),
        rows,
        known,
        assumed,
        has_gaps=True,
        setting=setting,
        trials=setting.trials,
        gpu_hours=hours,
        hours_source=full_source(protocol.get("timed", "")),
    )


def _iterations(setting: PublishedSetting) -> int | None:
    names = [task for task in setting.tasks if task in available()]
    return int(load_detection_config(names[0]).SOLVER.MAX_ITER) if names else None


def _transfer_row(setting: PublishedSetting, name: str, source: str) -> PaperRow:
    init, _, task = name.partition("/")
    rows = (row for row in setting.rows if not row.is_independent)
    found = next(row for row in rows if (row.init, row.task) == (init, task))
    about = _data()["inits"][init]
    twins = [name for name in setting.tasks if name.endswith(_TWIN)]
    configs = twins if init == "supervised" and not task and twins else [task, *setting.tasks]
    pretrainings = {}
    if "pretrain" in about:
        pretrainings = dict.fromkeys(found.values, _pretraining(about["pretrain"]))
    return PaperRow(
        found.label,
        found.values,
        source,
        init,
        next(filter(None, configs), ""),
        pretrainings,
        _data()["reasons"][about["why"]] if "why" in about else "",
        trials=setting.trials,
    )


def choose(
    tables: Sequence[PaperTable], words: Sequence[str]
) -> tuple[list[PaperTable], list[str]]:
    """Return the tables with the parts, rows and columns that ``words`` name, and the words that
    name none.

    Parts are named by a part of their name or of a config's, rows by their ``init`` or label,
    columns by their name. Words restrict only what they name: without one for rows, all stay.
    """
    tables, unused = list(tables), set(words)
    axes = (_choose_parts, _choose_rows, _choose_columns)
    for restrict in axes:
        chosen = [restrict(table, words) for table in tables]
        used = {word for _, found in chosen for word in found}
        if used:
            tables = [table for table, _ in chosen if table.parts]
            unused -= used
    return tables, sorted(unused)


_Choice = tuple[PaperTable, set[str]]


def _choose_parts(table: PaperTable, words: Sequence[str]) -> _Choice:
    found: dict[str, list[Part]] = {}
    for part in table.parts:
        names = plain(f"{part.name} {' '.join(part.setting.tasks) if part.setting else ''}")
        for word in words:
            if plain(word) in names:
                found.setdefault(word, []).append(part)
    kept = [part for part in table.parts if any(part in parts for parts in found.values())]
    return replace(table, parts=tuple(kept)), set(found)


def _choose_rows(table: PaperTable, words: Sequence[str]) -> _Choice:
    wanted, used, parts = {plain(word): word for word in words}, set(), []
    for part in table.parts:
        rows = []
        for row in part.rows:
            names = {
                plain(row.init),
                plain(row.label),
                *(p.name for p in row.pretrainings.values()),
            }
            hits = {word for key, word in wanted.items() if key in set(map(plain, names)) - {""}}
            used |= hits
            rows += [row] if hits else []
        parts += [replace(part, rows=tuple(rows))] if rows else []
    return replace(table, parts=tuple(parts)), used


def _choose_columns(table: PaperTable, words: Sequence[str]) -> _Choice:
    wanted, used, parts = {plain(word): word for word in words}, set(), []
    for part in table.parts:
        columns = [
            c for c in part.columns if {plain(c), plain(c.rpartition("/")[2])} & wanted.keys()
        ]
        used |= {
            wanted[key]
            for c in columns
            for key in (plain(c), plain(c.rpartition("/")[2]))
            if key in wanted
        }
        rows = []
        for row in part.rows:
            values = {c: v for c, v in row.values.items() if c in columns}
            made = {c: p for c, p in row.pretrainings.items() if c in columns}
            rows += [replace(row, values=values, pretrainings=made)] if values else []
        parts += [replace(part, columns=tuple(columns), rows=tuple(rows))] if rows else []
    return replace(table, parts=tuple(parts)), used


def plain(name: str) -> str:
    """Return a name without case, blanks and hyphens: "Table 6" and "table-6" are the same."""
    return re.sub(r"[\s_.-]+", "", name).casefold()
