"""Every shipped detection config trains on Detectron2 (that of dense pose in test_dense_pose.py),
those of keypoints, LVIS and Cityscapes on the embedded engine as well; that each loads in
Detectron2's untouched config is tested in tests/config/test_load.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from detectron2_runs import HERE, run_python

from moco_transfer.config import available, load_detection_config

LEAVES = sorted(
    name.split("/")[1]
    for name in available()
    if name.startswith("detection/") and not any(w in name for w in ("Base-", "densepose"))
)
# The tasks that the tests of runs on the embedded engine, in tests/finetune/test_runs.py, lack.
NEW_TASKS = ("coco_keypoint", "lvis", "cityscapes")
ON_THE_EMBEDDED_ENGINE = [name for name in LEAVES if name.startswith(NEW_TASKS)]


def run_all(tmp_path_factory, shared_data: Path, engine: str, names: list[str]) -> Path:
    """Folder with a run of each config, all made by one process: importing Detectron2 takes longer
    than three iterations.
    """
    folder = tmp_path_factory.mktemp(engine)
    words = (HERE / "run_configs.py", folder, engine, *names)
    result = run_python(*words, timeout=2400, DETECTRON2_DATASETS=str(shared_data))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def on_detectron2(tmp_path_factory, shared_data):
    return run_all(tmp_path_factory, shared_data, "detectron2", LEAVES)


@pytest.fixture(scope="session")
def on_the_embedded_engine(tmp_path_factory, shared_data):
    return run_all(tmp_path_factory, shared_data, "torchvision", ON_THE_EMBEDDED_ENGINE)


@pytest.mark.detectron2
@pytest.mark.parametrize("name", LEAVES)
def test_config__trains_three_iterations_on_detectron2(on_detectron2, name):
    check_run(on_detectron2 / name, "detectron2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_THE_EMBEDDED_ENGINE)
def test_config__trains_three_iterations_on_the_embedded_engine(on_the_embedded_engine, name):
    check_run(on_the_embedded_engine / name, "torchvision")


def check_run(folder: Path, engine: str) -> None:
    error = folder / "error.txt"
    assert not error.exists(), error.read_text()
    record = json.loads((folder / "results.json").read_text())
    model = load_detection_config(folder.name).MODEL
    of_run = [record[key] for key in ("schema", "engine", "iterations", "task")]
    assert of_run == [1, engine, 3, folder.name]
    losses = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    heads = {"mask": model.MASK_ON, "keypoint": model.KEYPOINT_ON}
    assert set(record["last_losses"]) == losses | {f"loss_{h}" for h, on in heads.items() if on}
    assert all(math.isfinite(value) for value in record["last_losses"].values())
    tasks = {"bbox": True, "segm": model.MASK_ON, "keypoints": model.KEYPOINT_ON}
    assert set(record["metrics"]) == {task for task, on in tasks.items() if on}
    frozen = model.RESNETS.NORM == "FrozenBN"  # the paper's supervised row of LVIS
    assert record["norm"].startswith("FrozenBN" if frozen else "BN (SyncBN in one process)")
    for file in ("config.yaml", "env.txt", "metrics.json", "last_checkpoint"):
        assert (folder / file).is_file(), file
    assert list(folder.glob("predictions_*.json"))
