"""MoCo's official detection/train_net.py and its VOC C4 config against our engine and ours: the
same losses, digit for digit.

The numbers in the fixture are the official trainer's (``make_official_losses.py`` made them, and
noted what their digits depend on). On the same torch, kernels and processor vendor ours must be
equal to the last digit, as they must be in the live comparison, which needs a checkout of
facebookresearch/moco in MOCO_OFFICIAL_REPOSITORY and runs both one after the other.

Seen red under: a seed for each iteration as the embedded engine sets it; the learning rate one
    iteration late.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import pytest
from detectron2_runs import HERE, run_python

pytestmark = pytest.mark.detectron2

OURS = """
import json, sys
from pathlib import Path
from official_case import made_with, our_losses, pin_kernels, write_backbone
pin_kernels()
folder = Path(sys.argv[1])
losses = our_losses(folder, write_backbone(folder))
(folder / "ours.json").write_text(json.dumps({"losses": losses, "made_with": made_with()}))
"""
LOSSES = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")


@pytest.fixture(scope="module")
def ours(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("ours")
    result = run_python("-c", OURS, folder, DETECTRON2_DATASETS=str(shared_data))
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "ours.json").read_text())


def test_official_losses__as_recorded(ours):
    recorded = json.loads((HERE / "fixtures" / "official_losses.json").read_text())
    losses = ours["losses"]
    assert all(len(series[name]) == 20 for series in (losses, recorded) for name in (*LOSSES, "lr"))
    assert losses["lr"] == pytest.approx(recorded["lr"], rel=1e-6)
    if ours["made_with"].items() <= recorded["source"].items():
        assert losses == {name: recorded[name] for name in losses}
        return
    # Other kernels round otherwise; the first iteration only carries that on. From the second on a
    # last digit decides which regions are sampled: the official trainer itself, on AVX2's and on
    # AVX512's kernels, differed there by 3e-3 and more in a loss of a single iteration, and over
    # all twenty by 7e-4 in the mean of loss_cls and 3e-3 in that of loss_rpn_cls, the two that
    # every sampled region enters.
    for name in LOSSES:
        assert losses[name][0] == pytest.approx(recorded[name][0], rel=1e-4), name
    for name in ("loss_cls", "loss_rpn_cls"):
        assert statistics.mean(losses[name]) == pytest.approx(
            statistics.mean(recorded[name]), rel=0.02
        ), name


def test_official_losses__live_digit_for_digit(ours, tmp_path, shared_data):
    checkout = os.environ.get("MOCO_OFFICIAL_REPOSITORY")
    if not checkout:
        pytest.skip("no checkout of facebookresearch/moco (set MOCO_OFFICIAL_REPOSITORY)")
    target = Path(tmp_path) / "official.json"
    result = run_python(
        HERE / "make_official_losses.py", checkout, target, DETECTRON2_DATASETS=str(shared_data)
    )
    assert result.returncode == 0, result.stderr
    official = json.loads(target.read_text())
    assert {name: official[name] for name in ours["losses"]} == ours["losses"]
