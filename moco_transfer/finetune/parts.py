"""A detector as the start of another: which of its parts are taken, and which are new.

The backbone must be whole, as for every other row. A head, the RPN or a predictor is taken whole or
not at all: one whose tensors do not fit, or whose classes are others, starts as in a row without a
detector. Its weights were drawn from the seed before the rest was loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Part of a detector -> its tensors; a tensor is of the first part that it matches.
_PARTS = {
    name: re.compile(pattern)
    for name, pattern in {
        "box predictor": r"roi_heads\.box_predictor\..*",
        "mask predictor": r"roi_heads\.mask_head\.predictor\..*",
        "keypoint predictor": r"roi_heads\.keypoint_head\.score_lowres\..*",
        "box head": r"roi_heads\.box_head\..*",
        "mask head": r"roi_heads\.mask_head\..*",
        "keypoint head": r"roi_heads\.keypoint_head\..*",
        "semantic head": r"sem_seg_head\..*",
        "RPN": r"proposal_generator\..*",
        "norms of the FPN": r"backbone\.fpn_\w+\.(?:norm\..*|bias)",
        "norm behind res5": r"roi_heads\.res5\.norm\..*",
    }.items()
}
_OF_CLASSES = ("box predictor", "mask predictor", "semantic head")
_OF_KEYPOINTS = ("keypoint predictor",)
#: What Detectron2 kept among the weights of older files, and does not learn.
NO_WEIGHT = re.compile(r"pixel_(?:mean|std)|proposal_generator\.anchor_generator\..*")


def part_of(key: str) -> str | None:
    """Return which part a tensor is of; None for the backbone's and unknown ones."""
    return next((name for name, pattern in _PARTS.items() if pattern.fullmatch(key)), None)


def new_parts(
    state: Mapping[str, Any], have: Mapping[str, Any], names: Mapping[str, Any], top: Mapping
) -> dict[str, str]:
    """Return the parts of a detector (``state``) that a file of another (``have``) cannot give, and
    why; also those of the file that the detector does not have.

    ``names`` holds ``class_names`` and ``keypoints`` of the data, ``top`` those of the file.
    """
    wanted, there = _by_part(state), _by_part(have)
    found = {}
    for part in dict.fromkeys([*wanted, *there]):
        key = "class_names" if part in _OF_CLASSES else "keypoints" * (part in _OF_KEYPOINTS)
        if part not in wanted:
            found[part] = "left out: this config has none"
        elif part not in there:
            found[part] = "new: the file has none"
        elif key and not top.get(key):
            found[part] = f"new: the file does not name its {key.replace('_', ' ')}"
        elif key and list(top[key]) != list(names.get(key) or ()):
            counts = f"{len(top[key])} there, {len(names.get(key) or ())} here"
            found[part] = f"new: other {key.replace('_', ' ')} ({counts})"
        elif wanted[part] != there[part]:
            found[part] = "new: of another shape"
    return found


def without_parts(tensors: Mapping[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """Return the tensors that are of none of these parts."""
    left_out = frozenset(parts)
    return {key: tensor for key, tensor in tensors.items() if part_of(key) not in left_out}


def _by_part(tensors: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in tensors.items():
        part = part_of(key)
        if part is not None and not NO_WEIGHT.fullmatch(key) and not key.endswith("_tracked"):
            found.setdefault(part, {})[key] = tuple(map(int, tensor.shape))
    return found
