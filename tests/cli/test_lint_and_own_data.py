"""The linter and data of one's own, as a user meets them: status 2 with everything at once, --force
recorded down to the table.

Seen red under: forced not recorded.
"""

from __future__ import annotations

import json

import pytest

from moco_transfer.cli.main import main

from .conftest import TINY_DETECTION, words


def train_words(scenes, folder, *options, **more) -> list[str]:
    flags = [
        w
        for split in ("train", "test")
        for w in ("--dataset", f"lint_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}")
    ]
    settings = words(
        TINY_DETECTION,
        DATASETS__TRAIN="lint_train",
        DATASETS__TEST="lint_test",
        OUTPUT_DIR=folder,
        **more,
    )
    return [
        "train",
        "--config-file",
        "demo_R_18_FPN",
        "--engine",
        "torchvision",
        *options,
        *flags,
        *settings,
    ]


FROZEN = {
    "MODEL__RESNETS__NORM": "FrozenBN",
    "MODEL__BACKBONE__FREEZE_AT": 2,
    "SOLVER__BASE_LR": 0.5,
}


def test_train__all_findings_at_once_and_nothing_written(scenes, tmp_path, capsys):
    assert main(train_words(scenes, tmp_path / "run", **FROZEN)) == 2
    said = capsys.readouterr().err.splitlines()
    assert "3 things to fix" in said[0]
    assert [line.strip().split(" ")[1] for line in said[1:4]] == [
        "frozen-norm:",
        "frozen-layers:",
        "batch-and-lr:",
    ]
    assert "Set SOLVER.BASE_LR 0.015" in said[3] and "--force" in said[4]
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def forced_run(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forced") / "run"
    one_iteration = {"SOLVER__MAX_ITER": 1, "SOLVER__STEPS": "1", "SOLVER__WARMUP_ITERS": 0}
    assert (
        main(
            train_words(
                scenes, folder, "--force", **(FROZEN | {"SOLVER__BASE_LR": 0.015} | one_iteration)
            )
        )
        == 0
    )
    return folder


def test_train__force_is_recorded_and_marks_the_table(forced_run, capsys):
    record = json.loads((forced_run / "results.json").read_text())
    assert record["flags"]["forced"] == ["frozen-norm", "frozen-layers"]
    assert (record["weights"]["kind"], record["init"]) == ("random", "random")
    assert record["command"].startswith(
        "moco-transfer train --config-file demo_R_18_FPN --engine torchvision --force --dataset"
        " lint_train=voc:"
    )
    log = (forced_run / "log.txt").read_text()
    assert "--force overrules frozen-norm: MODEL.RESNETS.NORM is 'FrozenBN'" in log
    assert "for 1 process with 2 images each: batch 2, lr 0.015, iterations 1," in log
    assert main(["report", str(forced_run)]) == 0
    assert "overruled a check of the config (frozen-norm, frozen-layers)" in capsys.readouterr().out


def test_train__class_names_travel_with_the_run(forced_run, scenes, tmp_path, capsys):
    names = (scenes / "classes.txt").read_text().split()
    assert json.loads((forced_run / "results.json").read_text())["dataset"]["classes"] == names
    image = sorted((scenes / "JPEGImages").glob("test_*.jpg"))[0]
    assert (
        main(
            [
                "predict",
                str(forced_run),
                str(image),
                "--output",
                str(tmp_path / "drawn"),
                "--threshold",
                "0.0",
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert record["classes"] == names and len(record["images"]) == 1


def test_train__number_of_classes_is_the_datas_unless_the_user_wrote_one(scenes, tmp_path, capsys):
    def refused(*arguments):
        capsys.readouterr()
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    said = refused(*train_words(scenes, tmp_path / "run", MODEL__ROI_HEADS__NUM_CLASSES=5))
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 5, but data set 'lint_train' has 8 categories" in said
    mine = tmp_path / "mine.yaml"  # a file of the user's counts as much as the command line
    from moco_transfer.config import path

    mine.write_text(f"_BASE_: {path('demo_R_18_FPN')}\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: 5}}}}\n")
    arguments = train_words(scenes, tmp_path / "run")
    arguments[2] = str(mine)
    assert (
        "MODEL.ROI_HEADS.NUM_CLASSES is 5, but data set 'lint_train' has 8 categories"
        in refused(*arguments)
    )
    unused = [*train_words(scenes, tmp_path / "run"), "DATASETS.TRAIN", "voc_2007_trainval"]
    assert (
        "--dataset lint_train is named neither in DATASETS.TRAIN ['voc_2007_trainval'] nor in"
        " DATASETS.TEST" in refused(*unused)
    )
    assert "have no 'segmentation'" in refused(
        *train_words(scenes, tmp_path / "run", MODEL__MASK_ON=True)
    )
    assert not (tmp_path / "run").exists()
