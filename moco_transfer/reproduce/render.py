"""The ledger as Markdown and as data for JSON, and the list of tables."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..report.cells import signed_text
from ..runtime.errors import InputError
from .found import Found, Records
from .paper import PaperRow, PaperTable, Part, Pretraining, paper_tables

_BEGIN, _END = "<!-- reproduce:begin -->", "<!-- reproduce:end -->"
_NOTHING = "–"


def render_list(tables: Sequence[PaperTable]) -> str:
    """Return one line for each table: name, numbers that can be made here, of all, place, title."""
    lines = []
    for table in tables:
        numbers = sum(len(row.values) for part in table.parts for row in part.rows)
        able = sum(len(r.values) for part in table.parts for r in part.rows if can_run(r))
        lines.append((table.name, f"{able} of {numbers}", f"{table.place}: {table.title}"))
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    rows = (f"{name:{widths[0]}}  {count:>{widths[1]}}  {title}" for name, count, title in lines)
    return "\n".join(rows) + "\n"


def can_run(row: PaperRow) -> bool:
    """Whether a config here makes the row's numbers, from data that exist."""
    return not row.why and bool(row.task or row.pretrainings)


def render_table(table: PaperTable, records: Records) -> str:
    """Return a table's ledger as Markdown."""
    functions = (header, number, mean, configs, part_notes, table_notes, sources)
    text = (
        _environment()
        .get_template("ledger.md")
        .render(table=table, records=records, **{f.__name__: f for f in functions})
    )
    return str(text).strip("\n") + "\n"


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=False,  # noqa: S701 - Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def header(part: Part, column: str) -> str:
    """Return the name of a column: the metric without its kind where all are of one kind."""
    if part.column:
        return f"{part.column} {column}"
    kinds = {name.partition("/")[0] for name in part.columns if "/" in name}
    kind, _, metric = column.partition("/")
    return f"{kind} {metric}".strip() if len(kinds) > 1 or not part.setting else metric


def number(part: Part, row: PaperRow, column: str) -> str:
    """Return a printed number with its gap, e.g. ``66.8 (+1.0)``."""
    value = row.values.get(column, _NOTHING)
    text = value if isinstance(value, str) else _digits(value, column)
    gap = part.gap(row, column)
    spread = f" ± {row.std}" if row.std else ""
    return f"{text}{spread}" + (f" ({signed_text(gap)})" if gap is not None else "")


def _digits(value: float, column: str) -> str:
    if isinstance(value, int) and "/" not in column:
        return str(value)  # a count: parameters, hours
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def mean(found: Found, column: str) -> str:
    """Return mean and spread of the runs here, e.g. ``1.2 ± 0.3``."""
    summary = found.values.get(column)
    if summary is None or not summary.n or math.isnan(summary.mean):
        return _NOTHING
    return f"{summary.mean:.1f}" + ("" if summary.std is None else f" ± {summary.std:.1f}")


def configs(row: PaperRow) -> str:
    """Return the configs of a row, and the words that change them."""
    parts = [f"`{row.task}`"] if row.task else []
    kinds = list(dict.fromkeys(row.pretrainings.values()))
    if kinds and row.vary:
        common = _common_words(kinds, row.vary)
        parts.append(" ".join([f"`{kinds[0].config}`", *common, f"`{row.vary}` as the column"]))
    elif kinds:
        parts.append(" ".join([f"`{kinds[0].config}`", *_words(kinds[0].overrides)]))
    return " from ".join(parts) or _NOTHING


def _common_words(kinds: Sequence[Pretraining], vary: str) -> list[str]:
    found = dict.fromkeys(
        pair for kind in kinds for pair in zip(*[iter(kind.overrides)] * 2, strict=True)
    )
    return _words([word for pair in found if pair[0] != vary for word in pair])


def _words(overrides: Sequence[str]) -> list[str]:
    return [f"`{' '.join(overrides)}`"] if overrides else []


def sources(table: PaperTable, part: Part) -> str:
    """Return where the numbers of a part are printed, where the table's place does not say it."""
    places = dict.fromkeys(row.source.removeprefix(f"{table.paper}, ") for row in part.rows)
    return "" if list(places) == [table.place] else "; ".join(places)


def part_notes(part: Part, records: Records) -> list[str]:
    """Return what is known, assumed, costs a run and differs, as sentences."""
    lines = [f"Known: {sentence}" for sentence in part.known]
    lines += [f"Assumed: {sentence}" for sentence in part.assumed]
    if part.setting and part.setting.std:
        std = part.setting.std
        values = ", ".join(f"{column.split('/')[1]} {value}" for column, value in std.items())
        lines.append(f"Standard deviation of a trial: {values} ({part.setting.std_source}).")
    if part.gpu_hours is not None:
        lines.append(
            f"Cost: {part.gpu_hours:.0f} GPU hours a run (time of an iteration as published:"
            f" {part.hours_source})."
        )
    elif part.setting:
        lines.append("Cost of a run: no source states it, and no GPU was here to measure it.")
    return lines + list(_remarks(part, records))


def _remarks(part: Part, records: Records) -> Iterator[str]:
    """Yield each remark on runs here once, with the rows that it is about."""
    found = [one for row in part.rows for one in records.of_row(part, row)]
    by_remark: dict[str, dict[str, None]] = {}
    for one in [*found, *records.others(part)]:
        for remark in one.remarks:
            by_remark.setdefault(remark, {})[one.label] = None
    for remark, labels in by_remark.items():
        yield f"Here, {', '.join(labels)}: {remark}"


def table_notes(table: PaperTable) -> list[str]:
    """Return the cost of each pre-training, where it is from, and why rows cannot be run."""
    rows = [row for part in table.parts for row in part.rows]
    costs: dict[str, dict[str, None]] = {}
    for kind in (p for row in rows for p in row.pretrainings.values()):
        hours = f"{kind.gpu_hours or 0:g} GPU hours ({kind.hours_source})"
        costs.setdefault(hours if kind.gpu_hours else "not published", {})[kind.name] = None
    lines = [f"Cost of pre-training {', '.join(names)}: {text}." for text, names in costs.items()]
    if any(part.metric_of(c) == "linear/top1" for part in table.parts for c in part.columns):
        lines.append("Cost of the linear layer: not published.")
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.why:
            reasons.setdefault(row.why, {})[row.label] = None
    for why, labels in reasons.items():
        lines.append(f"Not here ({'; '.join(labels)}). {why}")
    if any(row.trials is None for row in rows):
        lines.append("n ?: the number of trials is not stated.")
    return lines


def fill_page(text: str, records: Records) -> str:
    """Return a page with the ledger of all tables between its markers.

    Raises:
        InputError: If the markers are not there, once each and in order.
    """
    begin, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= begin < end or text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise InputError(f"The page needs one {_BEGIN} and behind it one {_END}.")
    ledger = "\n".join(render_table(table, records) for table in paper_tables())
    return f"{text[: begin + len(_BEGIN)]}\n\n{ledger}\n{text[end:]}"


def ledger_json(tables: Sequence[PaperTable], records: Records) -> dict[str, Any]:
    """Return everything that the ledger says, cell by cell."""
    cells = [
        _cell(table, part, row, column, records)
        for table in tables
        for part in table.parts
        for row in part.rows
        for column in row.values
    ]
    protocols = [
        {
            "table": table.name,
            "part": part.name,
            "title": part.title,
            "known": list(part.known),
            "assumed": list(part.assumed),
            "gpu_hours_of_a_run": part.gpu_hours,
            "gpu_hours_source": part.hours_source,
            "other_runs": [_found_json(one, part.columns) for one in records.others(part)],
        }
        for table in tables
        for part in table.parts
    ]
    problems = list(map(str, records.problems))
    return {"schema": "moco_transfer.reproduce/1", "cells": cells, "parts": protocols} | {
        "problems": problems
    }


def _cell(
    table: PaperTable, part: Part, row: PaperRow, column: str, records: Records
) -> dict[str, Any]:
    pretraining = row.pretrainings.get(column)
    setting = part.setting
    return {
        "table": table.name,
        "part": part.name,
        "row": row.label,
        "init": row.init,
        "column": column,
        "metric": part.metric_of(column),
        "published": row.values[column],
        "gap": part.gap(row, column),
        "std": row.std if setting is None else setting.std.get(column),
        "trials": row.trials,
        "source": row.source,
        "finetune": row.task or None,
        "pretrain": pretraining and {
            "name": pretraining.name,
            "config": pretraining.config,
            "overrides": list(pretraining.overrides),
            "gpu_hours": pretraining.gpu_hours,
            "gpu_hours_source": pretraining.hours_source,
        },
        "why_not": row.why or None,
        "runs": [
            _found_json(one, [column])
            for one in records.of_row(part, row)
            if column in one.values and one.values[column].n
        ],
    }  # fmt: skip


def _found_json(found: Found, columns: Sequence[str]) -> dict[str, Any]:
    values = {
        column: {"mean": summary.mean, "std": summary.std, "n": summary.n}
        for column in columns
        if (summary := found.values.get(column)) is not None and summary.n
    }
    same = {"row": found.label, "about": found.about, "folders": list(found.folders)}
    remarks = {"remarks": list(found.remarks)}
    return (
        same
        | (values[columns[0]] if len(columns) == 1 and values else {"values": values})
        | remarks
    )
