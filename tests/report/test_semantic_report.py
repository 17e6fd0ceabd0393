"""Tables, page and intervals of semantic segmentation.

The interval is held against a plain bootstrap, which adds the confusion matrices of drawn images.
Seen red under: AP asked for in place of mIoU (no p, no curve, none kept); a run's own order of
images; the confusions' axes exchanged; fwIoU as a column.
"""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from semantic_runs import CLASSES, FILE, TASK, TEST_SET, plain_metrics, write_runs

from moco_transfer.report import (
    bootstrap,
    build_tables,
    read_runs,
    render_csv,
    render_latex,
    render_markdown,
    setting_for_task,
)
from moco_transfer.report.bootstrap import with_intervals
from moco_transfer.report.html.confusions import confusion_panels
from moco_transfer.report.html.page import render_page
from moco_transfer.report.html.plots import draw_panel, table_panels
from moco_transfer.report.keep import keep_records


@pytest.fixture
def runs(make_run):
    """Write the runs; return their matrices by row and seed."""
    return write_runs(make_run)


@pytest.fixture
def table(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_SAMPLES", 40)
    (table,) = with_intervals(build_tables(read_runs([tmp_path])[0]))
    assert table.problems == ()
    return table


def _grid(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_markdown__mean_std_difference_interval_and_published(runs, table):
    header, _, random, supervised, moco = _grid(render_markdown([table]))
    assert [name for name in header if name[0] in "mp"][:3] == ["mIoU", "mACC", "pACC"]
    for metric in ("mIoU", "mACC", "pACC"):
        values = [plain_metrics(runs["moco", seed])[metric] for seed in range(3)]
        mean, std = np.mean(values), np.std(values, ddof=1)
        assert moco[header.index(metric)] == f"{mean:.1f} ± {std:.1f}"
        base = np.mean([plain_metrics(runs["supervised", seed])[metric] for seed in range(3)])
        assert moco[header.index(f"Δ {metric}")].strip("*") == f"{mean - base:+.1f}"
    assert "(n=3)" in moco[header.index("p (mIoU)")]
    assert " to " in moco[header.index("95% CI (mIoU)")]
    published = header.index("published mIoU")
    assert [row[published] for row in (random, supervised, moco)] == ["39.5", "74.4", "72.5"]
    text = render_markdown([table])
    assert "1 of the 5 classes (sheep) have no labelled pixel" in text and "AP" not in text


@pytest.mark.parametrize("seeds", [[0, 1, 2]])
def test_interval__is_that_of_a_plain_bootstrap(seeds, runs, table):
    random = np.random.RandomState(0)
    gaps = []
    for _ in range(40):
        drawn = random.randint(0, 30, 30)
        mean = {
            init: np.mean([plain_metrics([runs[init, s][n] for n in drawn])["mIoU"] for s in seeds])
            for init in ("supervised", "moco")
        }
        gaps.append(mean["moco"] - mean["supervised"])
    interval = table.intervals["moco", "sem_seg"]
    assert (interval.n, interval.num_images) == (3, 30)
    expected = np.percentile(gaps, [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx(expected, abs=2e-4)


def test_interval__a_file_of_another_run_is_named(runs, tmp_path):
    (tmp_path / "moco_1" / FILE).write_bytes((tmp_path / "random_1" / FILE).read_bytes())
    (table,) = with_intervals(build_tables(read_runs([tmp_path])[0]))
    (problem,) = table.problems
    assert "sem_seg mIoU" in str(problem) and "moco_1" in str(problem)
    assert table.intervals["moco", "sem_seg"].n == 2


def test_csv__has_every_metric_in_full_precision(runs, table):
    rows = list(csv.DictReader(io.StringIO(render_csv([table]))))
    names = [name for name in rows[0] if name.startswith("sem_seg/")]
    assert names[:3] == ["sem_seg/mIoU", "sem_seg/mACC", "sem_seg/pACC"]
    for row in rows:
        expected = plain_metrics(runs[row["init"], int(row["seed"])])
        assert {n.split("/")[1]: float(row[n]) for n in names} == expected


def test_latex__columns(table):
    text = render_latex([table])
    assert "init & mIoU & mACC & pACC & published & $n$" in text
    assert "Differences in mIoU: random" in text and r"segmentation 95\% CI" in text


def test_page__iou_by_class_and_what_pixels_are_taken_for(runs, table):
    panels = {panel.name: panel for panel in table_panels(table)}
    assert [*panels] == ["sem_seg_curve", "loss_curve", "sem_seg_by_class"]
    axis = draw_panel(panels["sem_seg_by_class"])[0].axes[0]
    shown = [tick.get_text() for tick in axis.get_yticklabels()]
    assert sorted(shown) == sorted(CLASSES[:-1])
    curve = draw_panel(panels["sem_seg_curve"])[0].axes[0].get_lines()[0].get_xydata()
    assert curve[0].tolist() == [9999, 20.5] and curve[-1][0] == 30000
    confusion = confusion_panels(table)
    assert len(confusion) == 3
    axis = draw_panel(confusion[1])[0].axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert sorted(names) == sorted(CLASSES) and axis.get_xlabel() == "predicted"
    mean = sum(sum(runs["supervised", seed]) for seed in range(3))
    shares = {(names[round(t._y)], names[round(t._x)]): t.get_text() for t in axis.texts}
    for true, predicted in np.ndindex(4, 4):
        share = 100 * mean[true, predicted] / mean[true].sum()
        assert shares.get((CLASSES[true], CLASSES[predicted]), "0") == f"{share:.0f}"
    page = render_page([table])
    assert "<caption>Transfer, semantic segmentation</caption>" in page
    assert "IoU of semantic segmentation by class" in page
    assert "score of 0.5" not in page and "TIDE" not in page


def test_keep__copies_give_the_same_table(table, tmp_path):
    records, _ = read_runs([tmp_path])
    keep_records(records, [], tmp_path / "kept")
    (again,) = with_intervals(build_tables(read_runs([tmp_path / "kept"])[0]))
    assert _grid(render_markdown([again])) == _grid(render_markdown([table]))
    kept = (tmp_path / "kept" / TASK / "moco_seed0" / "metrics.json").read_text()
    assert [json.loads(line).get("sem_seg/mIoU") for line in kept.splitlines()] == [None, 20.5]


def test_unfinished__is_named(runs, tmp_path):
    (tmp_path / "moco_1" / "results.json").unlink()
    _, (problem,) = read_runs([tmp_path])
    assert "moco_1" in problem.path and "last logged iteration 9999" in problem.message


def test_published__of_the_papers_two_tasks():
    voc = setting_for_task(TASK, [TEST_SET])
    city = setting_for_task("cityscapes_R_50_FCN_d6_90k_msra", ["cityscapes_fine_sem_seg_val"])
    inits = ("random", "supervised", "moco", "moco_ig1b")
    found = [[s.row_for(init).values["sem_seg/mIoU"] for init in inits] for s in (voc, city)]
    assert found == [[39.5, 74.4, 72.5, 73.6], [65.3, 74.6, 75.3, 75.5]]
    assert (voc.iterations, city.iterations, voc.batch, city.batch) == (30000, 90000, 16, 16)
