"""Fields of COCO's and LVIS's json: which values are legal, and what they mean."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

from .faults import Fault, short

CROWD = {None: 0, "": 0, 0: 0, "0": 0, 1: 1, "1": 1}
"""What tools write for ``iscrowd``, and what they mean."""

_FAR = 1e9  # px; larger numbers are mistakes, and the comparison is False for NaN


def as_text(value: Any) -> str | None:
    """Return an id as a text, for it may be 7 in one place of a file and "7" or 7.0 in another;
    None for what is no id.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, str)) else None


def are_finite(numbers: Any) -> bool:
    """Return whether all are finite numbers; one sum is fast for the millions of a COCO file."""
    try:
        return math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False


def _is_box(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) == 4
    return is_list and all(type(n) in (int, float) and abs(n) < _FAR for n in value)


def _is_text(value: Any) -> bool:
    """Return whether it is a text that files can hold: json may hold half of a character."""
    if not isinstance(value, str) or not value.strip():
        return False
    with contextlib.suppress(UnicodeEncodeError):
        value.encode()
        return True
    return False


def _is_path(value: Any) -> bool:
    """Return whether a file may have such a name; json holds its bytes that are no UTF-8 too."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    with contextlib.suppress(UnicodeEncodeError):
        os.fsencode(value)
        return True
    return False


def _is_skeleton(value: Any) -> bool:
    lines = [] if value is None else value
    are_pairs = isinstance(lines, list) and all(isinstance(v, list) and len(v) == 2 for v in lines)
    return are_pairs and all(isinstance(n, int) and n >= 1 for line in lines for n in line)


def _are_names(value: Any) -> bool:
    names = value or []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return is_list and len(set(names)) == len(names)


_POINTS = "finite numbers [x, y, visibility, ...], three for each point"
_FREQUENCY = (
    "'r', 'c' or 'f' (rare, common, frequent), as LVIS has it; other files are of kind coco"
)
# Key, value of an absent field, whether a value is legal, and what is expected.
Fields = tuple[tuple[str, Any, Callable[[Any], bool], str], ...]
CATEGORY_FIELDS: Fields = (
    ("id", None, lambda v: (as_text(v) or "").isdecimal(), "a whole number from 0 on"),
    ("name", None, _is_text, "a text"),
    ("keypoints", [], _are_names, "a list of different names"),
    ("skeleton", [], _is_skeleton, "pairs [a, b] of numbers of keypoints, the first is 1"),
)
IMAGE_FIELDS: Fields = (
    ("id", None, lambda v: as_text(v) is not None, "a whole number or a text"),
    ("file_name", None, _is_path, "a path"),
)
LVIS_CATEGORY_FIELDS: Fields = (("frequency", None, lambda v: v in ("r", "c", "f"), _FREQUENCY),)
LVIS_IMAGE_FIELDS: Fields = tuple(
    (key, [], lambda v: isinstance(v, list) and all(isinstance(i, int) for i in v), "a list of ids")
    for key in ("neg_category_ids", "not_exhaustive_category_ids")
)
ANNOTATION_FIELDS: Fields = (
    ("id", None, lambda v: isinstance(v, (int, float, str, type(None))), "a number"),
    ("bbox", None, _is_box, "four finite numbers [x, y, width, height]"),
    ("ignore", 0, lambda v: not v, "none: it is not part of COCO's format, use 'iscrowd': 1"),
    ("iscrowd", 0, lambda v: not isinstance(v, (list, dict)) and v in CROWD, "0 or 1"),
    ("area", None, lambda v: v is None or are_finite([v]), "a number of square pixels"),
    ("keypoints", [], lambda v: not v or are_finite(v) and len(v) % 3 == 0, _POINTS),
)


DENSE_POSE = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")
"""Of points on a person: place in the box, 0-256 of its sides; part 1-24; place on the part."""

_MOST_OF_POINTS = dict(zip(DENSE_POSE, (256, 256, 24, 1, 1), strict=True))
_PARTS = "dp_masks"


def dense_pose_of(raw: dict) -> dict[str, Any]:
    """Return the points of an annotation in DensePose-COCO's format, and ``dp_masks``, its parts on
    256 x 256 cells of the box; {} without points. Fault if they are not in that format.
    """
    if DENSE_POSE[0] not in raw:
        return {}
    for key, most in _MOST_OF_POINTS.items():
        values: Any = raw.get(key)
        count = len(raw[DENSE_POSE[0]] or ())
        is_list = isinstance(values, list) and are_finite(values) and len(values) == count
        if not is_list or not all(0 <= value <= most for value in values):
            expected = f"{count} numbers of 0-{most}, as many as dp_x has"
            raise Fault(f"{key} is {short(values)}, expected {expected}", key)
    if any(part != int(part) for part in raw["dp_I"]):
        raise Fault(f"dp_I is {short(raw['dp_I'])}, expected whole numbers", "dp_I")
    masks: Any = raw.get(_PARTS) or []
    if not all(not m or isinstance(m, dict) and m.get("size") == [256, 256] for m in masks):
        expected = "a run-length encoded mask of [256, 256], or [], for each part"
        raise Fault(f"{_PARTS} is {short(masks)}, expected {expected}", _PARTS)
    return {key: raw[key] for key in (*DENSE_POSE, _PARTS) if key in raw}


def check(entry: Any, fields: Fields) -> None:
    """Raise a Fault if an entry of the file is no object, or a field has no legal value."""
    if not isinstance(entry, dict):
        raise Fault(f"it is {short(entry)}, expected an object", "no object")
    for key, absent, is_legal, expected in fields:
        value = entry.get(key, absent)
        if not is_legal(value):
            raise Fault(f"{key} is {short(value)}, expected {expected}", key)
