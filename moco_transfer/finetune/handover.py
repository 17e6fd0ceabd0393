"""The hand-over of weights to a detector: everything that is expected is there and fits, or the run
does not start. Whether the config suits the weights is for ``lint.py``.

Names:
    A backbone file names its tensors ``stem.…``, ``res2.…`` to ``res5.…``. In a detector they live
    below ``backbone.bottom_up.`` (FPN), ``backbone.`` (C4) or ``roi_heads.`` (C4's res5, which is
    part of its head).
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
from ..convert.read import read_checkpoint
from ..convert.zoo import local_file
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)

RANDOM, SELF_SUPERVISED, SUPERVISED = "random", "self-supervised", "supervised"
DETECTOR, UNKNOWN = "detector", "unknown"

_TRUNK = ("stem.", "res2.", "res3.", "res4.", "res5.")
_PLACES = ("backbone.bottom_up.", "backbone.", "roi_heads.")
# The extra BN of Res5ROIHeadsExtraNorm is new in every row of a table.
_ADDED_BY_THE_DETECTOR = ("res5.norm.",)
_BATCH_COUNTER = "num_batches_tracked"

# Layouts (``source_format`` of a stamp) that were trained one way only.
_SUPERVISED_FORMATS = ("caffe2",)
_SELF_SUPERVISED_FORMATS = ("openselfsup", "lightly", "solo_learn", "vissl")
# torchvision publishes resnet50-0676ba61.pth and the like; other files may have its layout without
# being its own.
_TORCHVISION_FILE = re.compile(r"(wide_)?resne(x)?t[\w]*-[0-9a-f]{8}\.pth")
_MOCO_AUTHOR = "MOCO"  # what the official converter writes as __author__, without any stamp
# The official code has one way of normalising images (ImageNet's statistics, here on 0-255) and
# one trunk, torchvision's.
_MOCO_PIXELS = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}


@dataclass(frozen=True)
class InitialWeights:
    """What MODEL.WEIGHTS holds, read and not yet loaded.

    Attributes:
        path: As the config names it; "" for random initialisation.
        kind: ``random``, ``self-supervised``, ``supervised``, ``detector`` (a fine-tuned one) or
            ``unknown``.
        content: The tensors, None for random initialisation.
        stamp: What the file says of its origin, None where it says nothing.
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
    """Read what MODEL.WEIGHTS names; no code in it is run.

    Args:
        path: A converted backbone, a name of published weights, a fine-tuned detector's checkpoint,
            or ``""`` for none.
        init: What the user calls this initialisation; believed (``supervised``) where the file does
            not say what it is.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no checkpoint, or in another layout than Detectron2's.
    """
    if not path:
        return InitialWeights("", RANDOM, None, None, {})
    content = load_backbone(path)
    stamp, pixels = content.stamp, content.stamp or {}
    if content.kind == DETECTOR:
        return InitialWeights(path, DETECTOR, content, stamp, pixels or _trained_with(path))
    kind = _kind(path, stamp, init)
    if stamp is None and kind == SELF_SUPERVISED:
        pixels = _MOCO_PIXELS | {"arch": content.arch}
    return InitialWeights(path, kind, content, stamp, pixels)


def _kind(path: str, stamp: Mapping[str, Any] | None, init: str | None) -> str:
    origin = dict(stamp or {})
    if origin.get("mechanism"):
        return SUPERVISED if origin["mechanism"] == SUPERVISED else SELF_SUPERVISED
    source_format, source = origin.get("source_format"), str(origin.get("source", ""))
    if source_format in _SUPERVISED_FORMATS or _TORCHVISION_FILE.fullmatch(source):
        return SUPERVISED
    if source_format in _SELF_SUPERVISED_FORMATS:
        return SELF_SUPERVISED
    if stamp is None and read_checkpoint(local_file(path)).top.get("__author__") == _MOCO_AUTHOR:
        return SELF_SUPERVISED
    return SUPERVISED if (init or "").startswith(SUPERVISED) else UNKNOWN


def _trained_with(path: str) -> dict[str, Any]:
    """Return the pixels of one of our detectors, from the config in its checkpoint; ``{}`` for
    another's.
    """
    text = read_checkpoint(local_file(path)).top.get("config")
    config = yaml.safe_load(text) if isinstance(text, str) else None
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
    """Return, for each tensor of the pre-trained trunk, its key among a detector's:
    ``res2.0.conv1.weight`` -> ``backbone.….weight``.
    """
    places = {}
    for key in keys:
        name = next((key.removeprefix(p) for p in _PLACES if key.startswith(p)), "")
        is_ours = name.startswith(_TRUNK) and not name.startswith(_ADDED_BY_THE_DETECTOR)
        if is_ours and not name.endswith(_BATCH_COUNTER):
            places[name] = key
    return places


def weights_coverage(state: Mapping[str, Any], weights: InitialWeights) -> Coverage | None:
    """Return which of a detector's tensors the weights provide; None for random initialisation.

    Args:
        state: The detector's keys -> tensors or shapes (on the meta device, for example).
        weights: A detector has to cover all of it, a backbone its trunk.
    """
    if weights.content is None:
        return None
    if weights.kind == DETECTOR:
        return coverage(weights.content.state_dict, state)
    places = trunk_places(list(state))
    return coverage(weights.content.arrays, {name: state[key] for name, key in places.items()})


def coverage_gap(found: Coverage | None, weights: InitialWeights, arch: str) -> str | None:
    """Return what is missing in a coverage in words, None where nothing is."""
    if found is None or found.is_complete:
        return None
    if weights.kind == DETECTOR:
        return _other_detector(found, weights.path)
    return found.sentence(weights.path, arch)


def describe_weights(weights: InitialWeights, found: Coverage | None) -> dict[str, Any]:
    """Return what results.json says of the weights."""
    covered = None
    if found is not None:
        covered = {
            "expected": found.num_expected,
            "matched": len(found.matched),
            "missing": list(found.missing),
            "unused": list(found.unused),
            "misshapen": sorted(found.misshapen),
        }
    return {
        "path": weights.path,
        "kind": weights.kind,
        "sha256": weights.sha256,
        "stamp": weights.stamp,
        "coverage": covered,
    }


def load_weights(model: nn.Module, weights: InitialWeights) -> None:
    """Copy initial weights into a detector; what they do not cover stays as it is."""
    found = weights_coverage(model.state_dict(), weights)
    if found is None or weights.content is None:
        return
    if weights.kind == DETECTOR:
        _copy(model, {name: weights.content.state_dict[name] for name in found.matched})
        logger.info("%s: all %d tensors of the detector loaded", weights.path, len(found.matched))
        return
    places = trunk_places(list(model.state_dict()))
    _copy(model, {places[name]: weights.content.arrays[name] for name in found.matched})
    logger.info(
        "%s: %d of %d tensors of the trunk loaded; the detector's own layers start random",
        weights.path,
        len(found.matched),
        found.num_expected,
    )


def read_detector(path: str) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Return a fine-tuned detector's tensors by its own keys, and what else its file holds; no code
    in it is run.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no checkpoint, or holds no detector.
    """
    content = read_checkpoint(local_file(path))
    prefix = "model." if any(name.startswith("model.") for name in content.tensors) else ""
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in content.tensors.items()
        if name.startswith(prefix)
    }
    if not any(name.startswith("roi_heads.box_predictor.") for name in state):
        raise InputError(
            f"{path} holds no detector: no tensor is called roi_heads.box_predictor.…, the first is"
            f" {next(iter(content.tensors), 'none')}. Give the OUTPUT_DIR of moco-transfer train,"
            " or a checkpoint in it."
        )
    return state, content.top


def load_detector_state(model: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    """Load a detector's tensors into a model, all of them.

    Raises:
        InputError: If they are not the model's.
    """
    found = coverage(state, model.state_dict())
    if not found.is_complete:
        raise InputError(_other_detector(found, path))
    _copy(model, {name: state[name] for name in found.matched})


def _other_detector(found: Coverage, path: str) -> str:
    misshapen = [f"{name} {got} instead of {want}" for name, (got, want) in found.misshapen.items()]
    return (
        f"{path} is a detector of another config: it covers {len(found.matched)} of"
        f" {found.num_expected} tensors. Missing: {_some(found.missing)}. Unused:"
        f" {_some(found.unused)}. Misshapen: {_some(misshapen)}. Use the config that it was trained"
        " with (config.yaml next to it)."
    )


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest if names else "none"


def _copy(model: nn.Module, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> None:
    state = model.state_dict()
    with torch.no_grad():
        for key, array in arrays.items():
            # A copy: arrays read from a pickle may be read-only or of another byte order.
            state[key].copy_(
                array
                if isinstance(array, torch.Tensor)
                else torch.from_numpy(np.array(array, dtype=np.float32))
            )
