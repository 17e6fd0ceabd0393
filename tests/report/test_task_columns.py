"""The columns of keypoints, LVIS and Cityscapes in every format, and the published rows next to
them.

Seen red under: AP75 shown where no run has it; APm and APl of boxes as columns; APr, APc, APf
dropped; the published row with frozen BN next to runs that tune BN; published metrics under the
header of others.
"""

from __future__ import annotations

import csv
import io

import pytest

from moco_transfer.report import (
    build_tables,
    read_runs,
    render_csv,
    render_latex,
    render_markdown,
    setting_for_task,
)
from moco_transfer.report.html.page import render_page
from moco_transfer.report.html.plots import table_panels

BOXES = {"AP": 40.0, "AP50": 60.0, "AP75": 43.0, "APs": 20.0, "APm": 44.0, "APl": 50.0}
OF_LVIS = BOXES | {"APr": 10.5, "APc": 23.5, "APf": 30.5}
TASKS = {
    "coco_keypoint_R_50_FPN_2x": (
        "keypoints_coco_2017_val",
        {
            "bbox": BOXES,
            "keypoints": {"AP": 66.0, "AP50": 87.0, "AP75": 72.0, "APm": 63.0, "APl": 73.0},
        },
    ),
    "lvis_v0.5_R_50_FPN_2x": ("lvis_v0.5_val", {"bbox": OF_LVIS, "segm": OF_LVIS}),
    "lvis_v0.5_R_50_FPN_2x_msra": ("lvis_v0.5_val", {"bbox": OF_LVIS, "segm": OF_LVIS}),
    "cityscapes_R_50_FPN_24k": (
        "cityscapes_fine_instance_seg_val",
        {"bbox": BOXES, "segm": {"AP": 32.0, "AP50": 59.0, "AP-car": 40.0}},
    ),
}
LVIS_COLUMNS = ["AP", "AP50", "AP75", "APr", "APc", "APf"]
COLUMNS = {
    "coco_keypoint_R_50_FPN_2x": {
        "bbox": ["AP", "AP50", "AP75"],
        "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
    },
    "lvis_v0.5_R_50_FPN_2x": {"bbox": LVIS_COLUMNS, "segm": LVIS_COLUMNS},
    "lvis_v0.5_R_50_FPN_2x_msra": {"bbox": LVIS_COLUMNS, "segm": LVIS_COLUMNS},
    "cityscapes_R_50_FPN_24k": {"bbox": ["AP", "AP50", "AP75"], "segm": ["AP", "AP50"]},
}
#: Of the supervised and the MoCo row; Tables 6 and A.4 of arXiv:1911.05722.
PUBLISHED = {
    "coco_keypoint_R_50_FPN_2x": (
        "published AP / AP50 / AP75", "65.8 / 86.9 / 71.9", "66.8 / 87.4 / 72.5",
    ),
    "lvis_v0.5_R_50_FPN_2x": (
        "published AP / AP50 / AP75", "23.2 / 36.0 / 24.4", "24.1 / 37.4 / 25.5",
    ),
    "lvis_v0.5_R_50_FPN_2x_msra": (
        "published AP / AP50 / AP75", "24.4 / 37.8 / 25.8", "24.1 / 37.4 / 25.5",
    ),
    "cityscapes_R_50_FPN_24k": ("published AP / AP50", "32.9 / 59.6", "32.3 / 59.3"),
}  # fmt: skip


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture
def tables(task, make_run, tmp_path):
    test_set, metrics = TASKS[task]
    for init in ("supervised", "moco"):
        for seed in (0, 1):
            shifted = {
                kind: {name: value + seed for name, value in group.items()}
                for kind, group in metrics.items()
            }
            made = {"task": task, "metrics": shifted, "dataset": {"train": [], "test": [test_set]}}
            make_run(f"{init}{seed}", init, seed, **made)
    return build_tables(read_runs([tmp_path])[0])


def _grids(markdown):
    """Return the cells of each table of a Markdown text, the header first."""
    grids, lines = [], iter(markdown.splitlines())
    for line in lines:
        if line.startswith("| init"):
            grids.append([[cell.strip() for cell in line.strip("| ").split(" | ")]])
            next(lines)
        elif line.startswith("|"):
            grids[-1].append([cell.strip() for cell in line.strip("| ").split(" | ")])
    return grids


def test_markdown__columns_values_and_published_rows(task, tables):
    grids = dict(zip(COLUMNS[task], _grids(render_markdown(tables)), strict=True))
    for kind, columns in COLUMNS[task].items():
        header, supervised, moco = grids[kind]
        assert header[1 : 1 + len(columns)] == columns
        assert [name[2:] for name in header if name.startswith("Δ ")] == columns
        values = [TASKS[task][1][kind][metric] + 0.5 for metric in columns]
        assert moco[1 : 1 + len(columns)] == [f"{value:.1f} ± 0.7" for value in values]
        title, *of_rows = PUBLISHED[task]
        if kind == "bbox":
            assert not [name for name in header if "published" in name]
        else:
            assert [row[header.index(title)] for row in (supervised, moco)] == of_rows
    assert tables[0].problems == ()


def test_csv__the_metrics_of_a_task_come_first(task, tables):
    rows = list(csv.DictReader(io.StringIO(render_csv(tables))))
    for kind, columns in COLUMNS[task].items():
        names = [name for name in rows[0] if name.startswith(f"{kind}/")]
        assert names[: len(columns)] == [f"{kind}/{metric}" for metric in columns]
        for metric, value in TASKS[task][1][kind].items():
            assert float(rows[0][f"{kind}/{metric}"]) == value


def test_latex__columns_and_differences_below_the_means_of_wide_tables(task, tables):
    marks = {"bbox": "bb", "segm": "mk", "keypoints": "kp"}
    text = render_latex(tables)
    for kind, columns in COLUMNS[task].items():
        below = [f"_{{{metric[2:]}}}" if metric[2:] else "" for metric in columns]
        header = " & ".join(rf"AP$^\mathrm{{{marks[kind]}}}{part}$" for part in below)
        assert f"init & {header} & " in text
    stacked = (
        r"\begin{tabular}{@{}c@{}}66.5{\scriptsize\,$\pm$\,0.7}\\\scriptsize (0.0)\end{tabular}"
    )
    assert (stacked in text) == (task == "coco_keypoint_R_50_FPN_2x")
    assert (r"40.5\,$\pm$\,0.7 (0.0)" in text) == (not task.startswith("lvis"))


def test_page__columns_of_the_tables_and_of_every_run(task, tables):
    page = render_page(tables)
    for kind, columns in COLUMNS[task].items():
        name = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}[kind]
        transfer = page.split(f"<caption>Transfer, {name}</caption>")[1].split("</thead>")[0]
        assert [c for c in (*LVIS_COLUMNS, "APm", "APl") if f"<b>{c}</b>" in transfer] == columns
        runs = page.split("<caption>Every run</caption>")[1].split("</thead>")[0]
        for metric in columns:
            assert f"<b>{metric} {name}</b>" in runs
    assert ("bbox_by_frequency" in [panel.name for panel in table_panels(tables[0])]) == (
        "lvis" in task
    )


def test_metric_sentence__says_what_ap_means_for_each_kind(task, tables):
    text = render_markdown(tables)
    words = {"coco_keypoint": "OKS", "lvis": "rare, common", "cityscapes": "cityscapesscripts"}
    said = [name for name, word in words.items() if word in text]
    assert len(said) == 1 and task.startswith(said[0])
    assert ("Boxes: AP by COCO's rules" in text) == (not task.startswith("lvis"))


def test_table_panels__no_figure_of_a_thousand_classes(make_run, tmp_path):
    classes = {f"AP-{number}": 1.0 for number in range(1203)}
    make_run("m", metrics={"segm": OF_LVIS | classes})
    (table,) = build_tables(read_runs([tmp_path])[0])
    assert [panel.name for panel in table_panels(table)] == [
        "segm_curve", "loss_curve", "segm_by_size", "segm_by_frequency",
    ]  # fmt: skip


def test_published__frozen_bn_for_the_paper_and_tuned_bn_for_runs_that_tune_it():
    setting = setting_for_task("lvis_v0.5_R_50_FPN_2x", ["lvis_v0.5_val"])
    assert setting.row_for("supervised").values["segm/AP"] == 24.4
    assert setting.row_for("supervised", "lvis_v0.5_R_50_FPN_2x").values["segm/AP"] == 23.2
    assert setting.row_for("moco", "lvis_v0.5_R_50_FPN_2x").values["segm/AP"] == 24.1
    assert "frozen BN (24.4 / 37.8 / 25.8)" in setting.note
