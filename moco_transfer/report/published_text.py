"""Published numbers beside ours: the cells of the column and the sentences that say where they come
from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .aggregate import Row, Table
from .number_text import NOTHING, signed_text
from .published import PublishedRow, PublishedSetting, setting_for_task
from .records import CONFIG_FILE, text_of

_BATCH = re.compile(r"^ +IMS_PER_BATCH: *(\d{1,9}) *$", re.MULTILINE)


def published_cells(
    table: Table, row: Row, kind: str, *, metrics: Sequence[str]
) -> tuple[str, str]:
    """Return the published values of a row and their distances from ours.

    Args:
        table: The table that the row belongs to.
        row: One of its rows.
        kind: ``"bbox"``, ``"segm"``, ...
        metrics: Names in the order of the cells.

    Returns:
        E.g. ``("55.9 / 81.5 / 62.6", "+1.5 / -0.5 / 0.0")``: values on 0-100, and (our mean -
        published) / published std. A dash stands for what is not published; the second is "" where
        the whole setting has no published std.
    """
    found = _find(table, row, kind)
    if found is None:
        return NOTHING, NOTHING
    setting, published = found
    values, distances = [], []
    for metric in metrics:
        column = f"{kind}/{metric}"
        value = published.values.get(column)
        values.append(NOTHING if value is None else f"{value:.1f}")
        summary = row.summary(kind, metric)
        distance = setting.distance_in_std(row.init, column, summary.mean) if summary.n else None
        distances.append(NOTHING if distance is None else signed_text(distance))
    return " / ".join(values), " / ".join(distances) if setting.std else ""


def published_sentences(table: Table) -> list[str]:
    """Return what the published column shows: protocol, source of each row, and where the protocol
    differs.

    Args:
        table: A table; one without published numbers gives [].
    """
    matches = [
        (row, found)
        for row in table.rows
        for kind in table.kinds
        if (found := _find(table, row, kind))
    ]
    if not matches:
        return []
    setting = matches[0][1][0]
    by_row = {row.init: published for row, (_, published) in matches}
    by_source: dict[str, list[str]] = {}
    for init, published in by_row.items():
        by_source.setdefault(published.source, []).append(f"{init} = {published.label}")
    rows = "; ".join(f"{', '.join(labels)} ({source})" for source, labels in by_source.items())
    trials = f", mean of {setting.trials} trials" if setting.trials else ""
    sentences = [f"Published, {setting.title}{trials}: {rows}."]
    if setting.std:
        std = ", ".join(f"{column.split('/')[1]} {value}" for column, value in setting.std.items())
        sentences.append(
            f"Distance: (our mean - published mean) / published std; std {std} from"
            f" {setting.std_source}."
        )
    if setting.note:
        sentences.append(setting.note)
    return [*sentences, *_schedule_sentences(table, setting)]


def _schedule_sentences(table: Table, setting: PublishedSetting) -> list[str]:
    """Say where runs had another length than the published ones; as many images in smaller
    batches are the same schedule.
    """
    others = [run for run in table.runs if run.iterations != setting.iterations]
    if not setting.iterations or not others:
        return []
    batches = {id(run): _batch_size(run.folder) for run in others}
    scaled, differing = {}, {}
    for run in others:
        batch = batches[id(run)]
        # Scaled schedules round their iterations to whole ones.
        is_same = (
            batch is not None
            and abs(run.iterations * batch - setting.iterations * setting.batch) <= batch
        )
        text = f"{run.iterations} iterations" + ("" if batch is None else f" of {batch} images")
        (scaled if is_same else differing)[text] = None
    published = f"{setting.iterations} of {setting.batch} images"
    sentences = []
    if scaled:
        sentences.append(
            f"Runs here trained for {', '.join(scaled)}: as many images as the published ones"
            f" with {published}."
        )
    if differing:
        sentences.append(
            f"Warning: runs here trained for {', '.join(differing)}, the published ones for"
            f" {published}."
        )
    return sentences


def _batch_size(folder: str) -> int | None:
    """Return SOLVER.IMS_PER_BATCH of a run's config.yaml, or None: reading a whole config of each
    run would be slow.
    """
    found = _BATCH.search(text_of(folder, CONFIG_FILE))
    return int(found[1]) if found else None


def _find(table: Table, row: Row, kind: str) -> tuple[PublishedSetting, PublishedRow] | None:
    setting = setting_for_task(table.setting.task, table.setting.test_set)
    published = setting.row_for(row.init) if setting else None
    if published is None or not any(column.startswith(f"{kind}/") for column in published.values):
        return None
    return setting, published


def render_published(setting: PublishedSetting) -> str:
    """Return all rows of a published setting as Markdown: values, gap to the supervised row of the
    same source, source.

    Args:
        setting: From :func:`moco_transfer.report.find_settings`.

    Returns:
        Heading, protocol, table and note; it ends with a line break.
    """
    facts = [setting.title]
    facts += [f"{setting.iterations} iterations"] if setting.iterations else []
    facts += [f"mean of {setting.trials} trials"] if setting.trials else []
    if setting.std:
        facts.append(
            f"std {', '.join(f'{column} {value}' for column, value in setting.std.items())}"
            f" ({setting.std_source})"
        )
    lines = [f"### {setting.name}", "", "; ".join(facts) + ".", ""]
    lines += [
        _markdown_line(["row", *setting.columns, "source"]),
        _markdown_line(["---"] * (len(setting.columns) + 2)),
    ]
    for row in setting.rows:
        cells = [
            f"{_as_printed(row.values[column])}{_gap(setting, row, column)}"
            for column in setting.columns
        ]
        lines.append(
            _markdown_line(
                [row.label, *cells, row.source + (" (independent)" if row.is_independent else "")]
            )
        )
    if setting.note:
        lines += ["", setting.note]
    return "\n".join(lines) + "\n"


def _as_printed(value: float) -> str:
    # Papers print one decimal, some repositories two.
    return f"{value:.1f}" if value == round(value, 1) else f"{value:.2f}"


def _gap(setting: PublishedSetting, row: PublishedRow, column: str) -> str:
    # A paper's own rows belong together over its tables; an independent row is compared only with
    # its own source.
    def group(other: PublishedRow) -> object:
        return other.source if other.is_independent else None

    base = next(
        (
            other
            for other in setting.rows
            if other.init == "supervised" and group(other) == group(row)
        ),
        None,
    )
    if base is None or row.init in ("supervised", "random"):
        return ""
    return f" ({signed_text(row.values[column] - base.values[column])})"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
