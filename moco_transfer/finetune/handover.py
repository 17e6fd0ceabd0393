"""The hand-over of weights to a detector: everything that is expected is there and fits, or the run
does not start.

A backbone file names its tensors ``stem.…``, ``res2.…`` to ``res5.…``. In a detector they are below
``backbone.bottom_up.`` (FPN), ``backbone.`` (C4) or ``roi_heads.`` (C4's res5).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from ..convert import BackboneWeights, Coverage, coverage, load_backbone
from ..models.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..models.resnets import BATCH_COUNTER

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
    """

    path: str
    kind: str
    content: BackboneWeights | None
    stamp: Mapping[str, Any] | None
    pixels: Mapping[str, Any]

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
        return InitialWeights(path, DETECTOR, content, stamp, pixels or _trained_with(content))
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


def _trained_with(content: BackboneWeights) -> dict[str, Any]:
    """Return the pixels in the config of one of our detectors; ``{}`` for another's."""
    text = content.top.get("config")
    config: Any = yaml.safe_load(text) if isinstance(text, str) else None
    try:
        model = config["MODEL"]
        return {
            "format": config["INPUT"]["FORMAT"],
            "pixel_mean": list(model["PIXEL_MEAN"]),
            "pixel_std": list(model["PIXEL_STD"]),
            "stride_in_1x1": model["RESNETS"]["STRIDE_IN_1X1"],
            "arch": f"resnet{model['RESNETS']['DEPTH']}",
        }
    except (LookupError, TypeError):
        return {}


def trunk_places(keys: Sequence[str]) -> dict[str, str]:
    """Return the key in a detector of each tensor of the pre-trained trunk."""
    found = ((key, _TRUNK_KEY.fullmatch(key)) for key in keys if not key.endswith(BATCH_COUNTER))
    return {match[1]: key for key, match in found if match}


def weights_coverage(state: Mapping[str, Any], weights: InitialWeights) -> Coverage | None:
    """Return which of a detector's tensors (``state``) the weights provide: of all for a detector,
    of the trunk for a backbone; None for random initialisation.
    """
    if weights.content is None:
        return None
    if weights.kind == DETECTOR:
        return coverage(weights.content.state_dict, state)
    places = trunk_places(list(state))
    return coverage(weights.content.arrays, {name: state[key] for name, key in places.items()})


def coverage_gap(found: Coverage | None, weights: InitialWeights, arch: str) -> str | None:
    """Return what is missing in a coverage in words, None where nothing is missing."""
    if found is None or found.is_complete:
        return None
    if weights.kind != DETECTOR:
        return found.sentence(weights.path, arch)
    advice = "It is a detector of another config: use the config.yaml next to it."
    return found.sentence(weights.path, "this config", part="detector", advice=advice)


def describe_weights(weights: InitialWeights, found: Coverage | None) -> dict[str, Any]:
    """Return what results.json says of the weights."""
    covered: dict[str, Any] | None = None
    if found is not None:
        covered = {"expected": found.num_expected, "matched": len(found.matched)}
        names = {"missing": found.missing, "unused": found.unused, "misshapen": found.misshapen}
        covered |= {key: list(value) for key, value in names.items()}
    described = {key: getattr(weights, key) for key in ("path", "kind", "sha256", "stamp")}
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
