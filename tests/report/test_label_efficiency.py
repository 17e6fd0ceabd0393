"""One task on several amounts of its labels: the block of rows, and the curve, by hand.

Seen red under: amounts ordered as text; the number of images of all labels missing; two draws of
one amount taken as one; the axis linear; configs mixed; the label of each tick drawn.
"""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise

import pytest
from test_cli_report import _run
from test_page import _Page

from moco_transfer.report import build_tables, read_runs
from moco_transfer.report.comparisons.label_efficiency import build_label_curves
from moco_transfer.report.html.label_curve import label_panels
from moco_transfer.report.html.plots import draw_panel

#: Amount -> images, then AP of random and of moco with seeds 0 and 1.
AP = {
    "5shot": (9, (1.0, 3.0), (4.0, 8.0)),
    "10pct": (20, (6.0, 6.0), (10.0, 12.0)),
    "50pct": (100, (20.0, 22.0), (21.0, 22.0)),
    "": (200, (30.0, 32.0), (31.0, 33.0)),
}


@pytest.fixture
def make_amount(make_run):
    def make(amount, images, values, init, *, digest="a", **changes):
        dataset = {"train": ["t"], "test": ["v"]}
        if amount:
            key, value = (
                ("shots", 5) if "shot" in amount else ("fraction", float(amount[:-3]) / 100)
            )
            subset = {key: value, "seed": 0, "pictures": images, "sha256": digest * 64}
            dataset["label_subset"] = subset
        elif images:
            dataset["num_labelled_images"] = images
        task = f"voc_{amount}" if amount else "voc"
        for seed, ap in enumerate(values):
            bbox = {"AP": ap, "AP50": 2 * ap, "AP75": ap}
            folder = f"{task}/{digest}/{changes}/{init}{seed}"
            make_run(folder, init, seed, task=task, dataset=dataset, bbox=bbox, **changes)

    return make


@pytest.fixture
def four_amounts(make_amount, tmp_path):
    """Two rows with two seeds on four amounts of the labels of one task; return their folder."""
    for amount, (images, random, moco) in AP.items():
        make_amount(amount, images, random, "random")
        make_amount(amount, images, moco, "moco")
    return tmp_path


def _curves(folder):
    return build_label_curves(build_tables(read_runs([folder])[0]))


def test_report__has_a_block_of_rows_for_each_amount(four_amounts, capsys):
    assert _run(four_amounts) == 0
    text = capsys.readouterr().out
    section = text[: text.index("\n### voc")]
    assert section.startswith("### Label efficiency: voc\n")
    rows = [line for line in section.splitlines() if line.startswith("|")]
    # Means of 1 and 3, of 4 and 8, ...; std of two values: their distance / sqrt(2).
    assert [row.split(" | ")[:4] + row.split(" | ")[-2:] for row in rows[2:]] == [
        ["| 5-shot", "9", "random", "2.0 ± 1.4", "–", "2 |"],
        ["| 5-shot", "9", "moco", "6.0 ± 2.8", "**+4.0**", "2 |"],
        ["| 10%", "20", "random", "6.0 ± 0.0", "–", "2 |"],
        ["| 10%", "20", "moco", "11.0 ± 1.4", "**+5.0**", "2 |"],
        ["| 50%", "100", "random", "21.0 ± 1.4", "–", "2 |"],
        ["| 50%", "100", "moco", "21.5 ± 0.7", "+0.5", "2 |"],
        ["| all", "200", "random", "31.0 ± 1.4", "–", "2 |"],
        ["| all", "200", "moco", "32.0 ± 1.4", "+1.0", "2 |"],
    ]


def test_report__latex_names_each_amount_once(four_amounts, capsys):
    assert _run(four_amounts, "--format", "latex") == 0
    text = capsys.readouterr().out
    table = text[: text.index(r"\end{table}")]
    assert re.findall(r"^(\S+) & \d+ & random", table, re.MULTILINE) == [
        "5-shot", r"10\%", r"50\%", "all",
    ]  # fmt: skip
    assert table.count(" &  & moco & ") == 4 and table.count(r"\midrule") == 4


def test_report__csv_has_the_amount_of_each_run(four_amounts, capsys):
    assert _run(four_amounts, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = {(r["label_fraction"], r["label_shots"], r["labelled_images"]) for r in rows}
    assert found == {("", "5", "9"), ("0.1", "", "20"), ("0.5", "", "100"), ("", "", "200")}


def test_curve__one_line_a_row_over_labelled_images(four_amounts):
    (curve,) = _curves(four_amounts)
    (panel,) = label_panels(curve)
    figure, problems = draw_panel(panel)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and problems == []
    means = {line.get_marker(): line.get_xydata().tolist() for line in axis.lines}
    assert means["s"] == [[9, 2.0], [20, 6.0], [100, 21.0], [200, 31.0]]
    assert means["o"] == [[9, 6.0], [20, 11.0], [100, 21.5], [200, 32.0]]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert set(labels) == {"9\n5-shot", "20\n10%", "100\n50%", "200\nall"}
    # The bars of moco: one std up and down.
    bars = [c for c in axis.collections if hasattr(c, "get_segments")]
    ends = sorted(round(y, 6) for y in bars[1].get_segments()[0][:, 1])
    assert ends == pytest.approx([6 - 8**0.5, 6 + 8**0.5])


def test_curve__labels_of_near_amounts_do_not_overlap(make_amount, tmp_path):
    for images in (100, 104, 108, 300, 900):
        make_amount(f"{images / 10:g}pct", images, (1.0,), "random")
    figure, _ = draw_panel(label_panels(_curves(tmp_path)[0])[0])
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels() if t.get_text()]
    boxes.sort(key=lambda box: box.x0)
    assert len(boxes) == 3 and all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_report__writes_the_curve(four_amounts):
    assert _run(four_amounts, "--plots", four_amounts / "plots") == 0
    stem = "voc_v_01234567_torchvision_BN_bbox_labels"
    names = {path.name for path in (four_amounts / "plots").iterdir()}
    assert {f"{stem}.png", f"{stem}.svg"} <= names
    assert ">labelled images</text>" in (four_amounts / "plots" / f"{stem}.svg").read_text()


def test_page__shows_the_curve_and_its_numbers(four_amounts):
    assert _run(four_amounts, "--format", "html", "--output", four_amounts / "page.html") == 0
    text = (four_amounts / "page.html").read_text()
    page = _Page(text)
    assert page.tables[0][2][:4] == ["5-shot", "9", "moco", "6.0 ± 2.8"]
    section = text[text.index('<section id="labels"') : text.index('<section id="table-1"')]
    assert section.count("<svg") == 2 + 8 + 1  # swatches of the legend and of the rows; the figure
    assert "#labels" in page.addresses and len(page.ids) == len(set(page.ids))


def test_curves__need_two_amounts_of_one_setting(make_amount, tmp_path):
    make_amount("10pct", 20, (1.0,), "random")
    make_amount("", 200, (9.0,), "random", config_hash="other")
    assert _curves(tmp_path) == []
    make_amount("", 200, (9.0,), "random")
    (curve,) = _curves(tmp_path)
    assert [(a.label, a.images) for a in curve.amounts] == [("10%", 20), ("all", 200)]
    # A second list of 10 %: neither is the 10 % of the curve.
    make_amount("50pct", 100, (5.0,), "random")
    make_amount("10pct", 20, (1.0,), "random", digest="b")
    (curve,) = _curves(tmp_path)
    assert [amount.label for amount in curve.amounts] == ["50%", "all"]
    assert "10% labels have 2 tables" in str(curve.problems[0])


def test_curves__all_labels_of_an_older_record(make_amount, tmp_path):
    make_amount("", None, (9.0,), "random")
    make_amount("5shot", 9, (2.0,), "random")
    (curve,) = _curves(tmp_path)
    assert [(a.label, a.images) for a in curve.amounts] == [("5-shot", 9), ("all", None)]
    assert list(curve.points("random", "bbox", "AP")) == [9]
    make_amount("10pct", 20, (1.0,), "random")  # from which the whole follows
    (curve,) = _curves(tmp_path)
    assert [(a.label, a.images) for a in curve.amounts][-1] == ("all", 200)
