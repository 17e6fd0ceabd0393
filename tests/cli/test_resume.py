"""A run that was killed and resumed ends with the same bits as an uninterrupted one; two processes
end with equal weights.

Went red under: not restoring the optimiser; drawing crops from the global generator; leaving the
BN statistics of two processes as they are.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.cli.main import main

from .conftest import REPOSITORY, TINY_DETECTION, TINY_PRETRAIN, environment, words


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "moco_transfer.cli.main", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )


def kill_after_first_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    """SIGKILL as soon as there is something to resume from, wherever the run is then."""
    deadline = time.time() + 120
    while not (folder / "last_checkpoint").exists() and time.time() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_pretrain__sigkill_and_resume_is_bit_equal(pool, tmp_path, capsys):
    common = ["pretrain", "--config-file", "demo_moco"]
    whole = words(TINY_PRETRAIN, DATA__ROOT=pool, OUTPUT_DIR=tmp_path / "whole")
    assert main([*common, *whole]) == 0
    each = {"TRAIN__CHECKPOINT_PERIOD_ITERS": 1}
    cut = words(TINY_PRETRAIN, DATA__ROOT=pool, OUTPUT_DIR=tmp_path / "cut", **each)
    kill_after_first_checkpoint(start(*common, *cut), tmp_path / "cut")
    assert main([*common, *cut]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*common, "--resume", *cut]) == 0
    assert "resumed from" in (tmp_path / "cut" / "log.txt").read_text()
    a, b = (
        torch.load(tmp_path / n / "checkpoint_0002.pth", weights_only=True)
        for n in ("whole", "cut")
    )
    assert_same_bits(a["state_dict"], b["state_dict"])
    assert a["iteration"] == b["iteration"] == 6
    for mine, theirs in zip(
        a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
    # and the log of measurements has each iteration once
    iterations = [
        line.split(",")[0] for line in (tmp_path / "cut" / "metrics.json").read_text().splitlines()
    ]
    assert iterations == [f'{{"iteration": {i}' for i in range(1, 7)]


def detection_words(scenes: Path, folder: Path, **more: object) -> list[str]:
    flags = []
    for split in ("train", "test"):
        flags += ["--dataset", f"demo_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}"]
    return [
        "train",
        "--config-file",
        "demo_R_18_FPN",
        "--engine",
        "torchvision",
        *flags,
        *words(TINY_DETECTION, OUTPUT_DIR=folder, **more),
    ]


def test_train__sigkill_and_resume_is_bit_equal(scenes, tmp_path):
    assert main(detection_words(scenes, tmp_path / "whole")) == 0
    cut = detection_words(scenes, tmp_path / "cut")
    kill_after_first_checkpoint(start(*cut), tmp_path / "cut")
    assert main([*cut[:3], "--resume", *cut[3:]]) == 0
    a, b = (
        torch.load(tmp_path / n / "checkpoint_0000006.pth", weights_only=True)
        for n in ("whole", "cut")
    )
    assert_same_bits(a["model"], b["model"])
    assert (tmp_path / "cut" / "results.json").exists()


def test_train__sigkill_and_resume_of_segmentation_is_bit_equal(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        for part, shape in (("images", (48, 40, 3)), ("labels", (48, 40))):
            (tmp_path / part).mkdir(exist_ok=True)
            pixels = rng.integers(0, 256 if part == "images" else 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    flag = f"beaches=semantic:{tmp_path / 'images'}:{tmp_path / 'labels'}:sky,sea,sand"
    start_of = ["train", "--config-file", "voc_R_18_FCN_small", "--engine", "torchvision"]
    settings = {key: value for key, value in TINY_DETECTION.items() if "MODEL" not in key}
    settings |= {
        "DATASETS.TRAIN": "beaches",
        "DATASETS.TEST": "beaches",
        "INPUT.CROP.SIZE": "33,33",
    }
    settings |= {"INPUT.MIN_SIZE_TRAIN": "32,64", "SOLVER.CHECKPOINT_PERIOD": "1"}
    settings["SOLVER.BASE_LR"] = "0.005"

    def of(folder: Path) -> list[str]:
        return [*start_of, "--dataset", flag, *words(settings, OUTPUT_DIR=folder)]

    assert main(of(tmp_path / "whole")) == 0
    kill_after_first_checkpoint(start(*of(tmp_path / "cut")), tmp_path / "cut")
    assert main(["train", "--resume", *of(tmp_path / "cut")[1:]]) == 0
    a, b = (
        torch.load(tmp_path / n / "checkpoint_0000006.pth", weights_only=True)
        for n in ("whole", "cut")
    )
    assert_same_bits(a["model"], b["model"])
    assert a["iteration"] == b["iteration"] == 6
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "cut")]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_pretrain__a_signal_saves_first(pool, tmp_path, signum):
    settings = TINY_PRETRAIN | {"SOLVER.EPOCHS": "200", "TRAIN.CHECKPOINT_PERIOD_EPOCHS": "100"}
    process = start(
        "pretrain",
        "--config-file",
        "demo_moco",
        *words(settings, DATA__ROOT=pool, OUTPUT_DIR=tmp_path / "run"),
    )
    deadline = time.time() + 120
    while (
        not (tmp_path / "run" / "metrics.json").exists()
        or not (tmp_path / "run" / "metrics.json").read_text()
    ):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(60) == 143
    assert (tmp_path / "run" / "last_checkpoint").exists()


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )


@pytest.mark.parametrize("kind", [pytest.param("pretrain", marks=pytest.mark.slow), "train"])
def test_two_processes__end_with_equal_weights(kind, pool, scenes, tmp_path):
    script = REPOSITORY / "tests" / "cli" / "two_processes.py"
    if kind == "pretrain":
        done = torchrun(
            script, kind, "demo_moco", *words(TINY_PRETRAIN, DATA__ROOT=pool, OUTPUT_DIR=tmp_path)
        )
    else:
        flag = f"own=voc:{scenes}:train:{scenes / 'classes.txt'}"
        settings = words(
            TINY_DETECTION, OUTPUT_DIR=tmp_path, DATASETS__TRAIN="own", DATASETS__TEST="own"
        )
        done = torchrun(script, kind, "demo_R_18_FPN", flag, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "EQUAL" in done.stdout
    assert os.path.exists(tmp_path / "metrics.json")
