"""Conversion of an official MoCo checkpoint, against what moco's own converter wrote for the same
numbers.

Seen red under: encoder_k taken for q; arrays written as float64; the projection head no longer
    known as a head.
"""

import hashlib
import json
import os
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from moco_transfer.convert import convert_checkpoint, load_backbone

FIXTURE = Path(__file__).with_name("official_resnet18.json")


def digest(arrays):
    return {
        name: [str(a.dtype), list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()]
        for name, a in arrays.items()
    }


def without_heads(rows):
    return {name: row for name, row in rows.items() if not name.startswith("stem.fc.")}


@pytest.mark.parametrize("wrapper", ["module.", ""])
def test_convert__equals_the_official_converter_in_name_and_bits(
    saved, tmp_path, official, wrapper
):
    content = {
        **official,
        "state_dict": {
            name.replace("module.", wrapper, 1): t for name, t in official["state_dict"].items()
        },
    }
    report = convert_checkpoint(saved(content, "moco.pth.tar"), tmp_path / "moco.pkl")
    written = pickle.loads((tmp_path / "moco.pkl").read_bytes())
    theirs = json.loads(FIXTURE.read_text())["model"]
    assert len(theirs) == 120 + 4  # their four stem.fc tensors are the leaked head
    assert list(digest(written["model"]).items()) == list(without_heads(theirs).items())
    assert (written["__author__"], written["matching_heuristics"]) == ("moco_transfer", True)
    assert report.source_format == "moco" and report.arch == "resnet18" and report.encoder == "q"


@pytest.mark.skipif(
    "MOCO_CHECKOUT" not in os.environ,
    reason="MOCO_CHECKOUT names no checkout of facebookresearch/moco",
)
def test_convert__equals_the_official_converter_run_now(saved, tmp_path, official):
    tool = runpy.run_path(str(Path(__file__).with_name("make_official_fixture.py")))
    source = saved(official, "moco.pth.tar")
    theirs = digest(tool["official_arrays"](Path(os.environ["MOCO_CHECKOUT"]), source, tmp_path))
    assert theirs == json.loads(FIXTURE.read_text())["model"]
    convert_checkpoint(source, tmp_path / "moco.pkl")
    assert digest(pickle.loads((tmp_path / "moco.pkl").read_bytes())["model"]) == without_heads(
        theirs
    )


def test_convert__stamp_and_report(saved, tmp_path, official):
    source = saved(official, "moco.pth.tar")
    report = convert_checkpoint(source, tmp_path / "moco.pkl")
    expected = {
        "schema": 1,
        "source": "moco.pth.tar",
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "source_format": "moco",
        "mechanism": "moco",
        "arch": "resnet18",
        "encoder": "q",
        "epoch": 200,
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "stride_in_1x1": False,
    }
    assert report.stamp == expected
    assert pickle.loads((tmp_path / "moco.pkl").read_bytes())["moco_transfer"] == expected
    assert report.sha256 == hashlib.sha256((tmp_path / "moco.pkl").read_bytes()).hexdigest()
    assert len(report.expected) == 100 and len(report.mapped) == 120
    assert (
        report.mapped["state_dict.module.encoder_q.layer1.0.bn1.weight"]
        == "res2.0.conv1.norm.weight"
    )
    # 120 tensors and 4 of the head of the other encoder, 4 of this one's head, queue and pointer,
    # one momentum buffer
    assert len(report.dropped) == 124 + 4 + 2 + 1
    assert report.dropped["state_dict.module.queue"] == "queue of negatives"
    assert "head" in report.dropped["state_dict.module.encoder_q.fc.2.weight"]
    table = report.table()
    assert (
        "expected      100 backbone tensors" in table
        and "4 x classifier or projection head" in table
        and "verified" in table
    )


@pytest.mark.parametrize("encoder", ["q", "k"])
def test_convert__takes_the_encoder_asked_for(
    saved, tmp_path, official_small, small, small_key, encoder
):
    report = convert_checkpoint(
        saved(official_small), tmp_path / "moco.pkl", encoder=encoder, verify=False
    )
    arrays = load_backbone(tmp_path / "moco.pkl").arrays
    wanted = {"q": small, "k": small_key}[encoder]
    assert np.array_equal(arrays["res4.1.conv2.weight"], wanted["layer3.1.conv2.weight"].numpy())
    assert report.stamp["encoder"] == encoder


def test_convert__our_checkpoint_carries_its_own_pixels(saved, tmp_path, small):
    content = {
        "format": "moco_transfer.pretrain/1",
        "mechanism": "memory_bank",
        "arch": "resnet18",
        "state_dict": {f"encoder_q.{name}": tensor for name, tensor in small.items()},
        "pixels": {"format": "RGB", "mean": [120.0, 110.0, 100.0], "std": [50.0, 51.0, 52.0]},
        "epoch": 7,
        "iteration": 70,
        "config": "MODEL: {}",
        "optimizer": {},
    }
    report = convert_checkpoint(saved(content), tmp_path / "ours.pkl", verify=False)
    stamp = load_backbone(tmp_path / "ours.pkl").stamp
    assert stamp == report.stamp
    assert (stamp["source_format"], stamp["mechanism"], stamp["epoch"]) == (
        "moco_transfer",
        "memory_bank",
        7,
    )
    assert (stamp["format"], stamp["pixel_mean"], stamp["pixel_std"]) == (
        "RGB",
        [120.0, 110.0, 100.0],
        [50.0, 51.0, 52.0],
    )


@pytest.mark.parametrize(
    ("to", "name"), [("torchvision", "back.pth"), ("timm", "back.safetensors")]
)
def test_convert__there_and_back_is_exact(tmp_path, converted, r18, to, name):
    convert_checkpoint(converted, tmp_path / name, to=to)
    report = convert_checkpoint(tmp_path / name, tmp_path / "again.pkl")
    first, again = (
        pickle.loads(file.read_bytes())["model"] for file in (converted, tmp_path / "again.pkl")
    )
    assert digest(first) == digest(again)
    kept = (
        "mechanism",
        "encoder",
        "epoch",
        "format",
        "pixel_mean",
        "pixel_std",
        "stride_in_1x1",
        "arch",
    )
    stamp = load_backbone(converted).stamp
    assert {key: report.stamp[key] for key in kept} == {key: stamp[key] for key in kept}
    if to == "torchvision":
        import torchvision

        state = torch.load(tmp_path / name, weights_only=True)
        problems = torchvision.models.resnet18().load_state_dict(state, strict=False)
        assert (problems.missing_keys, problems.unexpected_keys) == (["fc.weight", "fc.bias"], [])
        assert all(torch.equal(tensor, r18[key]) for key, tensor in state.items())
