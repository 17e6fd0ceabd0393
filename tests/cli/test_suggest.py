"""`suggest` as a user meets it: the printed commands run as they are, bad input is one sentence.

Went red under: a finetune.yaml without the data's number of classes; a checkpoint's name by
iterations instead of epochs; the folder of --output made before the faults were found.
"""

from __future__ import annotations

import shlex
import shutil

import numpy as np
import pytest
from generated_images import CLASSES
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config, load_pretrain_config

from .test_bad_input import refused

SHORT = {
    **{"SOLVER.EPOCHS": "1", "DATA.NUM_WORKERS": "0", "DATALOADER.NUM_WORKERS": "0"},
    **{"finetune.SOLVER.MAX_ITER": "2", "INPUT.MIN_SIZE_TEST": "64"},
    **{"TEST.PRECISE_BN.NUM_ITER": "1", "finetune.SEED": "0"},
}


@pytest.fixture(autouse=True)
def no_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))


def flags(scenes) -> list[str]:
    classes = scenes / "classes.txt"
    splits = ("train", "test")
    return [w for s in splits for w in ("--dataset", f"sug_{s}=voc:{scenes}:{s}:{classes}")]


def suggested(capsys, *arguments: object) -> list[list[str]]:
    """Run `suggest` and return the commands that it prints."""
    capsys.readouterr()
    assert main(["suggest", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("moco-transfer ")]


def test_suggest__printed_commands_run(pool, scenes, tmp_path, capsys):
    out, own = tmp_path / "my out", [word for pair in SHORT.items() for word in pair]
    commands = suggested(
        capsys, pool, *own[:4], *flags(scenes), "--gpus", 0, *own[4:], "--output", out
    )
    assert [command[0] for command in commands] == ["pretrain", "convert", "train", "benchmark"]
    for command in commands[:3]:
        more = ["--engine", "torchvision"] if command[0] == "train" else []
        assert main([command[0], *more, *command[1:]]) == 0, command
    assert (out / "finetune" / "results.json").exists()
    assert main([commands[3][0], "--dry-run", *commands[3][1:]]) == 0
    pretrain, detect = load_pretrain_config(out / "pretrain.yaml"), out / "finetune.yaml"
    assert pretrain.SOLVER.EPOCHS == 1 and pretrain.DATA.IMAGE_SIZE == 32
    assert len(CLASSES) == load_detection_config(detect).MODEL.ROI_HEADS.NUM_CLASSES


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_suggest__configs_as_they_are_pass_a_dry_run(gpus, pool, scenes, tmp_path, capsys):
    images = tmp_path / "grey"
    for i in range(64):
        pixels = np.full((40, 50), i, np.uint8)
        (images / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(images / "deep" / f"{i}.png")
    out = tmp_path / "out"
    words = (images, "--gpus", gpus, *flags(scenes), "--output", out)
    pretrain, _, train, _ = suggested(capsys, *words)
    text = (out / "pretrain.yaml").read_text()
    assert "64 images grey, shorter side 40 px" in text
    on_cpu = ["TRAIN.DEVICE", "cpu", "TRAIN.PRECISION", "fp32"]
    assert main(["pretrain", "--dry-run", *pretrain[-2:], *on_cpu]) == 0
    words = train[train.index("--config-file") :]
    words[-1] = ""  # the backbone is not there yet
    assert main(["train", "--dry-run", "--engine", "torchvision", *words]) == 0
    assert (pretrain[1:3] == ["--num-gpus", "8"]) == (gpus == 8)


def test_suggest__without_annotations_and_with_a_planned_number(pool, tmp_path, capsys):
    commands = suggested(capsys, pool, "--images", 1_281_167, "--gpus", 8, "--output", tmp_path)
    assert [command[0] for command in commands] == ["pretrain", "convert"]
    assert load_pretrain_config(tmp_path / "pretrain.yaml").MOCO.QUEUE_SIZE == 65536
    assert not (tmp_path / "finetune.yaml").exists()


def test_suggest__prints_only_without_output(pool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suggested(capsys, pool)
    assert not list(tmp_path.iterdir())


def test_suggest__bad_input(pool, scenes, tmp_path, capsys):
    out, own = ("--output", tmp_path / "out"), flags(scenes)

    def says(*words):
        return refused(capsys, "suggest", *words, *out)

    assert "does not exist" in says(tmp_path / "nowhere")
    assert "is a key of both configs" in says(pool, "SOLVER.BASE_LR", "0.1")
    assert "Did you mean 'MOCO.QUEUE_SIZE'?" in says(pool, "MOCO.QUEUESIZE", "64")
    assert "must be a whole number" in says(pool, "MOCO.QUEUE_SIZE", "many")
    assert "in pairs KEY VALUE" in says(pool, "MOCO.QUEUE_SIZE")
    assert "more than the 24 images" in says(pool, "MOCO.QUEUE_SIZE", "4096")
    assert "no data set 'nothing'" in says(pool, "--dataset", "nothing")
    assert "is not understood" in says(pool, "--dataset", "a=voc")
    assert "different classes" in says(pool, *own[:2], "--dataset", f"b=voc:{scenes}:test:x")
    assert "above -1" in says(pool, "--gpus", "-1")
    images = tmp_path / "broken"
    shutil.copytree(pool, images)
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert "none of the images that were opened can be decoded" in says(images)
    assert not (tmp_path / "out").exists()
