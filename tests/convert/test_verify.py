"""The two networks of the verification agree with each other, and a swapped tensor shows.

Seen red under: the stride in the wrong convolution; eps left out; max pooling without padding; the
    tolerance ignored.
"""

import pytest
import torch
from networks import seeded

from moco_transfer.convert.key_maps import detectron2_name
from moco_transfer.convert.verify import (
    compare,
    detectron2_features,
    generated_image,
    torchvision_features,
)
from moco_transfer.models.resnets import ARCHITECTURES
from moco_transfer.runtime.errors import InputError


def renamed(state):
    return {
        detectron2_name(name): tensor for name, tensor in state.items() if detectron2_name(name)
    }


LARGE = (
    "resnet152",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet101_2",
    "resnet50_w2x",
    "resnet50_w4x",
)


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=[pytest.mark.slow] * (arch in LARGE)) for arch in ARCHITECTURES],
)
def test_features__detectron2_and_torchvision_agree(arch):
    model = seeded(arch)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("fc.")
    }
    image = generated_image(size=32)
    with torch.no_grad():  # torchvision's own forward, by hooks, as a third opinion
        seen = []
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        model(image)
    ours = torchvision_features(state, image, arch=arch)
    theirs = detectron2_features(renamed(state), image)
    for stage, expected in zip(("res2", "res3", "res4", "res5"), seen, strict=True):
        assert torch.equal(ours[stage], expected)
        assert (theirs[stage] - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert ours["res5"].abs().max() > 0.1  # not all zeros


def test_features__strides_in_the_1x1_convolutions_are_another_network():
    state = renamed(seeded("resnet50").state_dict())
    there = detectron2_features(state, generated_image(), stride_in_1x1=True)
    here = detectron2_features(state, generated_image())
    assert (
        torch.equal(there["res2"], here["res2"])
        and (there["res3"] - here["res3"]).abs().max() > 1e-2
    )
    with pytest.raises(InputError, match=r"x.pkl would not compute .* res3"):
        compare(here, there, path="x.pkl")


@pytest.mark.parametrize(
    "pair",
    [
        ("res2.0.conv1.norm.weight", "res2.0.conv1.norm.bias"),
        ("res3.1.conv2.weight", "res3.0.conv2.weight"),
        ("res5.1.conv2.norm.running_var", "res5.1.conv1.norm.running_var"),
    ],
)
def test_compare__sees_two_tensors_swapped(pair):
    state = renamed(seeded("resnet18").state_dict())
    before = detectron2_features(state, generated_image())
    state[pair[0]], state[pair[1]] = state[pair[1]], state[pair[0]]
    with pytest.raises(InputError, match="res5"):
        compare(before, detectron2_features(state, generated_image()), path="x.pkl")


def test_compare__values_that_are_not_finite_fail():
    good = {stage: torch.ones(1, 1, 1, 1) for stage in ("res2", "res3", "res4", "res5")}
    with pytest.raises(InputError, match="res4"):
        compare(good, {**good, "res4": torch.full((1, 1, 1, 1), float("nan"))}, path="x.pkl")
    near = {**good, "res4": torch.full((1, 1, 1, 1), 1 + 5e-6)}
    assert compare(good, near, path="x.pkl")["res4"] < 1e-5
