"""How each project names the tensors of a ResNet: tables between those names and torchvision's.

Every source is read into torchvision's names, every target written from them.

Source:
    facebookresearch/detectron2@02b5c4e2 modeling/backbone/resnet.py, and for Caffe2
        checkpoint/c2_model_loading.py.
    Sequential: ``nn.Sequential(*list(resnet.children())[:-1])`` as in lightly's examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..models.resnets import BATCH_COUNTER

_MOST_BLOCKS = 48  # in a stage; ResNet-152 has 36

# Convolutions and norms alternate.
_STEM = ("conv1.", "bn1.")
_PARTS = ("conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.", "downsample.0.", "downsample.1.")


def _places(stem: tuple[str, ...], block: str, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield where the convolutions and norms of a ResNet lie, in the same order for all namings."""
    yield from stem
    for stage in (1, 2, 3, 4):
        for index in range(_MOST_BLOCKS):
            place = block.format(index, layer=stage, res=stage + 1, child=stage + 3)
            yield from (place + part for part in parts)


_CONV = {"weight": "weight"}
_NORM = {n: n for n in ("weight", "bias", "running_mean", "running_var", BATCH_COUNTER)}


def _table(
    stem: tuple[str, ...],
    block: str,
    parts: tuple[str, ...],
    conv: Mapping[str, str] = _CONV,
    norm: Mapping[str, str] = _NORM,
) -> dict[str, str]:
    """Return a naming's name -> torchvision's, of every tensor."""
    ours = _places(_STEM, "layer{layer}.{0}.", _PARTS)
    pairs = enumerate(zip(_places(stem, block, parts), ours, strict=True))
    return {
        theirs + tensor: our + name
        for number, (theirs, our) in pairs
        for tensor, name in (norm if number % 2 else conv).items()
    }


_TABLES = {
    "torchvision": _table(_STEM, "layer{layer}.{0}.", _PARTS),
    "detectron2": _table(
        ("stem.conv1.", "stem.conv1.norm."),
        "res{res}.{0}.",
        (
            *("conv1.", "conv1.norm.", "conv2.", "conv2.norm.", "conv3.", "conv3.norm."),
            *("shortcut.", "shortcut.norm."),
        ),
    ),
    # Positions among the children of torchvision's ResNet: conv1, bn1, relu, maxpool, layer1 ...
    "sequential": _table(("0.", "1."), "{child}.{0}.", _PARTS),
    "caffe2": _table(
        ("conv1_", "res_conv1_bn_"),
        "res{res}_{0}_",
        (
            *("branch2a_", "branch2a_bn_", "branch2b_", "branch2b_bn_"),
            *("branch2c_", "branch2c_bn_", "branch1_", "branch1_bn_"),
        ),
        {"w": "weight"},
        # "s" and "b" are all that Detectron 1's batch norm has, fused into scale and shift; see
        # formats._fill_fused_norms.
        {
            **{"gamma": "weight", "s": "weight", "beta": "bias", "b": "bias"},
            **{"running_mean": "running_mean", "rm": "running_mean"},
            **{"running_var": "running_var", "riv": "running_var"},
        },
    ),
}

READ_NAME: dict[str, Callable[[str], str | None]] = {n: t.get for n, t in _TABLES.items()}
"""Naming -> function: one of its names -> torchvision's, None when it is no backbone tensor."""

WRITE_NAME: dict[str, Callable[[str], str | None]] = {
    naming: {ours: theirs for theirs, ours in reversed(table.items())}.get
    for naming, table in _TABLES.items()
}
"""Naming -> function: torchvision's name -> that naming's, None when it is no backbone tensor."""

detectron2_name = WRITE_NAME["detectron2"]
"""``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``, without ``backbone.bottom_up.``."""
