"""The sheet of detections, as a user makes it.

Seen red under: the run of another seed taken; a run's recorded data set not looked up; images
    where the page does not look;
places among the readable images taken for places in the folder.
"""

from __future__ import annotations

import json

import pytest

from moco_transfer.cli.main import main


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """What detectors of two seeds of one row and one of another leave behind."""
    folder = tmp_path_factory.mktemp("trained")
    for init, seed in (("random", 0), ("random", 1), ("other", 1)):
        run = folder / f"runs/{init}_{seed}"
        run.mkdir(parents=True)
        flag = f"sheet_test=voc:{scenes}:test:{scenes / 'classes.txt'}"
        record = {
            "schema": 1, "task": "demo_R_18_FPN", "config_hash": "0123456789ab",
            "engine": "torchvision", "init": init, "seed": seed, "norm": "BN", "iterations": 1,
            "metrics": {"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": 0.5}},
            "dataset": {"test": ["sheet_test"]},
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sheet", "{runs}", "--images", "nothing"], "has no image 'nothing' to show; it has 3."),
        (["sheet", "{runs}/gone"], "gone does not exist; expected a run folder"),
    ],
)
def test_refuses_in_one_sentence(trained, capsys, words, message):
    words = [word.format(runs=trained / "runs") for word in words]
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
