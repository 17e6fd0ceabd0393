"""A matrix that takes seconds: generated scenes, a detector of 64 px, and runs in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for cli.conftest

from cli.conftest import TINY_DETECTION, scenes, words  # noqa: E402, F401
from report.conftest import results  # noqa: E402, F401

from moco_transfer.benchmark.launch import LaunchSettings  # noqa: E402
from moco_transfer.cli.main import main  # noqa: E402
from moco_transfer.convert import convert_checkpoint  # noqa: E402

TINY = words({key: value for key, value in TINY_DETECTION.items() if key != "SEED"})


class InThisProcess:
    """A launcher that runs `train` at once, where it is asked to start it."""

    lanes, outlives_benchmark = 1, False

    def start(self, command, folder, lane):
        """Run a command and return a job that has ended."""
        status = main(command[command.index("train") :])
        return SimpleNamespace(poll=lambda: status)


@pytest.fixture(scope="session")
def benchmark():
    """Return a function that runs the verb with runs in this process and returns its status."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LaunchSettings, "make", lambda self, output, **more: InThisProcess())
            patch.setattr("moco_transfer.benchmark.run._POLL_SEC", 0.0)
            return main(["benchmark", *map(str, arguments)])

    return run


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
    words = ["--tasks", "demo_R_18_FPN", "--init", "random", "--init", f"supervised={backbone}"]
    for split in ("train", "test"):
        words += ["--dataset", f"scenes_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}"]
    return [*words, "DATASETS.TRAIN", "scenes_train", "DATASETS.TEST", "scenes_test", *TINY]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, matrix_words, benchmark) -> Path:
    """An uninterrupted matrix of two rows with one seed."""
    output = tmp_path_factory.mktemp("whole") / "runs"
    assert benchmark("--output", output, *matrix_words) == 0
    return output
