"""Every trial as CSV: it reads back as the same numbers.

Seen red under: numbers written with one decimal; conflicting runs left out; metric columns
    unsorted.
"""

from __future__ import annotations

import csv
import io
import math

from moco_transfer.report import build_tables, read_runs, render_csv


def _trials(folder):
    records, problems = read_runs([folder])
    assert problems == []
    return records, list(csv.DictReader(io.StringIO(render_csv(build_tables(records)), newline="")))


def test_render_csv__reads_back_as_the_same_runs(make_run, tmp_path):
    make_run(
        "a",
        "random",
        0,
        bbox={"AP": 0.1 + 0.2, "AP50": 1 / 3, "AP75": float("nan"), "AP-dog": 12.0},
    )
    make_run(
        "b",
        'mo"co, one\ntwo',
        1,
        metrics={"bbox": {"AP": 5.0}, "segm": {"AP": 1e-17}},
        wall_sec=0.1,
        git=None,
    )
    make_run(
        "c", "random", 1, dataset={"train": ["x", "y"], "test": ["voc_2007_test", "voc_2012_val"]}
    )
    records, trials = _trials(tmp_path)
    assert len(trials) == len(records) == 3
    by_folder = {trial["folder"]: trial for trial in trials}
    for run in records:
        trial = by_folder[run.folder]
        for key in ("task", "init", "seed", "engine", "norm"):
            assert trial[key] == str(getattr(run, key))
        assert tuple(trial["test_set"].split("+")) == run.test_set
        assert float(trial["wall_sec"]) == run.wall_sec
        assert (trial["git"] or None) == run.git
        for column in (name for name in trial if "/" in name):
            kind, metric = column.split("/")
            value = run.value(kind, metric)
            assert (
                trial[column] == ""
                if value is None
                else math.isnan(value) or float(trial[column]) == value
            )
    assert by_folder[str(tmp_path / "a")]["bbox/AP75"] == "nan"


def test_render_csv__metric_columns_in_a_fixed_order(make_run, tmp_path):
    make_run("a", metrics={"segm": {"AP": 1.0}, "bbox": {"AP-dog": 1.0, "AP75": 1.0, "AP": 1.0}})
    make_run("b", seed=1, bbox={"AP50": 1.0, "APs": 2.0})
    _, trials = _trials(tmp_path)
    columns = [name for name in trials[0] if "/" in name]
    assert columns == ["bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/AP-dog", "bbox/APs", "segm/AP"]


def test_render_csv__keeps_conflicts_and_says_so(make_run, tmp_path):
    make_run("a", "moco", 0)
    make_run("b", "moco", 0)
    make_run("c", "moco", 1, weights={"path": "w"}, flags={"allow_partial": True})
    _, trials = _trials(tmp_path)
    assert [(trial["seed"], trial["status"]) for trial in trials] == [
        ("1", "averaged"),
        ("0", "conflict"),
        ("0", "conflict"),
    ]
    assert trials[0]["caveats"] == "started from partly covered weights (--allow-partial)"
