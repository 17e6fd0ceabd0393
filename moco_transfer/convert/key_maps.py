"""How each project names the tensors of a ResNet: tables between those names and torchvision's.

torchvision's names (``conv1.weight``, ``layer1.0.bn2.bias``, ``layer2.0.downsample.0.weight``) are
the common ones of this package: every source is read into them, every target written from them.
All maps are one to one.

Source:
    Detectron2: modeling/backbone/resnet.py; Caffe2: checkpoint/c2_model_loading.py, both
        facebookresearch/detectron2@02b5c4e2.
    Sequential: ``nn.Sequential(*list(resnet.children())[:-1])`` as in lightly's examples.
"""

from __future__ import annotations

import re

# Between the parts of a stem (left) and of a block (right).
_DETECTRON2_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
_DETECTRON2 = {f"conv{i}": f"conv{i}" for i in "123"} | {f"bn{i}": f"conv{i}.norm" for i in "123"}
_DETECTRON2 |= {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}

_CAFFE2_STEM = {"conv1": "conv1", "bn1": "res_conv1_bn"}
_CAFFE2 = {f"conv{i}": f"branch2{c}" for i, c in zip("123", "abc", strict=True)}
_CAFFE2 |= {f"bn{i}": f"branch2{c}_bn" for i, c in zip("123", "abc", strict=True)}
_CAFFE2 |= {"downsample.0": "branch1", "downsample.1": "branch1_bn"}
# Detectron2's R-50.pkl has gamma, beta and the running statistics. "s" and "b" are all that
# Detectron 1's batch norm has, fused into scale and shift; see formats.fill_fused_norms.
_CAFFE2_TENSOR = {
    **{"w": "weight", "gamma": "weight", "s": "weight", "beta": "bias", "b": "bias"},
    **{"running_mean": "running_mean", "rm": "running_mean"},
    **{"running_var": "running_var", "riv": "running_var"},
}

# Positions among the children of torchvision's ResNet: conv1, bn1, relu, maxpool, layer1 ...
_SEQUENTIAL = {"conv1": "0", "bn1": "1"} | {f"layer{i}": str(i + 3) for i in (1, 2, 3, 4)}

_TENSOR = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_OURS = re.compile(rf"(?:layer([1-4])\.(\d+)\.)?(conv[123]|bn[123]|downsample\.[01])\.{_TENSOR}")
_THEIRS = re.compile(
    rf"(?:res([2-5])\.(\d+)\.)?(stem\.conv1(?:\.norm)?|(?:conv[123]|shortcut)(?:\.norm)?)\.{_TENSOR}"
)
_BLOB = re.compile(
    r"(?:res([2-5])_(\d+)_)?([a-z0-9_]+?)_(w|s|b|gamma|beta|running_mean|running_var|rm|riv)"
)


def detectron2_name(name: str) -> str | None:
    """Return Detectron2's name of a torchvision tensor, None for what is not backbone.

    ``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``; ``conv1.weight`` -> ``stem.conv1.weight``.
    """
    if not (match := _OURS.fullmatch(name)):
        return None
    stage, block, part, tensor = match.groups()
    if stage is None:
        return f"{_DETECTRON2_STEM[part]}.{tensor}" if part in _DETECTRON2_STEM else None
    return f"res{int(stage) + 1}.{block}.{_DETECTRON2[part]}.{tensor}"


def _from_torchvision(name: str) -> str | None:
    return name if detectron2_name(name) else None


def _from_detectron2(name: str) -> str | None:
    if not (match := _THEIRS.fullmatch(name)):
        return None
    stage, block, part, tensor = match.groups()
    ours = _inverse(_DETECTRON2 if stage else _DETECTRON2_STEM).get(part)
    place = f"layer{int(stage) - 1}.{block}." if stage else ""
    return f"{place}{ours}.{tensor}" if ours else None


def _from_sequential(name: str) -> str | None:
    child, _, rest = name.partition(".")
    ours = _inverse(_SEQUENTIAL).get(child)
    return _from_torchvision(f"{ours}.{rest}") if ours else None


def _from_caffe2(name: str) -> str | None:
    if not (match := _BLOB.fullmatch(name)):
        return None
    stage, block, part, tensor = match.groups()
    ours = _inverse(_CAFFE2 if stage else _CAFFE2_STEM).get(part)
    # A convolution's bias has no place in a ResNet with BN.
    if ours is None or (tensor == "w") == part.endswith("_bn"):
        return None
    place = f"layer{int(stage) - 1}.{block}." if stage else ""
    return f"{place}{ours}.{_CAFFE2_TENSOR[tensor]}"


def _sequential_name(name: str) -> str:
    head, rest = name.split(".", 1)
    return f"{_SEQUENTIAL[head]}.{rest}"


def caffe2_name(name: str) -> str:
    """Return the Caffe2 blob of torchvision's tensor: ``bn1.bias`` -> ``res_conv1_bn_beta``."""
    match = _OURS.fullmatch(name)
    assert match, name
    stage, block, part, tensor = match.groups()
    theirs = (_CAFFE2 if stage else _CAFFE2_STEM)[part]
    kinds = {"weight": "gamma" if theirs.endswith("_bn") else "w", "bias": "beta"}
    place = f"res{int(stage) + 1}_{block}_" if stage else ""
    return f"{place}{theirs}_{kinds.get(tensor, tensor)}"


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}


READ_NAME = {
    "torchvision": _from_torchvision,
    "detectron2": _from_detectron2,
    "sequential": _from_sequential,
    "caffe2": _from_caffe2,
}
"""Naming -> function: one of its names -> torchvision's, None when it is no backbone tensor."""

WRITE_NAME = {
    "torchvision": str,
    "detectron2": detectron2_name,
    "sequential": _sequential_name,
    "caffe2": caffe2_name,
}
"""Naming -> function: torchvision's name of a backbone tensor -> that naming's."""
