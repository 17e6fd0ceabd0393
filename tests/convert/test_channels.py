"""Weights for grey and multi-band images, against sums written out here and, where it is
installed, timm.

Seen red under: filters averaged for grey; repeated without 3/N; the first three bands alone used.
"""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from networks import seeded

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint, load_backbone
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.runtime.errors import InputError


@pytest.fixture(scope="module")
def network():
    return seeded("resnet18")


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_convert__equal_bands_give_the_features_of_rgb(tmp_path, saved, network, channels):
    source = saved({n: t for n, t in network.state_dict().items() if not n.startswith("fc.")})
    there = tmp_path / "bands.pth"
    report = convert_checkpoint(source, there, to="torchvision", input_channels=channels)
    assert max(report.differences.values()) <= 1e-5 and report.stamp["input_channels"] == channels
    state = read_checkpoint(there).tensors
    stem, rgb = state["conv1.weight"], network.conv1.weight
    assert stem.shape == (64, channels, 7, 7)
    if channels == 1:
        assert torch.allclose(stem[:, 0], rgb[:, 0] + rgb[:, 1] + rgb[:, 2], atol=1e-7)
    else:
        for band in range(channels):
            assert torch.allclose(stem[:, band], rgb[:, band % 3] * 3 / channels, atol=1e-7)
    assert all(
        torch.equal(state[n], t)
        for n, t in network.state_dict().items()
        if n in state and n != "conv1.weight"
    )


def test_convert__grey_in_the_network_of_the_next_step(tmp_path, saved, network, capsys):
    source = saved({n: t for n, t in network.state_dict().items() if not n.startswith("fc.")})
    there = tmp_path / "grey.pth"
    argv = ["convert", str(source), str(there), "--to", "torchvision", "--input-channels", "1"]
    assert main(argv) == 0
    line = capsys.readouterr().out.partition("Next: ")[2].strip()
    names = {"torch": torch, "torchvision": torchvision}
    exec(line, names)
    grey = torch.rand(1, 1, 64, 64)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        wanted = network(grey.expand(1, 3, 64, 64))
        assert torch.allclose(names["model"].eval()(grey), wanted, atol=1e-5)


def test_convert__stamps_grey_pixels_and_the_config(tmp_path, saved, r18):
    there = tmp_path / "model.safetensors"
    report = convert_checkpoint(saved(r18), there, to="huggingface", input_channels=1, verify=False)
    assert report.stamp["format"] == "L"
    assert report.stamp["pixel_mean"] == pytest.approx([(123.675 + 116.28 + 103.53) / 3])
    assert json.loads((tmp_path / "config.json").read_text())["num_channels"] == 1
    four = convert_checkpoint(
        saved(r18), tmp_path / "4.safetensors", to="timm", input_channels=4, verify=False
    )
    assert four.stamp["pixel_mean"] is None and four.stamp["format"] is None


@pytest.mark.parametrize(
    ("to", "channels", "name"), [("detectron2", 1, "a.pkl"), ("moco", 4, "a.pth"), ("timm", 0, "a")]
)
def test_convert__refuses_channels_that_nobody_reads(tmp_path, saved, small, to, channels, name):
    with pytest.raises(InputError, match=f"--input-channels {channels}"):
        there = tmp_path / (name if "." in name else "a.safetensors")
        convert_checkpoint(saved(small), there, to=to, input_channels=channels, verify=False)
    assert {path.name for path in tmp_path.iterdir()} == {"source.pth"}


def test_convert__weights_for_grey_images_into_a_detector_and_back(tmp_path, saved, network):
    state = {n: t for n, t in network.state_dict().items() if not n.startswith("fc.")}
    source, grey_file = saved(state), tmp_path / "grey.safetensors"
    convert_checkpoint(source, grey_file, to="timm", input_channels=1)
    report = convert_checkpoint(grey_file, tmp_path / "backbone.pkl")
    assert report.stamp["format"] == "RGB" and len(report.stamp["pixel_mean"]) == 3
    assert "input_channels" not in report.stamp
    grey_stem = read_checkpoint(grey_file).tensors["conv1.weight"]
    stem = torch.from_numpy(load_backbone(report.output).arrays["stem.conv1.weight"])
    assert stem.shape == (64, 3, 7, 7)
    assert torch.allclose(stem.sum(1, keepdim=True), grey_stem, atol=1e-6)
    assert torch.equal(stem[:, 0], stem[:, 2])
    again = convert_checkpoint(grey_file, tmp_path / "2.pth", to="torchvision", input_channels=1)
    assert again.stamp["format"] == "L" and again.stamp["input_channels"] == 1
    kept = read_checkpoint(again.output).tensors["conv1.weight"]
    assert torch.allclose(kept, grey_stem, atol=1e-6)


def test_convert__an_official_checkpoint_for_grey_images_keeps_both_encoders(
    tmp_path, saved, official
):
    state = dict(official["state_dict"])
    for role in ("q", "k"):
        name = f"module.encoder_{role}.conv1.weight"
        state[name] = state[name].sum(1, keepdim=True)
    convert_checkpoint(saved({**official, "state_dict": state}), tmp_path / "3.pth", to="moco")
    tensors = read_checkpoint(tmp_path / "3.pth").tensors
    for role in ("q", "k"):
        assert tensors[f"state_dict.module.encoder_{role}.conv1.weight"].shape == (64, 3, 7, 7)
