"""Hugging Face's ResNets, read and written, against numbers that transformers computed.

Seen red under: shortcut and layer.2 swapped; ``downsample_in_bottleneck`` not read, or written as
    False; mean and standard deviation left at 0-1; Caffe2's file verified in torchvision's network.
"""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from make_huggingface_fixture import FIXTURE, NETWORKS, kept, names_hash, numbered
from networks import resnet_shapes, resnet_state, seeded

from moco_transfer.convert import convert_checkpoint, load_backbone
from moco_transfer.convert.key_maps import WRITE_NAME
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.convert.verify import TOLERANCE, detectron2_features, generated_image
from moco_transfer.runtime.errors import InputError

SEEN = json.loads(FIXTURE.read_text(encoding="utf-8"))
ARCH = {"resnet18": "resnet18", "resnet50": "resnet50", "resnet50_v1": "resnet50"}


def their_state(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return a ResNet as transformers names it, with the numbers of the fixture."""
    shapes = {WRITE_NAME["huggingface"](n): t for n, t in resnet_shapes(ARCH[name]).items()}
    return {f"{prefix}{n}": numbered(n, tuple(t.shape), t.dtype) for n, t in shapes.items() if n}


def their_folder(folder, name: str, prefix: str = "", **config):
    """Write what transformers' save_pretrained does."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(their_state(name, prefix), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SEEN[name]["config"] | config))
    return folder


def differences(features, name: str) -> list[float]:
    """Return the largest difference from transformers' features, of each stage."""
    found = []
    for stage, wanted in SEEN[name]["features"].items():
        got = torch.tensor(kept(features[stage]))
        wanted = torch.tensor(wanted)
        found.append(((got - wanted).abs().max() / wanted[-1].clamp(min=1)).item())
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_names__are_those_of_transformers(name):
    assert names_hash(their_state(name)) == SEEN[name]["names"]


@pytest.mark.parametrize("name", NETWORKS)
def test_convert__reads_their_folder_with_the_same_features(tmp_path, name):
    source = their_folder(tmp_path / "theirs", name)
    report = convert_checkpoint(source, tmp_path / "backbone.pkl")
    assert (report.source_format, report.arch, len(report.dropped)) == (
        "huggingface",
        ARCH[name],
        0,
    )
    is_v1 = name.endswith("v1")
    assert report.stamp["stride_in_1x1"] is is_v1
    arrays = {n: torch.from_numpy(a) for n, a in load_backbone(report.output).arrays.items()}
    features = detectron2_features(arrays, generated_image(size=64), stride_in_1x1=is_v1)
    assert max(differences(features, name)) <= TOLERANCE
    other = detectron2_features(arrays, generated_image(size=64), stride_in_1x1=not is_v1)
    assert name == "resnet18" or max(differences(other, name)) > TOLERANCE


def test_convert__an_image_classifier_and_its_pixels(tmp_path, r18):
    source = their_folder(tmp_path / "theirs", "resnet18", prefix="resnet.")
    state = safetensors.torch.load_file(source / "model.safetensors")
    state |= {"classifier.1.weight": torch.ones(2, 512), "classifier.1.bias": torch.ones(2)}
    safetensors.torch.save_file(state, source / "model.safetensors")
    prepare = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}
    (source / "preprocessor_config.json").write_text(json.dumps(prepare))
    report = convert_checkpoint(source / "model.safetensors", tmp_path / "b.pkl", verify=False)
    assert set(report.dropped) == {"classifier.1.weight", "classifier.1.bias"}
    assert report.stamp["pixel_mean"] == [127.5] * 3 and report.stamp["pixel_std"] == [51.0] * 3


@pytest.mark.parametrize(
    "config",
    [{"hidden_act": "gelu"}, {"downsample_in_first_stage": True}, {"model_type": "regnet"}],
)
def test_convert__refuses_another_network_of_these_names(tmp_path, config):
    source = their_folder(tmp_path / "theirs", "resnet18", **config)
    with pytest.raises(InputError) as caught:
        convert_checkpoint(source, tmp_path / "b.pkl", verify=False)
    assert "config.json" in str(caught.value) and next(iter(config)) in str(caught.value)
    assert not (tmp_path / "b.pkl").exists()


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1"])
def test_convert__writes_what_transformers_writes(tmp_path, name):
    source = their_folder(tmp_path / "theirs", name)
    convert_checkpoint(source, tmp_path / "backbone.pkl", verify=False)
    there = tmp_path / "ours" / "model.safetensors"
    convert_checkpoint(tmp_path / "backbone.pkl", there, to="huggingface")
    theirs, ours = (read_checkpoint(path).tensors for path in (source / there.name, there))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items() if "batches" not in n)
    config = json.loads((there.parent / "config.json").read_text())
    assert all(
        config[key] == SEEN[name]["config"][key] for key in config.keys() - {"architectures"}
    )
    prepare = json.loads((there.parent / "preprocessor_config.json").read_text())
    assert prepare["image_mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_convert__a_resnet_of_caffe2_keeps_its_strides(saved, tmp_path):
    """A file with STRIDE_IN_1X1 True is verified in a network that has it."""
    state = {WRITE_NAME["caffe2"](n): t for n, t in seeded("resnet50").state_dict().items()}
    source = saved({name: tensor for name, tensor in state.items() if name})
    there = tmp_path / "model.safetensors"
    report = convert_checkpoint(source, there, to="huggingface")
    assert max(report.differences.values()) <= TOLERANCE
    assert json.loads((tmp_path / "config.json").read_text())["downsample_in_bottleneck"] is True
    assert not (tmp_path / "preprocessor_config.json").exists()  # BGR
    back = convert_checkpoint(source, tmp_path / "back.pkl")
    assert back.stamp["stride_in_1x1"] is True and max(back.differences.values()) <= TOLERANCE


def test_convert__refuses_what_transformers_cannot_hold(tmp_path, saved, r18):
    source = saved(r18)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        convert_checkpoint(source, tmp_path / "other.safetensors", to="huggingface")
    wide = saved(resnet_state("resnext50_32x4d"), "wide.pth")
    with pytest.raises(InputError, match="resnext50_32x4d"):
        convert_checkpoint(wide, tmp_path / "model.safetensors", to="huggingface", verify=False)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers__computes_the_same_from_our_folder(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    source = their_folder(tmp_path / "theirs", name)
    convert_checkpoint(source, tmp_path / "ours" / "model.safetensors", to="huggingface")
    model, info = transformers.AutoModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        image = generated_image(size=64)
        _, *stages = model.eval()(image, output_hidden_states=True).hidden_states
    features = {f"res{2 + index}": stage for index, stage in enumerate(stages)}
    assert max(differences(features, name)) <= TOLERANCE
