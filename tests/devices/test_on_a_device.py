"""Everything a run does, on a device that has a GPU's rules and the CPU's numbers.

A process of its own (``scenarios.py``) does each thing on the CPU and on the pretended device. The
numbers must be the CPU's up to the order of sums, and the host must not wait for the device in a
step of pre-training; in a detector's no oftener than WAITS allows.

Seen red under: box weights on the CPU; boxes, or predictions, to NumPy without cpu(); indices of a
permutation, of the bank's draws or of sampled anchors on the CPU; ``sent`` that waits; a mask in
place of numbers in end to end; features, labels, pixel means, keypoints and label images on the
CPU; boxes in the type of half features.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot have devices in Python",
)

HERE = Path(__file__).parent
STEPS = (
    *("moco", "moco_v1", "symmetric", "accumulated", "end_to_end", "memory_bank", "supervised"),
    *("reference_pipeline", "bf16", "fp16", "plain_layout"),
)
# In a step; other mechanisms: none. The bank's negatives are the images outside of the batch, whose
# number is read; torch's loss scaling asks whether a gradient overflowed.
STEP_WAITS = {"memory_bank": {"nonzero": 1}, "fp16": {"_local_scalar_dense": 1}}
# In a detector's step on two images. For each image: four times which regions may be drawn, the
# proposals that are left, NMS (one copy is torchvision's own); masks are drawn on the CPU, visible
# keypoints are looked for. For each pooling from a pyramid: how many boxes a level has.
DETECTOR_WAITS = {
    "r18_c4_mask": 18,
    "r50_dc5": 14,
    "r18_fpn_head_conv": 20,
    "r18_fpn_bitmask": 20,
    "r18_fpn_keypoint": 19,
    "r18_fpn_mask_keypoint": 24,
    "fcn": 0,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("devices") / "found.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "scenarios.py"), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


def of(found: dict[str, Any], name: str) -> tuple[Any, Any, dict[str, int]]:
    """Return what the CPU and the device gave, and the waits; fails where one of them failed."""
    assert "error" not in found[name], found[name]["error"]
    waits = {kind: count for kind, count in found[name]["waits"].items() if count}
    return found[name]["cpu"], found[name]["device"], waits


@pytest.mark.parametrize("case", STEPS)
def test_pretraining_step(found, case):
    on_cpu, on_device, waits = of(found, case)
    rel = 2e-2 if case == "bf16" else 1e-3
    assert on_device["losses"] == pytest.approx(on_cpu["losses"], rel=rel)
    assert on_device["losses"][0] == pytest.approx(on_cpu["losses"][0], rel=rel / 100)
    assert on_device["norms"] == pytest.approx(on_cpu["norms"], rel=rel, abs=1e-3)
    assert {kind: count / 2 for kind, count in waits.items()} == STEP_WAITS.get(case, {})


def test_whole_runs__resumed_ones_and_knn(found):
    """The scenario itself fails unless a resumed run ends with the bits of an uninterrupted one."""
    on_cpu, on_device, _ = of(found, "whole_runs")
    assert len(on_cpu["rows"]) == len(on_device["rows"]) and "knn_top1" in on_cpu["rows"][-1]
    for ours, theirs in zip(on_device["rows"], on_cpu["rows"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert on_device["norms"] == pytest.approx(on_cpu["norms"], rel=1e-4, abs=1e-5)


def test_linear_protocol_and_a_run_from_weights(found):
    on_cpu, on_device, _ = of(found, "measured")
    for name, values in on_cpu.items():
        assert on_device[name] == pytest.approx(values, rel=1e-3), name


def test_two_processes__end_equal_and_as_on_the_cpu(found):
    on_cpu, on_device, _ = of(found, "two_processes")
    assert found["two_processes"]["equal"]
    for mechanism, norms in on_cpu.items():
        assert on_device[mechanism] == pytest.approx(norms, rel=1e-4, abs=1e-5), mechanism


@pytest.mark.parametrize("case", DETECTOR_WAITS)
def test_detector__trains_evaluates_and_predicts(found, case):
    """On the device RoIAlign is torchvision's operator, as on a GPU, and not the CPU's own."""
    on_cpu, on_device, waits = of(found, case)
    for ours, theirs in zip(on_device["losses"], on_cpu["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for ours, theirs in zip(on_device["found"], on_cpu["found"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, (count, total) in theirs.items():
            assert ours[name][0] == count, name
            assert ours[name][1] == pytest.approx(total, rel=1e-2), name
    assert sum(waits.values()) <= DETECTOR_WAITS[case], waits


def test_boxes__are_not_rounded_to_the_type_of_the_features(found):
    on_cpu, on_device, _ = of(found, "pooled_in_fp16")
    assert on_device["type"] == on_cpu["type"] == "torch.float16"
    assert on_device["values"] == pytest.approx(on_cpu["values"], rel=2e-3)


def test_the_device_has_a_gpus_rules(found):
    rules = of(found, "rules")[1]
    assert rules == dict.fromkeys(rules, True) and len(rules) == 11
