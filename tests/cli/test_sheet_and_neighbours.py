"""The images that a report embeds, as a user makes them: sheet, neighbours, and the page with
both.

Seen red under: the run of another seed taken; a run's recorded data set not looked up; images
    where the page does not look;
places among the readable images taken for places in the folder.
"""

from __future__ import annotations

import json

import pytest

from moco_transfer.cli.main import main

from .conftest import TINY_PRETRAIN, words


@pytest.fixture(scope="module")
def trained(scenes, pool, tmp_path_factory):
    """A folder with a pre-training run, and what detectors of two seeds of one row and one of
    another would leave behind.
    """
    folder = tmp_path_factory.mktemp("trained")
    settings = TINY_PRETRAIN | {"SOLVER.EPOCHS": "1", "TRAIN.CHECKPOINT_PERIOD_ITERS": "0"}
    assert (
        main(
            [
                "pretrain",
                "--config-file",
                "demo_moco",
                *words(settings, DATA__ROOT=pool, OUTPUT_DIR=folder / "moco"),
            ]
        )
        == 0
    )
    for init, seed in (("random", 0), ("random", 1), ("other", 1)):
        run = folder / f"runs/{init}_{seed}"
        run.mkdir(parents=True)
        flag = f"sheet_test=voc:{scenes}:test:{scenes / 'classes.txt'}"
        record = {
            "schema": 1, "task": "demo_R_18_FPN", "config_hash": "0123456789ab", "engine": "torchvision", "init": init, "seed": seed, "norm": "BN",
            "metrics": {"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": 0.5}}, "iterations": 1, "dataset": {"test": ["sheet_test"]},
            "command": f"moco-transfer train --init {init} --dataset {flag} OUTPUT_DIR {run}",
        }  # fmt: skip
        (run / "results.json").write_text(json.dumps(record))
        found = [
            {
                "image_id": f"test_000{i}",
                "category_id": i,
                "bbox": [9.0, 9.0, 20.0, 20.0],
                "score": 0.5,
            }
            for i in range(3)
        ]
        (run / "predictions_sheet_test.json").write_text(json.dumps(found))
    return folder


def test_sheet__takes_the_lowest_common_seed_and_the_recorded_data_set(trained, capsys):
    assert main(["sheet", str(trained / "runs")]) == 0
    said = capsys.readouterr().out
    assert "3 images of sheet_test; random seed 1, other seed 1." in said
    (png,) = (trained / "runs").glob("detections_*.png")
    assert str(png) in said and png.with_suffix(".svg").exists()


def test_neighbours__lie_beside_the_checkpoint_and_in_the_page(trained, pool, capsys):
    checkpoint = trained / "moco/checkpoint_0001.pth"
    assert (
        main(
            [
                "neighbours",
                str(checkpoint),
                "--data",
                str(pool),
                "--queries",
                "3",
                "--k",
                "2",
                "--workers",
                "0",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "3 queries, the 2 nearest of 24 images by trunk features." in said
    assert "of 6 neighbours are of their query's class." in said
    main(["sheet", str(trained / "runs")])
    capsys.readouterr()
    assert main(["report", str(trained), "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert page.count("data:image/svg+xml;base64,") == 2
    assert f"Run folder {trained / 'moco'}" in page
    assert "--init other --dataset sheet_test=voc:" in page


def test_neighbours__leaves_out_what_cannot_be_read(trained, pool, tmp_path, capsys):
    for i, file in enumerate(sorted(pool.rglob("*.jpg"))[:3]):
        (tmp_path / f"image_{i}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "a_broken.jpg").write_bytes(b"no image")
    words = [
        "--data",
        str(tmp_path),
        "--k",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "drawn"),
    ]
    assert main(["neighbours", str(trained / "moco/checkpoint_0001.pth"), *words]) == 0
    assert "3 queries, the 2 nearest of 3 images" in capsys.readouterr().out
    text = (tmp_path / "drawn/neighbours.svg").read_text(encoding="utf-8")
    assert all(f">image_{i}.jpg<" in text for i in range(3)) and "broken" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sheet", "{runs}", "--seed", "7"],
            "no run with seed 7 is in the table; it has seeds [0, 1].",
        ),
        (["sheet", "{runs}", "--images", "nothing"], "has no image 'nothing' to show; it has 3."),
        (["sheet", "{runs}", "--num-images", "0"], "--num-images must be at least 1, got 0."),
        (["sheet", "{runs}/gone"], "gone does not exist; expected a run folder"),
        (
            [
                "neighbours",
                "{moco}/checkpoint_0001.pth",
                "--data",
                "{pool}",
                "--k",
                "24",
                "--workers",
                "0",
            ],
            "24 neighbours were asked for",
        ),
        (
            ["neighbours", "{moco}/checkpoint_0001.pth", "--data", "{pool}", "--k", "0"],
            "--k must be at least 1, got 0.",
        ),
        (["neighbours", "{moco}/none.pth", "--data", "{pool}"], "none.pth does not exist"),
    ],
)
def test_refuses_in_one_sentence(trained, pool, capsys, words, message):
    words = [word.format(runs=trained / "runs", moco=trained / "moco", pool=pool) for word in words]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_sheet__names_a_run_without_predictions(trained, capsys, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("random_1", "other_1"):
        (runs / name).mkdir()
        (runs / name / "results.json").write_text(
            (trained / "runs" / name / "results.json").read_text()
        )
    assert main(["sheet", str(runs)]) == 2
    assert "No run has predictions_sheet_test.json" in capsys.readouterr().err
