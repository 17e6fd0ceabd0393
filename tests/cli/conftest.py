"""Small images and a way to run the program as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from generated_images import write_pool, write_voc_scenes

REPOSITORY = Path(__file__).resolve().parents[2]

# A run of seconds: eight images an iteration, 32 px, three iterations an epoch, one checkpoint.
TINY_PRETRAIN = {
    "DATA.IMAGE_SIZE": "32",
    "DATA.BATCH_SIZE_TOTAL": "8",
    "DATA.NUM_WORKERS": "0",
    "MOCO.QUEUE_SIZE": "20",
    "MOCO.BN_GROUP_SIZE": "4",
    "SOLVER.EPOCHS": "2",
    "TRAIN.LOG_PERIOD": "1",
    "TRAIN.PRECISION": "fp32",
}
TINY_DETECTION = {
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.BASE_LR": "0.015",
    "SOLVER.MAX_ITER": "6",
    "SOLVER.STEPS": "4",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.PRECISE_BN.NUM_ITER": "2",
    "INPUT.MIN_SIZE_TRAIN": "64",
    "INPUT.MIN_SIZE_TEST": "64",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "SEED": "0",
}


def words(settings: dict[str, str], **more: object) -> list[str]:
    """Return KEY VALUE words; keyword arguments have __ for the dot."""
    merged = settings | {key.replace("__", "."): str(value) for key, value in more.items()}
    return [word for pair in merged.items() for word in pair]


def environment(first: str | None = None) -> dict[str, str]:
    """Return the environment of a user's shell, with this source tree importable and one thread a
    process.

    What was importable stays so (Detectron2 may have come with PYTHONPATH and not with an
    installation), behind the folder ``first``.
    """
    path = os.pathsep.join(filter(None, [first, str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def moco_transfer(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``moco-transfer …`` in a process of its own."""
    command = [sys.executable, "-m", "moco_transfer.cli.main", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment()
    )


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> Path:
    """24 generated images in class folders."""
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, count=24, size=40, seed=0)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Six training and three test scenes in VOC's layout."""
    folder = tmp_path_factory.mktemp("scenes")
    write_voc_scenes(folder, splits={"train": 6, "test": 3}, size=64, seed=0)
    return folder
