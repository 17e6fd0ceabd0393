"""Runs the program on Detectron2 as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


def run_python(*arguments: object, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with one thread and this source tree importable; Detectron2 fixes its data folder at import."""
    variables = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=variables)


def train(scenes: Path, output_dir: Path, *options: object, engine: str = "detectron2", launcher: tuple[object, ...] = (), **settings: object):
    """Run tools/train_net.py on generated scenes; keyword arguments are config keys with __ for the dot, over a tiny default."""
    tiny = {
        "DATASETS.TRAIN": "scenes_train",
        "DATASETS.TEST": "scenes_test",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.005,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.STEPS": "4",
        "SOLVER.WARMUP_ITERS": 2,
        "TEST.PRECISE_BN.NUM_ITER": 2,
        "INPUT.MIN_SIZE_TRAIN": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "OUTPUT_DIR": output_dir,
        "SEED": 0,
    } | {key.replace("__", "."): value for key, value in settings.items()}
    data = [word for split in ("train", "test") for word in ("--dataset", f"scenes_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}")]
    words = [word for pair in tiny.items() for word in pair]
    tool = REPOSITORY / "tools" / "train_net.py"
    return run_python(*launcher, tool, "--engine", engine, "--config-file", "demo_R_18_FPN", *data, *options, *words)
