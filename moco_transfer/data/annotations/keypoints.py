"""Keypoints of a data set: which of them change places in a mirrored image, and how many an image
has.

Source:
    The pairs of COCO's names equal Detectron2's (data/datasets/builtin_meta.py
    COCO_PERSON_KEYPOINT_FLIP_MAP); the count is that of data/build.py
    filter_images_with_few_keypoints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
# left_eye, eye_left, LeftEye, lefteye; L_eye, eye.l, LEye, eyeL. Only names with a twin are pairs,
# so that "bright" or "L1" are none.
_SIDE = re.compile(
    r"[Ll]eft|[Rr]ight|LEFT|RIGHT"
    r"|(?<![A-Za-z])[LlRr](?![A-Za-z])|(?<![A-Za-z])[LR](?=[A-Z][a-z])|(?<=[a-z])[LR](?![A-Za-z])"
)


def mirror_of(names: Sequence[str]) -> tuple[int, ...]:
    """Return for each keypoint the index of the one that takes its place in a mirrored image: the
    one whose name has the other side, or itself.
    """
    mirrored = [_SIDE.sub(_name_other_side, name) for name in names]
    return tuple(names.index(name) if name in names else i for i, name in enumerate(mirrored))


def _name_other_side(match: re.Match[str]) -> str:
    side = match[0]
    other = _OTHER_SIDE[side.lower()]
    if side.isupper():
        return other.upper()
    return other.capitalize() if side[0].isupper() else other


def mirrored_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names of the keypoints that change places, each pair once."""
    return [(names[i], names[j]) for i, j in enumerate(mirror_of(names)) if i < j]


def labelled_keypoints(record: dict) -> int:
    """Return how many keypoints of an image are labelled, visible or not."""
    objects = record.get("annotations", ())
    return sum(v > 0 for annotation in objects for v in annotation.get("keypoints", ())[2::3])
