"""Prove a conversion: the file read and the file written compute the same features of an image.

torchvision's layout runs in torchvision's ResNet, Detectron2's and Hugging Face's in
:func:`detectron2_features`. Their names reach that function without this package's key maps, so
that a wrong map shows as another feature.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.resnets import BATCH_COUNTER, BATCH_NORM_EPS, build_encoder
from ..runtime.errors import InputError
from .formats import Source
from .key_maps import detectron2_name

TOLERANCE = 1e-5  # of features, as a share of the stage's largest (at least 1)
STAGES = ("res2", "res3", "res4", "res5")


def generated_image(*, size: int = 64, seed: int = 0, channels: int = 3) -> Tensor:
    """Return ramps with noise (1, channels, size, size), float32, normalised."""
    ramp = torch.linspace(-2, 2, size).expand(size, size)
    ramps = itertools.cycle([ramp, ramp.T, ramp.flip(1)])
    image = torch.stack([*itertools.islice(ramps, channels)])
    noise = torch.rand(channels, size, size, generator=torch.Generator().manual_seed(seed))
    return (image + noise).unsqueeze(0)


def features_of(
    source: Source, image: Tensor, *, arch: str, stride_in_1x1: bool
) -> dict[str, Tensor]:
    """Return the features of an encoder in the network that its file's names belong to."""
    weights = {source.own_names[name]: tensor for name, tensor in source.state.items()}
    if source.naming == "huggingface":
        weights = {_detectron2_name(name): tensor for name, tensor in weights.items()}
    elif stride_in_1x1 and source.naming != "detectron2":  # torchvision has no such ResNet
        weights = {detectron2_name(n) or n: tensor for n, tensor in source.state.items()}
    if stride_in_1x1 or source.naming in ("detectron2", "huggingface"):
        return detectron2_features(weights, image, stride_in_1x1=stride_in_1x1)
    return torchvision_features(source.state, image, arch=arch)


@torch.no_grad()
def torchvision_features(
    state: Mapping[str, Tensor], image: Tensor, *, arch: str
) -> dict[str, Tensor]:
    """Return the features of layer1 to layer4 of torchvision's ResNet, as res2 to res5.

    ``state``: torchvision's name -> tensor; ``image``: (N, C, H, W), float32, normalised.
    """
    with torch.device("meta"):
        model = build_encoder(arch, num_classes=1).eval()
        model.conv1.weight = nn.Parameter(torch.empty(state["conv1.weight"].shape))
    model.fc = nn.Identity()
    zero = torch.zeros((), dtype=torch.long)
    names = model.state_dict()
    weights = {n: zero if n.endswith(BATCH_COUNTER) else state[n].float() for n in names}
    model.load_state_dict(weights, assign=True)
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    features = {}
    for stage, name in zip(STAGES, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        features[stage] = x = getattr(model, name)(x)
    return features


@torch.no_grad()
def detectron2_features(
    weights: Mapping[str, Tensor], image: Tensor, *, stride_in_1x1: bool = False
) -> dict[str, Tensor]:
    """Return the features res2 to res5 of Detectron2's ResNet, in evaluation mode.

    ``weights``: Detectron2's name -> tensor; ``image``: (N, 3, H, W), float32, normalised. Source:
    facebookresearch/detectron2@02b5c4e2 modeling/backbone/resnet.py.
    """

    def convolve(x: Tensor, name: str, *, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"].float()
        # A grouped convolution has fewer input channels per filter than its input has.
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        norm = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (weights[f"{name}.norm.{part}"].float() for part in norm)
        return F.batch_norm(x, mean, var, scale, shift, training=False, eps=BATCH_NORM_EPS)

    def block(x: Tensor, name: str, *, stride: int) -> Tensor:
        has_shortcut = f"{name}.shortcut.weight" in weights
        shortcut = convolve(x, f"{name}.shortcut", stride=stride) if has_shortcut else x
        is_bottleneck = f"{name}.conv3.weight" in weights
        first = stride if stride_in_1x1 or not is_bottleneck else 1
        out = F.relu(convolve(x, f"{name}.conv1", stride=first))
        out = convolve(out, f"{name}.conv2", stride=stride // first)
        if is_bottleneck:
            out = convolve(F.relu(out), f"{name}.conv3")
        return F.relu(out + shortcut)

    x = F.relu(convolve(image, "stem.conv1", stride=2))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    features = {}
    for stage in STAGES:
        depth = len({name.split(".")[1] for name in weights if name.startswith(f"{stage}.")})
        for index in range(depth):
            x = block(x, f"{stage}.{index}", stride=2 if index == 0 and stage != "res2" else 1)
        features[stage] = x
    return features


def _detectron2_name(name: str) -> str:
    """Return Detectron2's name of a Hugging Face tensor."""
    name = name.replace("embedder.embedder.", "stem.conv1.")
    name = re.sub(r"encoder\.stages\.(\d)\.layers", lambda at: f"res{int(at[1]) + 2}", name)
    name = re.sub(r"\.layer\.(\d)", lambda at: f".conv{int(at[1]) + 1}", name)
    return name.replace(".convolution.", ".").replace(".normalization.", ".norm.")


def compare(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, path: object
) -> dict[str, float]:
    """Return stage -> largest difference of the features (N, C, H, W) of two files. InputError if
    a feature differs by more than the tolerance or is not finite.
    """
    differences = {
        stage: (before[stage] - after[stage]).abs().max().item()
        / max(1.0, before[stage].abs().max().item())
        for stage in STAGES
    }
    # NaN compares as False with everything: it has to fail.
    wrong = [f"{stage} {v:.1e}" for stage, v in differences.items() if not v <= TOLERANCE]
    if wrong:
        raise InputError(
            f"Not written: {path} would not compute the features of its source (difference,"
            f" expected at most {TOLERANCE:.0e}: {', '.join(wrong)})."
        )
    return differences
