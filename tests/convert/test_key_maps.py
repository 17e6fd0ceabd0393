"""The key maps against Detectron2's own converter and against names written out by hand.

Seen red under: "layer1" mapped to res1; bn2 mapped to conv1.norm; "downsample.1" mapped to
    shortcut; branch2b and 2c swapped.
"""

import math

import pytest

from moco_transfer.convert.key_maps import READ_NAME, WRITE_NAME, detectron2_name
from moco_transfer.models.resnets import ARCHITECTURES, backbone_shapes, recognise


@pytest.mark.parametrize(
    ("torchvision", "detectron2", "caffe2", "sequential"),
    [
        ("conv1.weight", "stem.conv1.weight", "conv1_w", "0.weight"),
        ("bn1.weight", "stem.conv1.norm.weight", "res_conv1_bn_gamma", "1.weight"),
        (
            "bn1.running_mean",
            "stem.conv1.norm.running_mean",
            "res_conv1_bn_running_mean",
            "1.running_mean",
        ),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight", "res2_0_branch2a_w", "4.0.conv1.weight"),
        ("layer1.0.bn1.bias", "res2.0.conv1.norm.bias", "res2_0_branch2a_bn_beta", "4.0.bn1.bias"),
        (
            "layer2.3.bn2.running_var",
            "res3.3.conv2.norm.running_var",
            "res3_3_branch2b_bn_running_var",
            "5.3.bn2.running_var",
        ),
        (
            "layer3.22.conv3.weight",
            "res4.22.conv3.weight",
            "res4_22_branch2c_w",
            "6.22.conv3.weight",
        ),
        (
            "layer4.0.downsample.0.weight",
            "res5.0.shortcut.weight",
            "res5_0_branch1_w",
            "7.0.downsample.0.weight",
        ),
        (
            "layer4.0.downsample.1.weight",
            "res5.0.shortcut.norm.weight",
            "res5_0_branch1_bn_gamma",
            "7.0.downsample.1.weight",
        ),
    ],
)
def test_names__by_hand(torchvision, detectron2, caffe2, sequential):
    theirs = {
        "torchvision": torchvision,
        "detectron2": detectron2,
        "caffe2": caffe2,
        "sequential": sequential,
    }
    assert {naming: WRITE_NAME[naming](torchvision) for naming in theirs} == theirs
    assert {READ_NAME[naming](name) for naming, name in theirs.items()} == {torchvision}


@pytest.mark.parametrize(
    ("blob", "torchvision"),
    [
        ("res_conv1_bn_s", "bn1.weight"),
        ("res2_0_branch2a_bn_b", "layer1.0.bn1.bias"),
        ("res5_2_branch2c_bn_rm", "layer4.2.bn3.running_mean"),
        ("res3_0_branch1_bn_riv", "layer2.0.downsample.1.running_var"),
    ],
)
def test_from_caffe2__the_names_of_detectron_1(blob, torchvision):
    assert READ_NAME["caffe2"](blob) == torchvision


@pytest.mark.parametrize("naming", READ_NAME)
@pytest.mark.parametrize("arch", ["resnet18", "resnet101"])
def test_names__every_tensor_goes_there_and_back(naming, arch):
    for name in backbone_shapes(arch):
        assert READ_NAME[naming](WRITE_NAME[naming](name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "fc.weight",
        "layer5.0.conv1.weight",
        "layer1.conv1.weight",
        "bn2.weight",
        "layer1.0.conv4.weight",
        "downsample.0.weight",
    ],
)
def test_detectron2_name__none_for_what_is_no_backbone_tensor(name):
    assert detectron2_name(name) is None


@pytest.mark.parametrize(
    ("naming", "name"),
    [
        ("detectron2", "stem.fc.weight"),
        ("detectron2", "res2.0.stem.conv1.weight"),
        ("detectron2", "conv1.weight"),
        ("caffe2", "fc1000_w"),
        ("caffe2", "conv1_b"),
        # fmt: skip
        ("sequential", "2.weight"),
        ("sequential", "9.weight"),
    ],
)
def test_read_name__none_for_what_is_no_backbone_tensor(naming, name):
    assert READ_NAME[naming](name) is None


# 20 convolutions and 20 norms of 4 tensors; 53 of each in ResNet-50; 36 and 104 in ResNet-34 and
# -101 (depth + 3 shortcuts - fc).
@pytest.mark.parametrize(
    ("arch", "tensors"),
    [
        ("resnet18", 100),
        ("resnet34", 180),
        ("resnet50", 265),
        ("resnet101", 520),
        # fmt: skip
        ("resnext50_32x4d", 265),
        ("wide_resnet50_2", 265),
    ],
)
def test_backbone_shapes__tensor_counts(arch, tensors):
    shapes = backbone_shapes(arch)
    assert len(shapes) == tensors
    assert shapes["conv1.weight"] == (64, 3, 7, 7)


# Table 1 of the MoCo paper, #params in millions; the paper's wide networks have a wider stem,
# torchvision's has not.
@pytest.mark.parametrize(
    ("arch", "millions", "stem"),
    [
        ("resnet50", 24, 64),
        ("resnext50_32x8d", 46, 64),
        ("resnet50_w2x", 94, 128),
        # fmt: skip
        ("resnet50_w4x", 375, 256),
        ("wide_resnet50_2", 67, 64),
    ],
)
def test_backbone_shapes__have_the_papers_numbers_of_parameters(arch, millions, stem):
    shapes = backbone_shapes(arch)
    assert (
        round(
            sum(math.prod(shape) for name, shape in shapes.items() if "running" not in name) / 1e6
        )
        == millions
    )
    assert shapes["conv1.weight"] == (stem, 3, 7, 7)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_recognise__tells_all_apart_also_with_a_gap(arch):
    import torch

    tensors = {
        name: torch.empty(shape, device="meta") for name, shape in backbone_shapes(arch).items()
    }
    assert recognise(tensors) == arch
    del tensors["layer1.0.conv1.weight"], tensors["layer4.1.bn2.bias"]
    assert recognise(tensors) == arch
