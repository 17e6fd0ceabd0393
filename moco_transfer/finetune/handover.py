"""The hand-over of weights to a detector: everything that is expected is there and fits, or the run does not start.

Weights that match nothing still give an AP, as does a swapped colour order; both are refused here.

Names:
    A backbone file names its tensors ``stem.…``, ``res2.…`` to ``res5.…``. In a detector they live below ``backbone.bottom_up.``
    (FPN), ``backbone.`` (C4) or ``roi_heads.`` (C4's res5, which is part of its head).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..convert import BackboneWeights, coverage, load_backbone
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)

_TRUNK = ("stem.", "res2.", "res3.", "res4.", "res5.")
_PLACES = ("backbone.bottom_up.", "backbone.", "roi_heads.")
_ADDED_BY_THE_DETECTOR = ("res5.norm.",)  # the extra BN of Res5ROIHeadsExtraNorm is new in every row of a table
_BATCH_COUNTER = "num_batches_tracked"
_PIXEL_TOLERANCE = 1e-2  # on the 0-255 scale: files round 0.485 * 255 differently


def trunk_places(model: nn.Module) -> dict[str, str]:
    """Return, for each tensor of the pre-trained trunk, its key in the detector: ``res2.0.conv1.weight`` -> ``backbone.….weight``."""
    places = {}
    for key in model.state_dict():
        for place in _PLACES:
            name = key.removeprefix(place)
            if name != key and name.startswith(_TRUNK) and not name.startswith(_ADDED_BY_THE_DETECTOR):
                if not name.endswith(_BATCH_COUNTER):
                    places[name] = key
                break
    return places


def load_weights(
    model: nn.Module,
    path: str,
    *,
    arch: str,
    pixels: Mapping[str, Any],
    allow_partial: bool = False,
) -> dict[str, Any]:
    """Load initial weights into a detector and return what results.json says of them.

    Args:
        model: The detector, changed in place.
        path: A converted backbone, or a fine-tuned detector's checkpoint; ``""`` leaves the random initialisation.
        arch: Name of the trunk for messages, e.g. ``resnet50``.
        pixels: The config's ``format``, ``mean``, ``std``, ``stride_in_1x1``; checked against the file's stamp.
        allow_partial: Start although some tensors of the trunk are not covered.

    Returns:
        ``{"path", "sha256", "stamp", "coverage"}``; coverage holds ``expected``, ``matched`` and the names ``missing``, ``unused``, ``misshapen``.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no checkpoint, the stamp contradicts the config, or not every tensor is covered.
    """
    if not path:
        return {"path": "", "sha256": None, "stamp": None, "coverage": None}
    weights = load_backbone(path)
    if weights.stamp is not None:
        check_pixels(weights.stamp, pixels, path)
    else:
        logger.warning("%s carries no stamp: its colour order and pixel statistics cannot be checked against the config.", path)
    if weights.kind == "detector":
        covered = _load_detector(model, weights, path)
    else:
        covered = _load_trunk(model, weights, path, arch, allow_partial)
    return {"path": path, "sha256": weights.sha256, "stamp": weights.stamp, "coverage": covered}


def _load_trunk(model: nn.Module, weights: BackboneWeights, path: str, arch: str, allow_partial: bool) -> dict[str, Any]:
    places = trunk_places(model)
    state = model.state_dict()
    found = coverage(weights.arrays, {name: state[key] for name, key in places.items()})
    if not found.is_complete and not allow_partial:
        raise InputError(found.sentence(path, arch))
    _copy(model, {places[name]: weights.arrays[name] for name in found.matched})
    if not found.is_complete:
        logger.warning("%s --allow-partial: going on.", found.sentence(path, arch, advice="This backbone is partly random;"))
    else:
        logger.info("%s: all %d tensors of the %s trunk loaded; the detector's own layers start random", path, found.num_expected, arch)
    return {
        "expected": found.num_expected,
        "matched": len(found.matched),
        "missing": list(found.missing),
        "unused": list(found.unused),
        "misshapen": sorted(found.misshapen),
    }


def _load_detector(model: nn.Module, weights: BackboneWeights, path: str) -> dict[str, Any]:
    found = coverage(weights.state_dict, model.state_dict())
    if not found.is_complete:
        misshapen = [f"{name} {got} instead of {want}" for name, (got, want) in found.misshapen.items()]
        raise InputError(
            f"{path} is a detector of another config: it covers {len(found.matched)} of {found.num_expected} tensors. "
            f"Missing: {_some(found.missing)}. "
            f"Unused: {_some(found.unused)}. Misshapen: {_some(misshapen)}. Use the config that it was trained with (config.yaml beside it)."
        )
    _copy(model, {name: weights.state_dict[name] for name in found.matched})
    logger.info("%s: all %d tensors of the detector loaded", path, found.num_expected)
    return {"expected": found.num_expected, "matched": len(found.matched), "missing": [], "unused": [], "misshapen": []}


def _copy(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    state = model.state_dict()
    with torch.no_grad():
        for key, array in arrays.items():
            # A copy: arrays read from a pickle may be read-only or of another byte order.
            state[key].copy_(torch.from_numpy(np.array(array, dtype=np.float32)))


def _some(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def check_pixels(stamp: Mapping[str, Any], pixels: Mapping[str, Any], path: str) -> None:
    """Refuse weights whose colour order, pixel statistics or stride are not the config's.

    Args:
        stamp: The file's stamp; an entry that is None or absent is not known and not checked.
        pixels: ``format``, ``mean``, ``std``, ``stride_in_1x1`` of the config.
        path: The file, for messages.

    Raises:
        InputError: Naming both values and the config keys.
    """
    if stamp.get("format") and stamp["format"] != pixels["format"]:
        raise InputError(
            f"{path} was trained on {stamp['format']} pictures, but the config says INPUT.FORMAT {pixels['format']!r}. "
            f"Set INPUT.FORMAT {stamp['format']} with its pixel statistics, or use the *_msra.yaml twin for BGR weights."
        )
    for name, key in (("mean", "MODEL.PIXEL_MEAN"), ("std", "MODEL.PIXEL_STD")):
        theirs, ours = stamp.get(f"pixel_{name}"), list(pixels[name])
        if theirs and (len(theirs) != len(ours) or max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > _PIXEL_TOLERANCE):
            raise InputError(
                f"{path} was trained with pixel {name} {[round(v, 3) for v in theirs]}, but the config says {key} {[round(v, 3) for v in ours]}. "
                f'Set {key} "{[round(v, 3) for v in theirs]}".'
            )
    stride = stamp.get("stride_in_1x1")
    bottleneck = stamp.get("arch") not in ("resnet18", "resnet34")  # basic blocks have no 1x1 convolution to stride in
    if stride is not None and bottleneck and bool(stride) != bool(pixels["stride_in_1x1"]):
        raise InputError(
            f"{path} has its stride in the {'1x1' if stride else '3x3'} convolutions, but the config says MODEL.RESNETS.STRIDE_IN_1X1 "
            f"{pixels['stride_in_1x1']}. Set it to {stride}."
        )
