"""MoCo's official detection/train_net.py and its VOC C4 config against our engine and ours: the same losses, digit for digit.

The numbers in the fixture are the official trainer's (``make_official_losses.py`` made them). Digits depend on the processor and on torch,
so the recorded ones are held to a tolerance, and to the digit only in the live comparison, which runs both one after the other.

Seen red under: a seed for each iteration as the embedded engine sets it; the learning rate one iteration late.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from detectron2_runs import HERE, run_python

pytestmark = pytest.mark.detectron2

OURS = """
import json, sys
from pathlib import Path
from official_case import our_losses, write_backbone
folder = Path(sys.argv[1])
(folder / "ours.json").write_text(json.dumps(our_losses(folder, write_backbone(folder))))
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("ours")
    result = run_python("-c", OURS, folder, DETECTRON2_DATASETS=str(shared_data))
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "ours.json").read_text())


def test_official_losses__as_recorded(ours):
    recorded = json.loads((HERE / "fixtures" / "official_losses.json").read_text())
    for name in ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "lr"):
        assert len(ours[name]) == len(recorded[name]) == 20
        assert ours[name][:3] == pytest.approx(recorded[name][:3], rel=1e-4), name
        # Afterwards a last digit that differs may decide which regions are sampled.
        assert ours[name] == pytest.approx(recorded[name], rel=0.05, abs=0.02), name


@pytest.mark.slow
def test_official_losses__live_digit_for_digit(ours, tmp_path, shared_data):
    checkout = os.environ.get("MOCO_OFFICIAL_REPOSITORY")
    if not checkout:
        pytest.skip("no checkout of facebookresearch/moco (set MOCO_OFFICIAL_REPOSITORY)")
    target = Path(tmp_path) / "official.json"
    result = run_python(HERE / "make_official_losses.py", checkout, target, DETECTRON2_DATASETS=str(shared_data))
    assert result.returncode == 0, result.stderr
    official = json.loads(target.read_text())
    assert {name: official[name] for name in ours} == ours
