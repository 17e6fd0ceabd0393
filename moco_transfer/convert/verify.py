"""Prove a conversion: the file read and the file written compute the same features of the same
image.

A source in torchvision's layout runs in torchvision's ResNet. One in Detectron2's layout runs in
:func:`detectron2_features`, which is written from Detectron2's definition of the network and goes
by Detectron2's names alone: it knows none of this package's key maps, so that a wrong map shows as
another feature.

Shapes in this module:
    N: images    C: channels, in the order that the weights expect    H, W: pixels
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from moco_transfer.models import BATCH_NORM_EPS, IMAGENET_PIXELS, build_encoder
from moco_transfer.runtime.errors import InputError

TOLERANCE = 1e-5
"""Largest difference allowed between two features, as a share of the largest feature of the stage
(of 1 when that is less).
"""

STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Verification:
    """The largest difference of each stage's features, as a share of its largest feature (of 1 when
    that is less).

    Attributes:
        differences: res2 to res5 -> difference.
        image: What the features are of.
    """

    differences: dict[str, float]
    image: str = "a generated image"

    def worst(self, other: Verification) -> Verification:
        """Return the larger differences of the two, stage by stage."""
        return Verification(
            {
                stage: max(value, other.differences[stage])
                for stage, value in self.differences.items()
            },
            self.image,
        )

    def __str__(self) -> str:
        """Return one line, for the log."""
        shown = ", ".join(
            f"{stage} {difference:.1e}" for stage, difference in self.differences.items()
        )
        return f"verified: features of {self.image} agree to {TOLERANCE:.0e} ({shown})"


def generated_image(*, size: int = 64, seed: int = 0) -> Tensor:
    """Return an image (1, 3, size, size), float32, normalised as a network expects: a colour ramp
    with noise on it.
    """
    ramp = torch.linspace(-2, 2, size)
    image = torch.stack(
        [ramp.expand(size, size), ramp[:, None].expand(size, size), ramp.flip(0).expand(size, size)]
    )
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    return (image + noise).unsqueeze(0)


def real_image(
    path: str | os.PathLike[str], pixels: Mapping[str, Any], *, size: int = 224
) -> Tensor:
    """Return an image file (1, 3, size, size), float32, squeezed to a square and normalised as the
    weights expect.

    Args:
        path: An image of any of Pillow's formats.
        pixels: A stamp: ``format``, ``pixel_mean``, ``pixel_std`` (0-255 scale); where those are
            None, ImageNet's in RGB are taken.
        size: Side of the square, in pixels.

    Raises:
        InputError: If it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            values = np.array(
                image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float32
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"Cannot read {path} as an image ({error}); name another, or leave it out for a"
            " generated one."
        ) from error
    expected = {"format": "RGB", "mean": IMAGENET_PIXELS["mean"], "std": IMAGENET_PIXELS["std"]}
    if pixels["format"] is not None:
        expected = {
            "format": pixels["format"],
            "mean": pixels["pixel_mean"],
            "std": pixels["pixel_std"],
        }
    values = values[..., ::-1] if expected["format"] == "BGR" else values
    values = (values - np.array(expected["mean"], np.float32)) / np.array(
        expected["std"], np.float32
    )
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


@torch.no_grad()
def torchvision_features(
    state: Mapping[str, Tensor], image: Tensor, *, arch: str
) -> dict[str, Tensor]:
    """Return the features of layer1 to layer4 of torchvision's ResNet, under Detectron2's names
    res2 to res5.

    Args:
        state: torchvision's name -> tensor, complete but for ``fc`` and BN's counters.
        image: (N, 3, H, W), float32, normalised.
        arch: torchvision's name of the network.
    """
    with torch.device("meta"):
        model = build_encoder(arch, num_classes=1).eval()
    model.fc = torch.nn.Identity()
    counters = {
        name: torch.zeros((), dtype=torch.long)
        for name in model.state_dict()
        if name.endswith("num_batches_tracked")
    }
    floats = {name: tensor.float() for name, tensor in state.items() if name not in counters}
    model.load_state_dict({**counters, **floats}, strict=True, assign=True)
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    features = {}
    for stage, layer in zip(
        STAGES, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True
    ):
        features[stage] = x = layer(x)
    return features


@torch.no_grad()
def detectron2_features(
    weights: Mapping[str, Tensor], image: Tensor, *, stride_in_1x1: bool = False
) -> dict[str, Tensor]:
    """Return the features res2 to res5 of Detectron2's ResNet, in evaluation mode.

    Args:
        weights: Detectron2's name -> tensor (``stem.conv1.weight``,
            ``res2.0.conv1.norm.running_var``).
        image: (N, 3, H, W), float32, normalised.
        stride_in_1x1: Where a bottleneck block halves the image: MODEL.RESNETS.STRIDE_IN_1X1.

    Source:
        facebookresearch/detectron2@02b5c4e2 modeling/backbone/resnet.py, BasicStem, BasicBlock,
        BottleneckBlock, make_stage.
    """

    def convolve(x: Tensor, name: str, *, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"].float()
        # The group count is not in the file: a grouped convolution has fewer input channels per
        # filter than its input has.
        x = F.conv2d(
            x,
            weight,
            stride=stride,
            padding=weight.shape[-1] // 2,
            groups=x.shape[1] // weight.shape[1],
        )
        mean, var, scale, shift = (weights[f"{name}.norm.{part}"].float() for part in _NORM)
        return F.batch_norm(x, mean, var, scale, shift, training=False, eps=BATCH_NORM_EPS)

    def block(x: Tensor, name: str, *, stride: int) -> Tensor:
        shortcut = (
            convolve(x, f"{name}.shortcut", stride=stride)
            if f"{name}.shortcut.weight" in weights
            else x
        )
        is_bottleneck = f"{name}.conv3.weight" in weights
        first = stride if stride_in_1x1 or not is_bottleneck else 1
        out = F.relu(convolve(x, f"{name}.conv1", stride=first))
        out = convolve(out, f"{name}.conv2", stride=stride // first)
        if is_bottleneck:
            out = convolve(F.relu(out), f"{name}.conv3")
        return F.relu(out + shortcut)

    x = F.max_pool2d(
        F.relu(convolve(image, "stem.conv1", stride=2)), kernel_size=3, stride=2, padding=1
    )
    features = {}
    for stage in STAGES:
        depth = len({name.split(".")[1] for name in weights if name.startswith(f"{stage}.")})
        for index in range(depth):
            x = block(x, f"{stage}.{index}", stride=2 if index == 0 and stage != "res2" else 1)
        features[stage] = x
    return features


_NORM = ("running_mean", "running_var", "weight", "bias")


def compare(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    path: object,
    image: str = Verification.image,
) -> Verification:
    """Compare the features of the file read with those of the file written.

    Args:
        before: Stage -> features (N, C, H, W).
        after: The same stages of the other file.
        path: The file to write, for the message.
        image: What the features are of, for the report.

    Raises:
        InputError: If a feature differs by more than the tolerance or is not finite.
    """
    differences = {}
    for stage in STAGES:
        left, right = before[stage], after[stage]
        scale = max(1.0, left.abs().max().item())
        differences[stage] = (
            (left - right).abs().max().item() / scale if left.shape == right.shape else float("nan")
        )
    # NaN compares as False with everything: it has to fail.
    wrong = {stage: value for stage, value in differences.items() if not value <= TOLERANCE}
    if wrong:
        shown = ", ".join(f"{stage} {value:.1e}" for stage, value in wrong.items())
        raise InputError(
            f"Not written: {path} would not compute the features of its source (difference,"
            f" expected at most {TOLERANCE:.0e}: {shown})."
        )
    return Verification(differences, image)
