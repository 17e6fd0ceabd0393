"""Every shipped detection config trains on Detectron2; that each loads in its untouched config is
tested in tests/config/test_load.py.
"""

from __future__ import annotations

import json
import math

import pytest
from detectron2_runs import HERE, run_python

from moco_transfer.config import available, load_detection_config

pytestmark = pytest.mark.detectron2

LEAVES = sorted(
    name.split("/")[1]
    for name in available()
    if name.startswith("detection/") and "Base-" not in name
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shared_data):
    """Folder with a run of each config, all made by one process: importing Detectron2 takes longer
    than three iterations.
    """
    folder = tmp_path_factory.mktemp("configs")
    result = run_python(
        HERE / "run_configs.py", folder, *LEAVES, timeout=2400, DETECTRON2_DATASETS=str(shared_data)
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", LEAVES)
def test_config__trains_three_iterations(trained, name):
    folder = trained
    error = folder / name / "error.txt"
    assert not error.exists(), error.read_text()
    record = json.loads((folder / name / "results.json").read_text())
    cfg = load_detection_config(name)
    assert (record["schema"], record["engine"], record["iterations"], record["task"]) == (
        1,
        "detectron2",
        3,
        name,
    )
    expected = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | (
        {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    )
    assert set(record["last_losses"]) == expected
    assert all(math.isfinite(value) for value in record["last_losses"].values()), record[
        "last_losses"
    ]
    assert set(record["metrics"]) == ({"bbox", "segm"} if cfg.MODEL.MASK_ON else {"bbox"})
    assert record["norm"].startswith("BN (SyncBN in one process)")
    for file in ("config.yaml", "env.txt", "metrics.json", "last_checkpoint"):
        assert (folder / name / file).is_file(), file
    assert list((folder / name).glob("predictions_*.json"))
