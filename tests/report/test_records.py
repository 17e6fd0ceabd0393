"""Reading run folders: what is found, what is refused and with which words.

Seen red under: no check of `schema`; bool accepted as a seed; links not followed; cycles of links
    not ended; a run counted
once per path that leads to it; hidden folders read; RecursionError of deep JSON not caught; a
pre-training folder called unfinished; a run of several test sets not split.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from moco_transfer.report import Problem, read_run, read_runs


def test_read_runs__finds_runs_at_any_depth_in_order(make_run, tmp_path):
    make_run("b/deep/er", "random", 1)
    make_run("a", "moco", 0)
    make_run(".hidden/c", "moco", 7)
    records, problems = read_runs([tmp_path])
    assert [(run.init, run.seed) for run in records] == [("moco", 0), ("random", 1)]
    assert records[1].folder == str(tmp_path / "b/deep/er")
    assert problems == []


def test_read_runs__tests_of_features_are_no_rows(make_run, tmp_path):
    make_run("run")
    for kind in ("knn", "linear"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "results.json").write_text(
            json.dumps({"schema": f"moco_transfer.{kind}/1", "top1": 35.0})
        )
    records, problems = read_runs([tmp_path])
    assert len(records) == 1 and problems == []


def test_read_runs__reads_a_run_once(make_run, tmp_path):
    folder = make_run("a")
    (tmp_path / "link").symlink_to(folder)
    (folder / "loop").symlink_to(tmp_path)
    records, problems = read_runs([tmp_path, folder, folder / "results.json"])
    assert len(records) == 1
    assert problems == []


def test_read_runs__follows_links_to_folders(make_run, tmp_path):
    make_run("elsewhere/a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").symlink_to(tmp_path / "elsewhere/a")
    assert len(read_runs([tmp_path / "runs"])[0]) == 1


def test_read_run__keeps_what_the_file_says(make_run):
    (run,) = read_run(
        make_run("a", "moco", 3, metrics={"bbox": {"AP": 12.25, "APs": None}, "segm": {"AP": 11}})
        / "results.json"
    )
    assert (run.init, run.seed, run.engine, run.norm, run.iterations) == (
        "moco",
        3,
        "torchvision",
        "BN",
        100,
    )
    assert run.test_set == ("voc_2007_test",)
    assert run.value("bbox", "AP") == 12.25
    assert run.value("segm", "AP") == 11.0
    assert math.isnan(run.value("bbox", "APs"))
    assert run.value("bbox", "AR") is None


def test_read_runs__names_damaged_files_and_reads_the_rest(make_run, results, tmp_path):
    make_run("good")
    whole = json.dumps(results())
    for name, text in {
        "cut": whole[:200],
        "empty": "",
        "list": "[]",
        "binary": "\x00\x01",
        "deep": "[" * 100_000,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    records, problems = read_runs([tmp_path])
    assert len(records) == 1
    damaged = [
        str(tmp_path / name / "results.json") for name in ("binary", "cut", "deep", "empty", "list")
    ]
    assert [problem.path for problem in problems] == damaged
    assert all("left out" in problem.message for problem in problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"seed": "0"}, "key 'seed' is '0', expected an integer"),
        ({"seed": True}, "key 'seed' is True, expected an integer"),
        ({"init": None}, "key 'init' is None, expected a string"),
        ({"metrics": {}}, "'metrics' is empty"),
        ({"metrics": {"bbox": {}}}, "'metrics' is empty"),
        ({"metrics": {"bbox": 3.0}}, "'metrics.bbox' is 3.0"),
        ({"metrics": {"bbox": {"AP": "57"}}}, "'metrics.bbox.AP' is '57', expected a number"),
        ({"dataset": {"train": []}}, "no key 'dataset.test'"),
        (
            {"metrics": {"x": {"bbox": {}}, "y": 3}, "dataset": {"test": ["x", "y"]}},
            "'metrics' is empty",
        ),
        ({"flags": [1]}, "'flags' is [1], expected a table"),
        ({"wall_sec": "long"}, "'wall_sec' is 'long', expected a number"),
    ],
)
def test_read_run__says_what_is_wrong(make_run, changes, message):
    problem = read_run(make_run("a", **changes) / "results.json")
    assert isinstance(problem, Problem)
    assert message in problem.message


@pytest.mark.parametrize(
    "key",
    ["task", "config_hash", "engine", "init", "seed", "norm", "metrics", "iterations", "dataset"],
)
def test_read_run__names_a_missing_key(results, tmp_path, key):
    data = results()
    del data[key]
    (tmp_path / "results.json").write_text(json.dumps(data))
    assert f"has no key '{key}'" in read_run(tmp_path / "results.json").message


def test_read_run__splits_a_run_that_was_tested_on_several_sets(make_run):
    metrics = {"x_test": {"bbox": {"AP": 1.0}}, "y_test": {"bbox": {"AP": 2.0}}}
    file = (
        make_run("a", metrics=metrics, dataset={"train": ["x"], "test": ["x_test", "y_test"]})
        / "results.json"
    )
    assert [(run.test_set, run.value("bbox", "AP")) for run in read_run(file)] == [
        (("x_test",), 1.0),
        (("y_test",), 2.0),
    ]


def test_read_runs__names_unfinished_runs_but_no_pretraining(make_run, tmp_path):
    make_run("done")
    for name, key in {"unfinished": "loss_rpn_cls", "pretraining": "loss"}.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"iteration": iteration, key: 0.5}) for iteration in (19, 39)]
        (tmp_path / name / "metrics.json").write_text("\n".join(lines) + "\n")
    records, problems = read_runs([tmp_path])
    assert len(records) == 1
    assert [problem.path for problem in problems] == [str(tmp_path / "unfinished")]
    assert "last logged iteration 39" in problems[0].message
    # An evaluation before the first line of losses, and a last line that a kill cut off.
    (tmp_path / "unfinished/metrics.json").write_text(
        '{"iteration": 5, "bbox/AP": 1.0}\n{"iteration": 20, "loss_rpn_cls": 0.5}\n{"iterat'
    )
    assert [
        "last logged iteration 20" in problem.message for problem in read_runs([tmp_path])[1]
    ] == [True]


def test_read_runs__names_paths_without_runs(make_run, tmp_path):
    make_run("runs/a")
    (tmp_path / "empty").mkdir()
    _, problems = read_runs([tmp_path / "runs", tmp_path / "empty", tmp_path / "nowhere"])
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'empty'}: no results.json in it or below it.",
        f"{tmp_path / 'nowhere'}: does not exist.",
    ]


def test_read_runs__an_evaluation_repeated_below_its_run_claims_no_seed(make_run, tmp_path):
    """Seen red under: the records taken as they are."""
    run = make_run("a/moco0", "moco", 0)
    results = json.loads((run / "results.json").read_text())
    for name, test_set in (
        ("eval_again", results["dataset"]["test"]),
        ("eval_other", ["another_set"]),
    ):
        (run / name).mkdir()
        changed = results | {"dataset": results["dataset"] | {"test": test_set}}
        (run / name / "results.json").write_text(json.dumps(changed))
    records, problems = read_runs([tmp_path / "a"])
    assert [Path(record.folder).name for record in records] == [
        "moco0",
        "eval_other",
    ] and not problems
