"""How each project names the tensors of a ResNet: literal tables between those names and
torchvision's.

Conventions:
    torchvision's names (``conv1.weight``, ``layer1.0.bn2.bias``, ``layer2.0.downsample.0.weight``)
    are the common tongue in this package: every source is read into them and every target is
        written from them. All maps are one to one, so a name
    that went there and back is the same name.
Source:
    Detectron2: modeling/backbone/resnet.py; Caffe2: checkpoint/c2_model_loading.py, both
        facebookresearch/detectron2@02b5c4e2.
    Sequential: ``nn.Sequential(*list(resnet.children())[:-1])`` as in lightly's examples.
"""

from __future__ import annotations

import re

STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}

DETECTRON2_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
DETECTRON2_BLOCK = {
    "conv1": "conv1",
    "bn1": "conv1.norm",
    "conv2": "conv2",
    "bn2": "conv2.norm",
    "conv3": "conv3",
    "bn3": "conv3.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}

# Positions among the children of torchvision's ResNet: conv1, bn1, relu, maxpool, layer1 ...
# layer4, avgpool.
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

CAFFE2_STEM = {"conv1": "conv1", "res_conv1_bn": "bn1"}
CAFFE2_BLOCK = {
    "branch2a": "conv1",
    "branch2a_bn": "bn1",
    "branch2b": "conv2",
    "branch2b_bn": "bn2",
    "branch2c": "conv3",
    "branch2c_bn": "bn3",
    "branch1": "downsample.0",
    "branch1_bn": "downsample.1",
}
# Detectron2's R-50.pkl has gamma, beta and the running statistics. "s" and "b" are all that
# Detectron 1's batch norm has, fused into one scale and shift; see caffe2.fill_fused_norms.
CAFFE2_TENSOR = {
    "w": "weight",
    "gamma": "weight",
    "s": "weight",
    "beta": "bias",
    "b": "bias",
    "running_mean": "running_mean",
    "rm": "running_mean",
    "running_var": "running_var",
    "riv": "running_var",
}

_TENSOR = r"(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"
_TORCHVISION = re.compile(
    rf"(?:(?P<stage>layer[1-4])\.(?P<block>\d+)\.)?(?P<part>conv[123]|bn[123]|downsample\.[01])\.{_TENSOR}"
)
_DETECTRON2 = re.compile(
    rf"(?:(?P<stage>res[2-5])\.(?P<block>\d+)\.)?(?P<part>stem\.conv1|conv[123]|shortcut)(?P<norm>\.norm)?\.{_TENSOR}"
)
_SEQUENTIAL = re.compile(r"(?P<child>[014567])\.(?P<rest>.+)")
_CAFFE2 = re.compile(
    r"(?:res(?P<stage>[2-5])_(?P<block>\d+)_)?(?P<part>[a-z0-9_]+?)_"
    r"(?P<tensor>w|s|b|gamma|beta|running_mean|running_var|rm|riv)"
)


def detectron2_name(name: str) -> str | None:
    """Return Detectron2's name of a torchvision tensor, without ``backbone.bottom_up.``; None for
    what is not backbone.

    ``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``; ``conv1.weight`` -> ``stem.conv1.weight``;
    ``fc.weight`` -> None.
    """
    match = _TORCHVISION.fullmatch(name)
    if match is None:
        return None
    stage, block, part, tensor = match.group("stage", "block", "part", "tensor")
    if stage is None:
        return f"{DETECTRON2_STEM[part]}.{tensor}" if part in DETECTRON2_STEM else None
    return f"{STAGES[stage]}.{block}.{DETECTRON2_BLOCK[part]}.{tensor}"


def from_torchvision(name: str) -> str | None:
    """Return ``name`` itself when it names a backbone tensor of torchvision's ResNet, else None."""
    return name if detectron2_name(name) is not None else None


def from_detectron2(name: str) -> str | None:
    """Return torchvision's name of a Detectron2 tensor, None for what is not backbone: the inverse
    of detectron2_name.
    """
    match = _DETECTRON2.fullmatch(name)
    if match is None:
        return None
    stage, block, part, norm, tensor = match.group("stage", "block", "part", "norm", "tensor")
    table = DETECTRON2_STEM if stage is None else DETECTRON2_BLOCK
    parts = {theirs: ours for ours, theirs in table.items()}
    ours = parts.get(part + (norm or ""))
    if ours is None:
        return None
    if stage is None:
        return f"{ours}.{tensor}"
    stages = {theirs: name for name, theirs in STAGES.items()}
    return f"{stages[stage]}.{block}.{ours}.{tensor}"


def from_sequential(name: str) -> str | None:
    """Return torchvision's name of a tensor in a Sequential of a ResNet's children:
    ``4.0.conv1.weight`` -> ``layer1.0.…``.
    """
    match = _SEQUENTIAL.fullmatch(name)
    return from_torchvision(f"{SEQUENTIAL[match['child']]}.{match['rest']}") if match else None


def from_caffe2(name: str) -> str | None:
    """Return torchvision's name of a Caffe2 blob: ``res2_0_branch2a_bn_gamma`` ->
    ``layer1.0.bn1.weight``; None for others.
    """
    match = _CAFFE2.fullmatch(name)
    if match is None:
        return None
    stage, block, part, tensor = match.group("stage", "block", "part", "tensor")
    ours = (CAFFE2_STEM if stage is None else CAFFE2_BLOCK).get(part)
    if ours is None or (tensor == "w") == part.endswith(
        "_bn"
    ):  # a convolution's bias has no place in a ResNet with BN
        return None
    place = "" if stage is None else f"layer{int(stage) - 1}.{block}."
    return f"{place}{ours}.{CAFFE2_TENSOR[tensor]}"


READ_NAME = {
    "torchvision": from_torchvision,
    "detectron2": from_detectron2,
    "sequential": from_sequential,
    "caffe2": from_caffe2,
}
"""Naming -> the function that turns one of its names into torchvision's, or None when it is not a
backbone tensor.
"""


def sequential_name(name: str) -> str:
    """Return the name of torchvision's tensor in a Sequential of the ResNet's children: the inverse
    of from_sequential.
    """
    head, rest = name.split(".", 1)
    children = {ours: child for child, ours in SEQUENTIAL.items()}
    return f"{children[head]}.{rest}"


def caffe2_name(name: str) -> str:
    """Return the Caffe2 blob of torchvision's tensor: the inverse of from_caffe2."""
    match = _TORCHVISION.fullmatch(name)
    stage, block, part, tensor = match.group("stage", "block", "part", "tensor")
    parts = {
        ours: theirs for theirs, ours in (CAFFE2_STEM if stage is None else CAFFE2_BLOCK).items()
    }
    kinds = {"weight": "gamma" if parts[part].endswith("_bn") else "w", "bias": "beta"}
    place = "" if stage is None else f"res{int(stage[-1]) + 1}_{block}_"
    return f"{place}{parts[part]}_{kinds.get(tensor, tensor)}"


WRITE_NAME = {
    "torchvision": str,
    "detectron2": detectron2_name,
    "sequential": sequential_name,
    "caffe2": caffe2_name,
}
"""Naming -> the function that turns torchvision's name of a backbone tensor into that naming's."""
