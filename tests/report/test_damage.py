"""Damage of every kind in one run folder: the run is named or left alone, and all four forms of the
report are made of the rest.

Seen red under: no check below `weights` (a stamp that is a string); `$` drawn as a formula. Written
    against, and not tried: a metric of 400
digits accepted; an iteration of 400 digits in metrics.json; a lone surrogate written to a file; a
date that no calendar has in config.yaml; an empty list of test sets accepted; a name of 300 letters
made a file name.
"""

from __future__ import annotations

import copy
import itertools
import json

import pytest

from moco_transfer.report import build_tables, read_runs, render_csv, render_latex, render_markdown
from moco_transfer.report.html.page import render_page
from moco_transfer.report.html.plots import draw_panel, figure_bytes, figure_name, table_panels
from moco_transfer.report.pretraining import find_pretraining

NUMBERS = (7, -1, 0, 1e308, 10**400, float("nan"), float("inf"))
WRONG = (
    *NUMBERS,
    "text",
    ["list"],
    {"a": "table"},
    True,
    None,
    "",
    [],
    {},
    "\ud800",
    r"$\foo$",
    "x" * 300,
)
# Those of one line share a table, which is what takes time.
PLACES = (
    ("task",), ("config_hash",), ("engine",), ("norm",),
    ("metrics", "metrics.bbox", "metrics.bbox.AP"), ("init", "seed"),
    ("dataset", "dataset.test"), ("dataset.label_subset", "dataset.label_subset.sha256"),
    ("config", "iterations", "wall_sec", "world_size", "versions", "versions.torch", "git",
     "command", "last_losses", "dataset.train"),
    ("flags", "flags.forced", "flags.allow_partial", "weights", "weights.path", "weights.sha256",
     "weights.stamp", "weights.stamp.epoch", "weights.stamp.mechanism", "weights.coverage",
     "weights.coverage.missing"),
)  # fmt: skip


def _all_forms(folder):
    """Return Markdown, LaTeX, CSV and the page of all runs below a folder, encoded as files hold
    them.
    """
    records, problems = read_runs([folder])
    tables = build_tables(records)
    pretraining, faults = find_pretraining([folder], records)
    texts = [render_markdown(tables, problems), render_latex(tables, problems), render_csv(tables)]
    texts.append(
        render_page(tables, [*problems, *faults], pretraining=pretraining, folders=[folder])
    )
    assert all(text.encode("utf-8") for text in texts)
    return texts


@pytest.mark.parametrize("places", PLACES, ids=lambda places: places[0])
def test_report__a_wrong_value_anywhere_stops_no_table(make_run, results, tmp_path, places):
    make_run("good", "supervised", bbox={"AP": 12.0, "AP50": 34.0, "AP75": 56.0})
    for number, (place, value) in enumerate(itertools.product(places, WRONG)):
        *path, key = place.split(".")
        data = copy.deepcopy(
            results(
                "moco",
                number,
                weights={
                    "path": "m.pkl",
                    "sha256": "ab",
                    "stamp": {"mechanism": "moco"},
                    "coverage": {},
                },
            )
        )
        data["flags"] = {"allow_partial": True, "forced": []}
        data["dataset"]["label_subset"] = {"sha256": "cd" * 32}
        node = data
        for part in path:
            node = node[part]
        node[key] = value
        (tmp_path / f"bad_{number}").mkdir()
        (tmp_path / f"bad_{number}" / "results.json").write_text(json.dumps(data))
        records, problems = read_runs([tmp_path / f"bad_{number}"])
        assert len(records) + len(problems) == 1, "neither in the table nor named"
        render_markdown(build_tables(records), problems).encode()
    assert "| 12.0 | 34.0 | 56.0 |" in _all_forms(tmp_path)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": {"path": "a", "stamp": "moco"}},
            "key 'weights.stamp' is 'moco', expected a table",
        ),
        (
            {"weights": {"path": "a", "stamp": ["moco"]}},
            "key 'weights.stamp' is ['moco'], expected a table",
        ),
        (
            {"weights": {"path": "a", "coverage": []}},
            "key 'weights.coverage' is [], expected a table",
        ),
        ({"weights": {"path": 3}}, "key 'weights.path' is 3, expected a string"),
        ({"flags": {"forced": 1}}, "key 'flags.forced' is 1, expected a list"),
        (
            {"metrics": {"bbox": {"AP": 10**400}}},
            f"key 'metrics.bbox.AP' is {str(10**400)[:57]}..., expected a number",
        ),
        ({"wall_sec": float("inf")}, "key 'wall_sec' is inf, expected a number"),
        ({"dataset": {"test": []}}, "key 'dataset.test' is [], expected a list of names"),
        ({"dataset": {"test": ["a", "b"]}, "metrics": {}}, "'metrics' is empty"),
        ({"init": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_read_run__says_what_is_damaged(make_run, tmp_path, changes, message):
    make_run("a", **changes)
    (problem,) = read_runs([tmp_path])[1]
    assert message in problem.message and problem.message.endswith("; the run is left out.")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", f'{{"iteration": {10**400}, "total_loss": 1.0, "loss_rpn_cls": 1}}'),
        (
            "metrics.json",
            f'{{"iteration": 1, "total_loss": {10**400}}}\n{{"iteration": 2, "total_loss": 1e308}}',
        ),
        (
            "metrics.json",
            '{"iteration": NaN, "total_loss": 1.0}\n{"iteration": Infinity, "total_loss": 1.0}',
        ),
        ("metrics.json", '{"iteration": "1", "total_loss": "x"}\n[]\n3\n' + "[" * 100_000),
        ("config.yaml", "A: 2001-99-99\n"),
        ("config.yaml", "A: &a {B: *a}\n"),
        ("config.yaml", "SOLVER: text\n"),
        ("config.yaml", "? [a]\n: b\n"),
        ("env.txt", "\x00\x01 <script>"),
    ],
)
def test_report__damage_beside_the_results_stops_nothing(make_run, tmp_path, file, text):
    (make_run("a") / file).write_text(text)
    pretrain = tmp_path / "pretrain"
    pretrain.mkdir()
    (pretrain / "metrics.json").write_text(
        '{"iteration": 1, "loss": 2.0, "acc1": 3.0}\n' + (text if file == "metrics.json" else "")
    )
    (pretrain / "config.yaml").write_text(text if file == "config.yaml" else "")
    assert "| moco | 50.0 |" in _all_forms(tmp_path)[0]


@pytest.mark.parametrize(
    "name",
    [
        r"$\foo$",
        r"\$\foo$",
        "$",
        "$$",
        "$_$",
        "<b>&amp;",
        "a\nb",
        "_under",
        "\x01",
        "%",
        "猫",
        "x" * 300,
    ],
)
def test_images__of_names_that_hold_anything(make_run, tmp_path, name):
    for seed, init in itertools.product((0, 1), ("supervised", name)):
        bbox = {"AP": 10.0, "AP50": 20.0, "AP75": 5.0, f"AP-{name}": 10.0}
        make_run(
            f"{init == name}{seed}",
            init,
            seed,
            bbox=bbox,
            task=name,
            dataset={"train": [name], "test": [name]},
        )
    (table,) = build_tables(read_runs([tmp_path])[0])
    assert len(figure_name(table).encode()) < 200
    for panel in table_panels(table):
        svg = figure_bytes(draw_panel(panel, table)[0], "svg").decode()
        if name == r"$\foo$":
            assert name in svg  # letter by letter
    _all_forms(tmp_path)
