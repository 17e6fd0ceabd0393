"""Runs the program on Detectron2 as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a user's shell, with one thread and this source tree importable.

    What was importable stays so: Detectron2 may have come with PYTHONPATH and not with an
        installation.
    """
    path = os.pathsep.join(
        [str(REPOSITORY), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def run_python(
    *arguments: object, timeout: float = 900, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own with :func:`environment`; Detectron2 fixes its data folder
    at import.
    """
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**more),
    )


TINY = {
    "DATASETS.TRAIN": "scenes_train",
    "DATASETS.TEST": "scenes_test",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.008,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.STEPS": "4",
    "SOLVER.WARMUP_ITERS": 2,
    "TEST.PRECISE_BN.NUM_ITER": 2,
    "INPUT.MIN_SIZE_TRAIN": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "SEED": 0,
}


def settings(**more: object) -> list[str]:
    """Return KEY VALUE words; keyword arguments are config keys with __ for the dot, over a tiny
    run's.
    """
    merged = TINY | {key.replace("__", "."): value for key, value in more.items()}
    return [str(word) for pair in merged.items() for word in pair]


def dataset_flags(scenes: Path) -> list[str]:
    """Return what registers the generated scenes, without the ``--dataset`` in front."""
    return [
        f"scenes_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}"
        for split in ("train", "test")
    ]


def train_words(
    scenes: Path, output_dir: Path, *options: object, engine: str = "detectron2", **more: object
) -> list[str]:
    """Return the words of tools/train_net.py, itself among them, on generated scenes; see
    :func:`settings`.
    """
    data = [word for flag in dataset_flags(scenes) for word in ("--dataset", flag)]
    tool = REPOSITORY / "tools" / "train_net.py"
    words = [
        tool,
        "--engine",
        engine,
        "--config-file",
        "demo_R_18_FPN",
        *data,
        *options,
        *settings(OUTPUT_DIR=output_dir, **more),
    ]
    return [str(word) for word in words]


def train_command(scenes: Path, output_dir: Path, *options: object, **more: object) -> list[str]:
    """Return the command of a run that a test starts, and stops, itself."""
    return [sys.executable, *train_words(scenes, output_dir, *options, **more)]


def train(
    scenes: Path,
    output_dir: Path,
    *options: object,
    engine: str = "detectron2",
    launcher: tuple[object, ...] = (),
    **more: object,
) -> subprocess.CompletedProcess[str]:
    """Run tools/train_net.py on generated scenes, ``launcher`` in front of it; see
    :func:`settings`.
    """
    return run_python(*launcher, *train_words(scenes, output_dir, *options, engine=engine, **more))
