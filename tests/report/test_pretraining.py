"""Pre-training runs: which folders are some, what is drawn of them.

Seen red under: detectors and tests of features taken for pre-training; a record shown beside its
    run; a
first line of the kNN monitor not expected; the chance line left out.
"""

from __future__ import annotations

import json

import pytest

from moco_transfer.report import read_runs
from moco_transfer.report.html.plots import draw_panel, figure_bytes, pretraining_panels
from moco_transfer.report.pretraining import find_pretraining

MOCO = {
    "loss": 5.0,
    "chance": 5.5,
    "contrast_acc1": 20.0,
    "cos_positive": 0.8,
    "cos_negative": 0.1,
    "feature_spread": 0.9,
    "lr": 0.1,
}


@pytest.fixture
def make_pretraining(tmp_path):
    """Return a function that writes a pre-training folder below ``tmp_path``."""

    def make(
        name, *rows, config="MECHANISM: moco\nMODEL:\n  ARCH: resnet18\nSOLVER:\n  EPOCHS: 3\n"
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if config:
            (folder / "config.yaml").write_text(config)
        return folder

    return make


def _moco(*iterations, **changes):
    return [{"iteration": i, **MOCO, **changes} for i in iterations]


def test_find_pretraining__tells_it_from_everything_else(make_pretraining, make_run, tmp_path):
    made = make_pretraining("deep/moco", {"iteration": 3, "knn_top1": 40.0}, *_moco(5, 10))
    make_pretraining("supervised", {"iteration": 10, "loss": 6.0, "acc1": 1.0}, config="")
    make_pretraining(
        "detector",
        {"iteration": 5, "bbox/AP": 1.0},
        {"iteration": 20, "total_loss": 1.0, "loss_rpn_cls": 0.5},
    )
    linear = make_pretraining("linear", {"iteration": 5, "loss": 1.0, "acc1": 1.0})
    (linear / "results.json").write_text('{"schema": "moco_transfer.linear/1"}')
    make_pretraining(".hidden", *_moco(5))
    make_pretraining("something_else", {"iteration": 5, "loss": 1.0})
    make_pretraining("empty")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/metrics.json").write_bytes(b"\xff\x00")
    make_run("run", "moco", 0, weights={"path": str(made / "../moco/backbone.pkl")})
    runs, problems = find_pretraining([tmp_path], read_runs([tmp_path / "run"])[0])
    assert problems == []
    assert [
        (run.folder, run.mechanism, run.arch, run.epochs, run.iterations, run.inits) for run in runs
    ] == [
        (str(tmp_path / "deep/moco"), "moco", "resnet18", 3, 10, ("moco",)),
        (str(tmp_path / "supervised"), "", "", None, 10, ()),
    ]
    assert runs[0].series["knn_top1"] == [(3.0, 40.0)]
    assert runs[0].series["loss"] == [(5.0, 5.0), (10.0, 5.0)]


def test_find_pretraining__follows_the_weights(make_pretraining, make_run, tmp_path):
    make_pretraining("elsewhere/moco", *_moco(5))
    make_run(
        "runs/a", "moco_v2", 0, weights={"path": str(tmp_path / "elsewhere/moco/backbone.pkl")}
    )
    make_run("runs/b", "gone", 0, weights={"path": str(tmp_path / "nowhere/backbone.pkl")})
    runs, problems = find_pretraining([tmp_path / "runs"], read_runs([tmp_path / "runs"])[0])
    assert [(run.folder, run.inits) for run in runs] == [
        (str(tmp_path / "elsewhere/moco"), ("moco_v2",))
    ]
    assert problems == []


def test_find_pretraining__a_record_beside_its_run_is_one(make_pretraining, make_run, tmp_path):
    make_pretraining("out/moco", *_moco(5), {"iteration": 10, **MOCO, "loss": 4.123456})
    make_pretraining("out/other", *_moco(5), {"iteration": 10, **MOCO, "loss": 4.2})
    make_pretraining("docs/pretrain/moco", {"iteration": 10, **MOCO, "loss": 4.12346})
    for name in ("moco", "other"):
        make_run(
            f"docs/{name}_seed0",
            name,
            0,
            weights={"path": str(tmp_path / f"out/{name}/backbone.pkl")},
        )
    runs, _ = find_pretraining([tmp_path / "docs"], read_runs([tmp_path / "docs"])[0])
    assert [run.folder for run in runs] == [
        str(tmp_path / "docs/pretrain/moco"),
        str(tmp_path / "out/other"),
    ]


def test_find_pretraining__names_damaged_lines(make_pretraining, tmp_path):
    folder = make_pretraining("moco", *_moco(5), config="[not: a table")
    with open(folder / "metrics.json", "a") as file:
        file.write('{"iteration": 10, "lo')
    (run,), (problem,) = find_pretraining([tmp_path])
    assert (run.iterations, run.mechanism) == (5, "")
    assert str(problem) == f"{folder / 'metrics.json'}: 1 damaged lines are left out of the curve."


def test_pretraining_panels__what_the_run_logged(make_pretraining, tmp_path):
    make_pretraining("a_moco", *_moco(5, 10), {"iteration": 10, "knn_top1": 41.0})
    make_pretraining(
        "b_supervised",
        {"iteration": 10, "loss": 6.0, "acc1": 1.0},
        {"iteration": 20, "loss": 5.0, "acc1": 2.0},
    )
    moco, supervised = find_pretraining([tmp_path])[0]
    assert [panel.name for panel in pretraining_panels(moco)] == [
        "loss_curve",
        "cosine_curve",
        "contrast_acc1_curve",
        "knn_top1_curve",
    ]
    assert [panel.name for panel in pretraining_panels(supervised)] == ["loss_curve", "acc1_curve"]
    figures = [draw_panel(panel)[0] for panel in pretraining_panels(moco)]
    loss, cosines, accuracy, knn = (figure.axes[0] for figure in figures)
    assert [list(line.get_ydata()) for line in loss.lines] == [
        [5.0, 5.0],
        [5.5, 5.5],
    ]  # the loss, and chance
    assert {
        text.get_text(): list(line.get_ydata())
        for text, line in zip(cosines.get_legend().get_texts(), cosines.lines, strict=True)
    } == {"positives": [0.8, 0.8], "negatives": [0.1, 0.1]}
    assert [list(line.get_ydata()) for line in (accuracy.lines[0], knn.lines[0])] == [
        [20.0, 20.0],
        [41.0],
    ]
    assert len({line.get_linestyle() for line in cosines.lines}) == 2  # told apart in grey
    assert b"mean cosine" in figure_bytes(figures[1], "svg")
