"""The hand-over of weights to a detector: everything that is expected is there and fits, or the run
does not start.

A backbone file names its tensors ``stem.…``, ``res2.…`` to ``res5.…``. In a detector they are below
``backbone.bottom_up.`` (FPN), ``backbone.`` (C4) or ``roi_heads.`` (C4's res5).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from ..convert import BackboneWeights, Coverage, coverage, load_backbone
from ..models import MSRA_PIXELS
from ..models.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..models.resnets import BATCH_COUNTER
from ..runtime.text import parse_yaml, read_text
from .parts import NO_WEIGHT, new_parts, without_parts

logger = logging.getLogger(__name__)

RANDOM, SELF_SUPERVISED, SUPERVISED = "random", "self-supervised", "supervised"
DETECTOR, UNKNOWN = "detector", "unknown"

# A trunk's tensor among a detector's; the norm behind res5 is new in every row of a table.
_TRUNK_KEY = re.compile(
    r"(?:backbone\.bottom_up|backbone|roi_heads)\.((?:stem|res[2345])\.(?!norm\.).*)"
)

# Layouts (``source_format`` of a stamp) that were trained one way only.
_SUPERVISED_FORMATS = ("caffe2",)
_SELF_SUPERVISED_FORMATS = ("openselfsup", "lightly", "solo_learn", "vissl")
# torchvision publishes resnet50-0676ba61.pth and the like.
_TORCHVISION_FILE = re.compile(r"(wide_)?resne(x)?t[\w]*-[0-9a-f]{8}\.pth")
# What Detectron2's model zoo calls itself in its files, and its ResNets.
_ZOO_AUTHOR, _ZOO_ARCHS = "Detectron2 Model Zoo", ("resnet50", "resnet101")
# The official converter writes no stamp, but an author.
_MOCO_PIXELS = {
    "format": "RGB",
    "pixel_mean": [*IMAGENET_MEAN],
    "pixel_std": [*IMAGENET_STD],
    "stride_in_1x1": False,
}


@dataclass(frozen=True)
class InitialWeights:
    """What MODEL.WEIGHTS holds, read and not yet loaded.

    Attributes:
        path: As the config names it; "" for random initialisation.
        kind: One of the five constants above.
        content, stamp: The tensors, and what the file says of their origin; None without.
        pixels: ``format``, ``pixel_mean``, ``pixel_std``, ``stride_in_1x1``, ``arch`` that the
            weights were trained with; what is not known is None or absent.
        parts: Of a detector that another one starts from: part -> why it is new or left out.
    """

    path: str
    kind: str
    content: BackboneWeights | None
    stamp: Mapping[str, Any] | None
    pixels: Mapping[str, Any]
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str | None:
        """Of the file; None for random initialisation."""
        return self.content.sha256 if self.content is not None else None

    @property
    def row(self) -> str:
        """Name of the table's row: the stamp's mechanism, the kind, else the file's name."""
        if not self.path:
            return RANDOM
        mechanism = (self.stamp or {}).get("mechanism")
        return mechanism or (SUPERVISED if self.kind == SUPERVISED else Path(self.path).stem)


def read_weights(path: str, *, init: str | None = None) -> InitialWeights:
    """Read what MODEL.WEIGHTS names; raises as ``convert.load_backbone``. ``init`` is what the user
    calls it, believed (``supervised``) where the file does not say what it is.
    """
    if not path:
        return InitialWeights("", RANDOM, None, None, {})
    content = load_backbone(path)
    stamp, pixels = content.stamp, content.stamp or {}
    if content.kind == DETECTOR:
        return InitialWeights(
            path, DETECTOR, content, stamp, pixels or _trained_with(content, path)
        )
    kind = _kind(content, init)
    if stamp is None and kind == SELF_SUPERVISED:
        pixels = _MOCO_PIXELS | {"arch": content.arch}
    return InitialWeights(path, kind, content, stamp, pixels)


def _kind(content: BackboneWeights, init: str | None) -> str:
    origin = content.stamp or {}
    if origin.get("mechanism"):
        return SUPERVISED if origin["mechanism"] == SUPERVISED else SELF_SUPERVISED
    source_format, source = origin.get("source_format"), str(origin.get("source", ""))
    if source_format in _SUPERVISED_FORMATS or _TORCHVISION_FILE.fullmatch(source):
        return SUPERVISED
    is_moco = content.stamp is None and content.top.get("__author__") == "MOCO"
    if is_moco or source_format in _SELF_SUPERVISED_FORMATS:
        return SELF_SUPERVISED
    return SUPERVISED if (init or "").startswith(SUPERVISED) else UNKNOWN


def _trained_with(content: BackboneWeights, path: str) -> dict[str, Any]:
    """Return the pixels in the config of a detector, inside the file or, as Detectron2 writes it,
    next to it; what is known of Detectron2's model zoo; else ``{}``.
    """
    text = content.top.get("config")
    file = Path(path).with_name("config.yaml")
    if not isinstance(text, str):
        text = read_text(file, errors="replace") if file.is_file() else ""
    try:
        config: Any = parse_yaml(text)
        model = config["MODEL"]
        return {
            "format": config["INPUT"]["FORMAT"],
            "pixel_mean": list(model["PIXEL_MEAN"]),
            "pixel_std": list(model["PIXEL_STD"]),
            "stride_in_1x1": model["RESNETS"]["STRIDE_IN_1X1"],
            "arch": f"resnet{model['RESNETS']['DEPTH']}",
        }
    except (LookupError, TypeError, yaml.YAMLError):
        pass
    # Its first baselines start from MSRA's ResNets, the later ones, with norms in the FPN, do not.
    has_norm = any(".fpn_" in key and ".norm." in key for key in content.state_dict)
    is_zoo = content.top.get("__author__") == _ZOO_AUTHOR and content.arch in _ZOO_ARCHS
    if not is_zoo or has_norm:
        return {}
    pixels = {f"pixel_{key}": list(MSRA_PIXELS[key]) for key in ("mean", "std")}
    return pixels | {"format": "BGR", "stride_in_1x1": True, "arch": content.arch}


def trunk_places(keys: Sequence[str]) -> dict[str, str]:
    """Return the key in a detector of each tensor of the pre-trained trunk."""
    found = ((key, _TRUNK_KEY.fullmatch(key)) for key in keys if not key.endswith(BATCH_COUNTER))
    return {match[1]: key for key, match in found if match}


def as_start(weights: InitialWeights, state: Mapping[str, Any], dataset: Any) -> InitialWeights:
    """Return a detector's weights with the parts that they cannot give another detector, whose
    tensors are ``state`` and whose classes and keypoints a data set's; others as they are.
    """
    content = weights.content
    if content is None or weights.kind != DETECTOR:
        return weights
    names = {"class_names": dataset.class_names, "keypoints": dataset.keypoint_names}
    return replace(weights, parts=new_parts(state, content.state_dict, names, content.top))


def weights_coverage(state: Mapping[str, Any], weights: InitialWeights) -> Coverage | None:
    """Return which of a detector's tensors (``state``) the weights provide: of all for a detector,
    without the parts that start new, of the trunk for a backbone; None for random initialisation.
    """
    if weights.content is None:
        return None
    if weights.kind == DETECTOR:
        have = without_parts(weights.content.state_dict, weights.parts)
        have = {key: array for key, array in have.items() if not NO_WEIGHT.fullmatch(key)}
        return coverage(have, without_parts(state, weights.parts))
    places = trunk_places(list(state))
    return coverage(weights.content.arrays, {name: state[key] for name, key in places.items()})


def coverage_gap(found: Coverage | None, weights: InitialWeights, arch: str) -> str | None:
    """Return what is missing in a coverage in words, None where nothing is missing."""
    if found is None or found.is_complete:
        return None
    if weights.kind != DETECTOR:
        return found.sentence(weights.path, arch)
    advice = (
        "It is a detector of another config: use the config.yaml next to it, or its backbone alone:"
        f" moco-transfer convert {weights.path} backbone.pkl"
    )
    return found.sentence(weights.path, "this config", part="detector", advice=advice)


def describe_weights(weights: InitialWeights, found: Coverage | None) -> dict[str, Any]:
    """Return what results.json says of the weights."""
    covered: dict[str, Any] | None = None
    if found is not None:
        covered = {"expected": found.num_expected, "matched": len(found.matched)}
        names = {"missing": found.missing, "unused": found.unused, "misshapen": found.misshapen}
        covered |= {key: list(value) for key, value in names.items()}
    described = {key: getattr(weights, key) for key in ("path", "kind", "sha256", "stamp")}
    if weights.parts:
        described["parts"] = dict(weights.parts)
    if weights.kind == DETECTOR and weights.content is not None:
        sets = weights.content.top.get("datasets")
        sets = sets.get("train") if isinstance(sets, Mapping) else None
        described["trained_on"] = list(sets) if isinstance(sets, Mapping) else []
    return described | {"coverage": covered}


def load_weights(model: nn.Module, weights: InitialWeights) -> None:
    """Copy initial weights into a detector; what they do not cover stays as it is."""
    state = model.state_dict()
    found = weights_coverage(state, weights)
    if found is None or weights.content is None:
        return
    arrays, places = weights.content.state_dict, {name: name for name in state}
    if weights.kind != DETECTOR:
        arrays, places = weights.content.arrays, trunk_places(list(state))
    with torch.no_grad():
        for name in found.matched:
            # A copy: arrays read from a pickle may be read-only or of another byte order.
            array = np.array(arrays[name], dtype=np.float32)
            state[places[name]].copy_(torch.from_numpy(array))
    logger.info("%s: %d of %d tensors", weights.path, len(found.matched), found.num_expected)
