"""Annotations that can be read and are probably not what was meant: wrong units, other scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask as mask_api

_FEW = 20  # boxes below which a pattern may be chance
_TENFOLD = 10
_NEAR = 2  # bits of 64 in which the hashes of two versions of an image may differ


def _boxes(records: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes XYXY (N, 4) that are no crowd regions, and their images' (W, H) (N, 2)."""
    rows = [
        (*annotation["bbox"], record["width"], record["height"])
        for record in records
        for annotation in record["annotations"]
        if not annotation["iscrowd"]
    ]
    table = np.array(rows, np.float64).reshape(-1, 6)
    return table[:, :4], table[:, 4:]


def unit_fault(records: Sequence[dict], *, xywh: bool) -> str | None:
    """Return what is wrong with the unit or the form of all boxes, None where nothing looks wrong;
    ``xywh`` for boxes that the file has as [x, y, width, height].
    """
    boxes, sizes = _boxes(records)
    if len(boxes) == 0:
        return None
    if boxes.max() <= 1.001 and sizes.min() > 2:  # 1.001: rounded sums
        return (
            f"all {len(boxes)} boxes look normalised, their largest coordinate is"
            f" {boxes.max():.4g}: multiply x and width by the image's width, y and height by its"
            " height"
        )
    corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    reach = (boxes[:, 2:] > sizes + 1).any(axis=1)
    fits = (extent > corner).all() and (extent <= sizes + 1).all()
    if xywh and len(boxes) >= 4 and fits and reach.mean() > 0.5:
        return (
            f"all {len(boxes)} boxes look like corners [x0, y0, x1, y1], and {reach.sum()} of them"
            " reach out of their image as [x, y, width, height], which COCO's format has: subtract"
            " x0 and y0"
        )
    return None


def sizes_in_words(records: Sequence[dict]) -> str:
    """Return the distribution of the boxes' sizes and of their number in an image."""
    boxes, _ = _boxes(records)
    if len(boxes) == 0:
        return ""
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).clip(min=0))
    low, median, high = np.percentile(sides, [5, 50, 95])
    counts = [sum(not a["iscrowd"] for a in record["annotations"]) for record in records]
    return (
        f"box size (square root of the area, px): 5 % below {low:.0f}, median {median:.0f}, 5 %"
        f" above {high:.0f}; boxes in an image: median {np.median(counts):.0f}, most {max(counts)}"
    )


def odd_scales(records: Sequence[dict]) -> Iterator[str]:
    """Yield what looks like annotations of other versions of the images."""
    boxes, sizes = _boxes(records)
    if len(boxes) >= _FEW and (boxes[:, 2:] <= sizes / 2).all():
        width, height = (boxes[:, 2:] / sizes).max(axis=0)
        yield (
            f"all {len(boxes)} boxes lie in the upper left {width:.0%} x {height:.0%} of their"
            " images: were they drawn on smaller versions?"
        )
    apart = [
        record["file_name"]
        for record in records
        for annotation in record["annotations"]
        if _is_apart(annotation)
    ]
    if apart:
        yield f"masks that lie outside of their box: {len(apart)}, for example in {apart[0]}."


def _is_apart(annotation: dict) -> bool:
    """Return whether the mask of an object does not touch its box."""
    mask = annotation.get("segmentation")
    if not mask:
        return False
    if isinstance(mask, dict):
        left, top, width, height = mask_api.toBbox(mask)
        x, y = [left, left + width], [top, top + height]
    else:
        x = [value for polygon in mask for value in polygon[0::2]]
        y = [value for polygon in mask for value in polygon[1::2]]
    x0, y0, x1, y1 = annotation["bbox"]
    return min(x) > x1 or max(x) < x0 or min(y) > y1 or max(y) < y0


def odd_frequencies(one: dict[str, int], other: dict[str, int]) -> list[str]:
    """Return the classes whose share of the boxes differs tenfold between two data sets, whose
    boxes by class are given.
    """
    totals = sum(one.values()), sum(other.values())
    if min(totals) < _FEW:
        return []
    shares = {
        name: (one[name] / totals[0], other[name] / totals[1]) for name in one if name in other
    }
    return [
        f"{name} ({a:.1%} and {b:.1%})"
        for name, (a, b) in shares.items()
        if max(one[name], other[name]) >= _FEW and max(a, b) > _TENFOLD * min(a, b)
    ]


def perceptual_hash(pixels: np.ndarray) -> int:
    """Return 64 bits that versions of an image (resized, compressed again) share: whether each of 8
    x 8 cells is darker than its right neighbour. 0 for an image without structure.
    """
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (small[:, 1:] > small[:, :-1] + 2).ravel()  # 2 levels: noise of compression
    return int("".join("1" if bit else "0" for bit in bits), 2)


def near_pairs(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places of images in two lists of hashes that look the same."""
    theirs = np.array(other, np.uint64)
    found = []
    for place, value in enumerate(one):
        if value.bit_count() < 8 or len(theirs) == 0:  # hardly any structure
            continue
        differing = (theirs ^ np.uint64(value)).view(np.uint8).reshape(-1, 8)
        distance = np.unpackbits(differing, axis=1).sum(axis=1)
        if distance.min() <= _NEAR:
            found.append((place, int(distance.argmin())))
    return found
