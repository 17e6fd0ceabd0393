"""A matrix that takes seconds: generated scenes, a detector of 64 px."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for cli.conftest

from cli.conftest import TINY_DETECTION, scenes, words  # noqa: E402, F401
from report.conftest import results  # noqa: E402, F401

from moco_transfer.convert import convert_checkpoint  # noqa: E402


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A converted ResNet-18 of random weights that says it is supervised."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18-00000000.pth")
    convert_checkpoint(folder / "resnet18-00000000.pth", folder / "supervised.pkl")
    return folder / "supervised.pkl"


@pytest.fixture(scope="session")
def matrix_words(scenes, backbone) -> list[str]:  # noqa: F811
    """The options of a benchmark of two rows, without --output."""
    names = ["DATASETS.TRAIN", "scenes_train", "DATASETS.TEST", "scenes_test"]
    data = [
        w
        for s in ("train", "test")
        for w in ("--dataset", f"scenes_{s}=voc:{scenes}:{s}:{scenes / 'classes.txt'}")
    ]
    settings = {key: value for key, value in TINY_DETECTION.items() if key != "SEED"}
    rows = ["--init", "random", "--init", f"supervised={backbone}", "--seeds", "1"]
    return ["--tasks", "demo_R_18_FPN", *rows, *data, "--no-timing", *names, *words(settings)]
