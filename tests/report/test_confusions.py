"""Precision, recall, F1 and confusions on the page: mean and std over seeds, and a figure.

Seen red under: numbers of another test set; a sum instead of the mean over seeds; the figure's axes
exchanged; columns instead of rows adding up to 100; the CSV without the rates.
"""

from __future__ import annotations

import csv
import io
import re

import pytest

from moco_transfer.report import build_tables, read_runs
from moco_transfer.report.html.confusions import confusion_panels
from moco_transfer.report.html.page import render_page
from moco_transfer.report.html.plots import draw_panel
from moco_transfer.report.table_csv import render_csv

NONE = "(none)"
CONFUSION = {
    0: {"dog": {"dog": 6, "cat": 2, NONE: 2}, "cat": {"cat": 5}, NONE: {"dog": 3}},
    1: {"dog": {"dog": 8, NONE: 2}, "cat": {"cat": 5}, NONE: {"dog": 1}},
}
RATES = {
    0: {"score": 0.5, "precision": 60.0, "recall": 40.0, "F1": 48.0, "precision-dog": 1.0},
    1: {"score": 0.5, "precision": 70.0, "recall": 50.0, "F1": 58.3},
}


@pytest.fixture
def recorded(make_run, tmp_path):
    for seed in (0, 1):
        make_run(
            f"m{seed}",
            "moco",
            seed,
            operating_point={
                "other": {"bbox": {"recall": 99.0}},
                "voc_2007_test": {"bbox": RATES[seed]},
            },
            confusion={"voc_2007_test": {"bbox": CONFUSION[seed]}},
        )
        make_run(f"r{seed}", "random", seed)
    return tmp_path


def test_page__rates_with_their_spread(recorded):
    tables = build_tables(read_runs([recorded])[0])
    row = next(row for row in tables[0].rows if row.init == "moco")
    assert (row.rate("bbox", "recall").mean, row.rate("bbox", "recall").n) == (45.0, 2)
    page = render_page(tables)
    table = page[page.index("<caption>Detections with a score") :]
    table = re.sub(r"<svg.*?</svg>", "", table[: table.index("</table>")], flags=re.DOTALL)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert cells == ["65.0 ± 7.1", "45.0 ± 7.1", "53.1 ± 7.3"], "random has none recorded"


def test_csv__rates_of_each_run(recorded):
    rows = list(csv.DictReader(io.StringIO(render_csv(build_tables(read_runs([recorded])[0])))))
    of = {(row["init"], row["seed"]): row for row in rows}
    for seed, rates in RATES.items():
        row = of["moco", str(seed)]
        found = {n: row[f"bbox/operating_point/{n}"] for n in ("precision", "recall", "F1")}
        assert found == {n: str(rates[n]) for n in found}
        assert of["random", str(seed)]["bbox/operating_point/recall"] == ""


def test_confusion__mean_over_seeds_in_percent_of_the_row(recorded):
    (table,) = build_tables(read_runs([recorded])[0])
    row = next(row for row in table.rows if row.init == "moco")
    assert row.confusion("bbox")["dog"] == {"dog": 7.0, "cat": 1.0, NONE: 2.0}
    (panel,) = confusion_panels(table)
    axis = draw_panel(panel, table)[0].axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == ["dog", "cat", NONE]
    assert names == [tick.get_text() for tick in axis.get_xticklabels()]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("detected", "object")
    shown = {(names[round(t._y)], names[round(t._x)]): t.get_text() for t in axis.texts}
    assert shown == {
        ("dog", "dog"): "70",
        ("dog", "cat"): "10",
        ("dog", NONE): "20",
        ("cat", "cat"): "100",
        (NONE, "dog"): "100",
    }
    assert axis.yaxis_inverted()


def test_confusion__many_classes(make_run, tmp_path):
    pairs = {f"class {n}": {f"class {n}": n + 1} for n in range(30)}
    make_run("m", confusion={"voc_2007_test": {"bbox": pairs}})
    (panel,) = confusion_panels(build_tables(read_runs([tmp_path])[0])[0])
    axis = draw_panel(panel)[0].axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names[0] == "class 29" and len(names) == 21


@pytest.mark.parametrize(
    "wrong", [{"bbox": {"dog": {"cat": "two"}}}, {"bbox": {"dog": 3}}, {"bbox": 4}]
)
def test_confusion__of_another_type(make_run, tmp_path, wrong):
    make_run("m", confusion={"voc_2007_test": wrong})
    records, (problem,) = read_runs([tmp_path])
    assert records == [] and "confusion" in str(problem)


def test_panels__none_without_confusions(three_rows):
    assert confusion_panels(build_tables(read_runs([three_rows])[0])[0]) == []
