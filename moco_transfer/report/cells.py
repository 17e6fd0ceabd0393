"""The cells of a transfer table: one model, which Markdown, LaTeX and the page render.

Numbers have one decimal as in the papers, differences an explicit sign; n is never hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moco_transfer.evaluate.metric_names import RATES, headline_metric

from .aggregate import Interval, Row, Table
from .published import PublishedRow, PublishedSetting, setting_for_task
from .records import RunRecord
from .seed_statistics import PairedTest, Summary

#: Shown where there is no value.
NOTHING = "–"
DAGGER = "†"
#: Headers of the columns with published numbers; the page breaks the line at the colon, and the
#: names of the published metrics follow the first.
PUBLISHED, DISTANCE = "published: ", "distance: in std"
_KIND_NAMES = {
    "bbox": "boxes",
    "segm": "masks",
    "keypoints": "keypoints",
    "densepose": "dense pose",
    "sem_seg": "semantic segmentation",
}


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    key: float | str | None = None  # its column is sorted by; None comes last
    style: str = ""  # "better" or "worse" where it exceeds the spread, "name" or "text" for words


def kind_name(kind: str) -> str:
    """Return the plain name of a kind of result (``"bbox"`` -> ``"boxes"``)."""
    return _KIND_NAMES.get(kind, kind)


def transfer_rows(table: Table, kind: str) -> list[dict[str, Cell]]:
    """Return the table of one kind of result: rows of cells by the names of their columns, without
    the columns that are empty in every row.
    """
    rows = [_transfer_cells(table, row, kind) for row in table.rows]
    metrics = table.headline_metrics(kind)
    always = {"init", "n", "engine", *metrics}
    if table.has_differences:
        always |= {f"Δ {metric}" for metric in metrics}
    filled = {name for row in rows for name, cell in row.items() if cell.text not in ("", NOTHING)}
    shown = always | filled
    return [{name: cell for name, cell in row.items() if name in shown} for row in rows]


def rate_rows(table: Table, kind: str) -> list[dict[str, Cell]]:
    """Return precision, recall and F1 of the detections above a score, for rows that have them."""
    return [
        {
            "init": Cell(row.init, row.init, "name"),
            **{rate: _mean_cell(row.rate(kind, rate), len(row.runs)) for rate in RATES},
        }
        for row in table.rows
        if row.rate(kind, "recall").n
    ]


def _mean_cell(summary: Summary, n: int) -> Cell:
    return Cell(summary_text(summary, row_n=n), summary.mean if summary.n else None)


def _transfer_cells(table: Table, row: Row, kind: str) -> dict[str, Cell]:
    n, metrics = len(row.runs), table.headline_metrics(kind)
    mark = DAGGER if any(map(run_caveats, row.all_runs)) else ""
    pretrain = pretrain_text(row)
    cells = {
        "init": Cell(row.init + mark, row.init, "name"),
        "pre-train": Cell(pretrain or NOTHING, pretrain or None, "text"),
    }
    for metric in metrics:
        cells[metric] = _mean_cell(row.summary(kind, metric), n)
    for metric in metrics:
        cells[f"Δ {metric}"] = Cell(NOTHING)
        if difference := table.difference(row, kind, metric):
            style = "better" if difference.value > 0 else "worse"
            style = style if difference.exceeds_spread else ""
            cells[f"Δ {metric}"] = Cell(signed_text(difference.value), difference.value, style)
    judged_by = headline_metric(kind)
    test = getattr(table.difference(row, kind, judged_by), "test", None)
    interval = table.intervals.get((row.init, kind))
    cells[f"95% CI ({judged_by})"] = Cell(
        interval_text(interval, row_n=n), interval.low if interval else None
    )
    p = test.p if test and not math.isnan(test.p) else None
    cells[f"p ({judged_by})"] = Cell(p_text(test), p)
    cells |= _published_cells(table, row, kind)
    return cells | {"n": Cell(str(n), n), "engine": Cell(row.all_runs[0].engine)}


def _published_cells(table: Table, row: Row, kind: str) -> dict[str, Cell]:
    setting = setting_for_task(table.setting.task, table.setting.test_set)
    columns = setting.columns if setting else []
    metrics = [m for m in table.headline_metrics(kind) if f"{kind}/{m}" in columns]
    header = PUBLISHED + " / ".join(metrics)
    found = published_row(table, row, kind)
    if found is None:
        return {header: Cell(NOTHING), DISTANCE: Cell(NOTHING)}
    setting, published = found
    values, distances = [], []
    for metric in metrics:
        column, summary = f"{kind}/{metric}", row.summary(kind, metric)
        values.append(published.values[column])
        distance = setting.distance_in_std(row.init, column, summary.mean)
        distances.append(distance if summary.n else None)
    distance_texts = [NOTHING if value is None else signed_text(value) for value in distances]
    return {
        header: Cell(" / ".join(f"{value:.1f}" for value in values), values[0]),
        DISTANCE: Cell(" / ".join(distance_texts) if setting.std else "", distances[0]),
    }


def published_row(
    table: Table, row: Row, kind: str
) -> tuple[PublishedSetting, PublishedRow] | None:
    """Return the published row next to one of ours, or None."""
    setting = setting_for_task(table.setting.task, table.setting.test_set)
    setting = None if row.is_foreign else setting
    published = setting.row_for(row.init, table.setting.task) if setting else None
    if not setting or not published or not any(c.startswith(f"{kind}/") for c in published.values):
        return None
    return setting, published


def run_caveats(run: RunRecord) -> list[str]:
    """Return why this run's numbers need care (partly covered weights, overruled checks), or []."""
    caveats = []
    if run.is_foreign:
        file = run.predictions.get("path") or "a file"
        caveats.append(f"predictions of another program ({file}), whose training is not known")
    if metric := run.selection.get("metric"):
        chosen_on = run.selection.get("chosen_on", "")
        on = "on the test set itself" if chosen_on in run.test_set else f"on {chosen_on}"
        stopped = ", stopped early" if run.selection.get("stopped_at") else ""
        caveats.append(f"its best checkpoint was chosen by {metric} {on}{stopped}")
    coverage = run.weights.get("coverage") or {}
    if run.weights.get("path") and run.flags.get("allow_partial"):
        gaps = sum(len(coverage.get(what) or ()) for what in ("missing", "misshapen"))
        # --allow-partial permits a gap, it does not make one.
        if gaps or "missing" not in coverage:
            extent = f"{gaps} backbone tensors stayed random" if gaps else "--allow-partial"
            caveats.append(f"started from partly covered weights ({extent})")
    if parts := run.weights.get("parts"):
        names = "; ".join(f"{part}: {why}" for part, why in parts.items())
        caveats.append(f"started from a whole detector ({names})")
    if forced := run.flags.get("forced"):
        names = forced if isinstance(forced, str) else ", ".join(map(str, forced))
        caveats.append(f"overruled a check of the config ({names})")
    return caveats


def pretrain_text(row: Row) -> str:
    """Return what a row's weights were pre-trained with, e.g. ``moco, epoch 200``, or ""."""
    texts = []
    for run in row.runs:
        stamp = run.weights.get("stamp") or {}
        epoch = stamp.get("epoch")
        detector = "detector" if run.weights.get("kind") == "detector" else None
        sets = " + ".join(run.weights.get("trained_on") or ())
        parts = [stamp.get("mechanism"), None if epoch is None else f"epoch {epoch}"]
        parts.append(f"detector on {sets}" if detector and sets else detector)
        texts.append(", ".join(str(part) for part in parts if part))
    return " / ".join(dict.fromkeys(filter(None, texts)))


def summary_text(summary: Summary, *, row_n: int) -> str:
    """Return ``57.0 ± 0.2``; no spread when n = 1; its own n where that is not the row's."""
    if not summary.n:
        return NOTHING
    text = f"{summary.mean:.1f}" + ("" if summary.std is None else f" ± {summary.std:.1f}")
    return text if summary.n == row_n else f"{text} (n={summary.n})"


def signed_text(value: float) -> str:
    """Return ``+3.5``, ``-0.3`` or, where it rounds to nothing, ``0.0`` without a sign."""
    text = f"{value:+.1f}"
    return text[1:] if float(text) == 0 else text


def interval_text(interval: Interval | None, *, row_n: int) -> str:
    """Return ``+0.3 to +1.9``, with its number of seeds where that is not the row's."""
    if interval is None:
        return NOTHING
    text = f"{signed_text(interval.low)} to {signed_text(interval.high)}"
    return text if interval.n == row_n else f"{text} (n={interval.n})"


def p_text(test: PairedTest | None) -> str:
    """Return p with two significant figures, or a dash below three common seeds."""
    if test is None or math.isnan(test.p):
        return NOTHING
    text = "<0.001" if test.p < 0.001 else f"{test.p:.3f}" if test.p < 0.1 else f"{test.p:.2f}"
    return f"{text} (n={test.n})"
