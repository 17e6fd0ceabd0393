"""Readings that must be asked for, the types and the backbones of detectors; test_each_project.py
has the projects themselves.

Seen red under: a difference between two readings ignored; the 3x3 stem let through; True taken for
    an epoch; bf16 made fp16; strides and
colours of a detector made up.
"""

import pickle

import numpy as np
import pytest
import torch
from networks import one_number_each, resnet_shapes
from safetensors.torch import save_file

from moco_transfer.convert import convert_checkpoint, inspect
from moco_transfer.convert.coverage import check_source
from moco_transfer.convert.formats import read_source
from moco_transfer.convert.key_maps import detectron2_name
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.convert.stamp import make_stamp
from moco_transfer.models.resnets import ARCHITECTURES, backbone_shapes, build_encoder, recognise
from moco_transfer.runtime.errors import InputError


def under(prefix, state, name=str):
    """Return the backbone of a torchvision state dict under a prefix, renamed."""
    return {
        f"{prefix}{name(key)}": tensor for key, tensor in state.items() if not key.startswith("fc.")
    }


def save_safetensors(path, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, {"format": "pt"})


CONFIG = """
INPUT: {FORMAT: BGR}
MODEL: {PIXEL_MEAN: [1.0, 2.0, 3.0], PIXEL_STD: [1.0, 1.0, 1.0], RESNETS: {STRIDE_IN_1X1: true}}
"""


def assert_same(source, state):
    """Check that a source has the tensors of a torchvision state dict, name by name and bit by bit,
    less the classifier.
    """
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert source.state.keys() == wanted.keys()
    assert all(
        torch.equal(source.state[name], tensor) and source.state[name].dtype == tensor.dtype
        for name, tensor in wanted.items()
    )
    check_source(source, recognise(source.state), "file")


def test_read_source__from_decides_between_two_readings(saved, small, small_key):
    content = read_checkpoint(
        saved({"state_dict": under("backbone.", small) | under("encoder.", small_key)})
    )
    with pytest.raises(
        InputError,
        match=(
            "can be read as backbone .*state_dict.backbone.* and as encoder .*state_dict.encoder.*"
            "--from"
        ),
    ):
        read_source(content)
    assert_same(read_source(content, source_format="backbone"), small)
    assert_same(read_source(content, source_format="encoder"), small_key)
    assert_same(read_source(content, source_format="state_dict.encoder."), small_key)
    with pytest.raises(
        InputError,
        match="is not in the layout 'moco': no ResNet under 'encoder_k.' or 'encoder_q.'",
    ):
        read_source(content, source_format="moco")


def test_read_source__from_may_name_an_unknown_place(saved, small):
    content = read_checkpoint(saved({"weights": under("tower.visual.", small)}))
    with pytest.raises(
        InputError,
        match=(
            r"under 'weights.tower.visual.', expected one of .* pass --from 'weights.tower.visual.'"
        ),
    ):
        read_source(content)
    assert_same(read_source(content, source_format="weights.tower.visual."), small)


@pytest.mark.parametrize(
    ("arch", "mechanism"),
    [(arch, "moco") for arch in ARCHITECTURES if arch != "resnet50_w4x"]
    + [("resnet18", mechanism) for mechanism in ("memory_bank", "end_to_end", "supervised")],
)
def test_read_source__our_checkpoints_of_any_mechanism_and_encoder(saved, arch, mechanism):
    """Ours call the encoder that was trained encoder_q whatever the mechanism; those without a
    second encoder have no encoder_k.
    """
    with torch.device("meta"):
        network = build_encoder(arch, num_classes=1000)
    state = {
        name: torch.zeros((), dtype=t.dtype).expand(t.shape)
        for name, t in network.state_dict().items()
    }
    content = {
        "format": "moco_transfer.pretrain/1",
        "mechanism": mechanism,
        "arch": arch,
        "epoch": 3,
        "iteration": 30,
    }
    content["pixels"] = {"format": "RGB", "mean": [120.0, 110.0, 100.0], "std": [50.0, 51.0, 52.0]}
    content["state_dict"] = {f"encoder_q.{name}": tensor for name, tensor in state.items()}
    content = read_checkpoint(saved(content))
    source = read_source(content)
    assert (source.format, recognise(source.state)) == ("moco_transfer", arch)
    stamp = make_stamp(content, source, arch=arch, sha256="")
    assert (stamp["mechanism"], stamp["arch"], stamp["epoch"], stamp["pixel_mean"][0]) == (
        mechanism,
        arch,
        3,
        120.0,
    )


def test_read_source__timm_safetensors(tmp_path, small):
    save_safetensors(tmp_path / "model.safetensors", small)
    source = read_source(read_checkpoint(tmp_path / "model.safetensors"))
    assert (source.format, source.title, len(source.dropped)) == ("timm", "timm", 2)
    assert_same(source, small)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("layer2.1.conv1.weight"), "Missing (1): layer2.1.conv1.weight"),
        (
            lambda state: state.update({"layer2.1.conv7.weight": torch.zeros(5)}),
            "Unused (1): layer2.1.conv7.weight",
        ),
        (
            lambda state: state.update({"layer2.1.conv1.weight": torch.zeros(5)}),
            "Misshapen (1): layer2.1.conv1.weight is (5,)",
        ),
        (
            lambda state: [state.update({f"strange.{key}": state.pop(key)}) for key in list(state)],
            "First keys: strange.",
        ),
    ],
)
def test_convert__refuses_defects_of_timm_safetensors(tmp_path, small, change, words):
    state = dict(small)
    change(state)
    save_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(InputError) as caught:
        convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "t.pkl")
    assert words in str(caught.value) and not (tmp_path / "t.pkl").exists()


@pytest.mark.parametrize("to", ["detectron2", "torchvision", "timm"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_convert__refuses_the_stem_for_small_images(saved, tmp_path, arch, to):
    """CIFAR's variant is complete but for its 3x3 stem; a detector's is 7x7."""
    state = one_number_each(resnet_shapes(arch))
    state["conv1.weight"] = torch.ones(64, 3, 3, 3)
    content = {
        "format": "moco_transfer.pretrain/1",
        "arch": f"{arch}_cifar",
        "state_dict": under("encoder_q.", state),
    }
    source = saved(content)
    with pytest.raises(InputError) as caught:
        convert_checkpoint(source, tmp_path / "out", to=to)
    words = (
        f"{source} is a {arch} for small images, as for CIFAR: state_dict.encoder_q.conv1.weight"
        " is (64, 3, 3, 3)"
    )
    assert str(caught.value).startswith(words) and "the stem of a detector is 7x7" in str(
        caught.value
    )
    assert not (tmp_path / "out").exists()
    assert "its 3x3 stem is for small images" in inspect(source).table()


@pytest.mark.parametrize(
    ("top", "epoch"),
    [
        ({"epoch": 200}, 200),
        ({"epoch": True}, None),
        ({"epoch": "200"}, None),
        ({}, None),
        ({"meta": {"epoch": 100}, "author": "OpenSelfSup"}, 100),
        ({"meta": [1], "author": "OpenSelfSup"}, None),
    ],
)
def test_make_stamp__epoch_where_the_project_counts_finished_ones(saved, small, top, epoch):
    prefix = "" if "author" in top else "encoder_q."
    content = read_checkpoint(saved({**top, "state_dict": under(prefix, small)}))
    assert make_stamp(content, read_source(content), arch="resnet18", sha256="")["epoch"] == epoch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_convert__keeps_the_type_of_other_floats(saved, tmp_path, r18, dtype):
    """fp16 and fp64 stay; bf16, which numpy lacks, becomes fp32 in a .pkl and stays in the other
    files. All are exact.
    """
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in r18.items()
    }
    source = saved(state)
    report = convert_checkpoint(source, tmp_path / "h.pkl", verify=dtype == torch.float16)
    array = pickle.loads((tmp_path / "h.pkl").read_bytes())["model"]["res2.0.conv1.weight"]
    assert array.dtype == (
        np.float32 if dtype == torch.bfloat16 else state["layer1.0.conv1.weight"].numpy().dtype
    )
    assert np.array_equal(array, state["layer1.0.conv1.weight"].double().numpy())
    assert bool(report.differences) == (dtype == torch.float16)
    for to, name in (("torchvision", "h.pth"), ("timm", "h.safetensors")):
        convert_checkpoint(source, tmp_path / name, to=to, verify=False)
        assert_same(read_source(read_checkpoint(tmp_path / name)), state)


def test_convert__backbone_of_a_detector_to_torchvision(saved, tmp_path, r18):
    """Round trip through Detectron2: what a fine-tuned detector's backbone holds comes back bit for
    bit.
    """
    model = under("backbone.bottom_up.", r18, detectron2_name)
    model |= {
        "backbone.fpn_lateral2.weight": torch.ones(2),
        "proposal_generator.rpn_head.conv.weight": torch.ones(2),
    }
    model |= {
        "roi_heads.box_head.fc1.weight": torch.ones(2),
        "pixel_mean": torch.ones(3),
        "anything.else": torch.ones(1),
    }
    report = convert_checkpoint(
        saved({"model": model, "iteration": 5}), tmp_path / "t.pth", to="torchvision"
    )
    assert report.source_format == "detectron2"
    assert set(report.dropped.values()) == {
        "feature pyramid, not part of a backbone",
        "detector head",
        "pixel statistics of a detector",
        "outside of 'model.backbone.bottom_up.'",
    }
    back = torch.load(tmp_path / "t.pth", weights_only=True)
    assert all(torch.equal(back[name], r18[name]) for name in back) and len(back) == 120
    # Nothing in the file says what its pixels were.
    assert (report.stamp["format"], report.stamp["pixel_mean"], report.stamp["pixel_std"]) == (
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("extra", "stride", "pixels"),
    [
        ({}, None, None),
        ({"__author__": "MOCO"}, False, "RGB"),
        ({"__author__": "Detectron2 Model Zoo"}, None, None),
        ({"format": "moco_transfer.finetune/1", "config": CONFIG}, True, "BGR"),
    ],
)
def test_make_stamp__of_a_detectron2_file_says_what_the_file_says(saved, extra, stride, pixels):
    """If a bottleneck's strides and colours are not on record, the stamp does not make them up."""
    state = {
        detectron2_name(name): torch.zeros(()).expand(shape)
        for name, shape in backbone_shapes("resnet50").items()
    }
    content = read_checkpoint(saved({"model": state, **extra}))
    stamp = make_stamp(content, read_source(content), arch="resnet50", sha256="")
    assert (stamp["stride_in_1x1"], stamp["format"]) == (stride, pixels)
    assert (
        stamp["pixel_mean"]
        == {None: None, "RGB": [123.675, 116.28, 103.53], "BGR": [1.0, 2.0, 3.0]}[pixels]
    )


def test_make_stamp__refuses_a_detector_whose_config_is_broken(saved, small):
    state = under("backbone.bottom_up.", small, detectron2_name)
    content = read_checkpoint(
        saved({"model": state, "format": "moco_transfer.finetune/1", "config": "MODEL: [1"})
    )
    with pytest.raises(InputError, match="its 'config' is no config"):
        make_stamp(content, read_source(content), arch="resnet18", sha256="")
