"""Masks in COCO's format: polygons and run-length encoding (RLE), compressed or not."""

from __future__ import annotations

import itertools
import re
from typing import Any

from pycocotools import mask as mask_api

from .coco_fields import are_finite
from .faults import Fault, short


def read_mask(segmentation: Any, record: dict) -> Any:
    """Return polygons of at least 3 points ([] if none is left), a compressed RLE, or None where
    there is none; raises Fault for what is no mask of the record's image.
    """
    if not segmentation:
        return None
    height, width = record["height"], record["width"]
    if isinstance(segmentation, dict):
        return _rle(segmentation, [height, width])
    fault, kind = f"segmentation is {short(segmentation)}, expected", "segmentation"
    if isinstance(segmentation, list) and not any(isinstance(p, list) for p in segmentation):
        segmentation = [segmentation]  # one polygon, as VIA writes it
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise Fault(f"{fault} a list of polygons or an RLE", kind)
    if len(segmentation) >= 3 and all(len(point) == 2 for point in segmentation):
        segmentation = [[*itertools.chain.from_iterable(segmentation)]]  # as labelme writes it
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if not all(map(are_finite, polygons)):
        raise Fault(f"{fault} polygons of finite numbers", kind)
    spans = [(min(p[0::2]), max(p[0::2]), min(p[1::2]), max(p[1::2])) for p in polygons]
    touches = [x < width and r >= 0 and y < height and b >= 0 for x, r, y, b in spans]
    # pycocotools follows each edge point by point.
    far = 10 * max(width, height)
    if spans and (not any(touches) or max(map(abs, itertools.chain.from_iterable(spans))) > far):
        where = f"inside the {width} x {height} image {record['file_name']}"
        raise Fault(f"{fault} a polygon {where}", "polygon outside")
    return polygons


def _rle(rle: dict, shape: list[int]) -> dict:
    """Return the compressed form. For other shapes pycocotools would write beyond its memory."""
    counts, size, total = rle.get("counts"), rle.get("size"), shape[0] * shape[1]
    if not isinstance(counts, (str, bytes, list)) or not isinstance(size, (list, tuple)):
        fault = f"segmentation is {short(rle)}, expected an RLE with 'counts' and 'size'"
        raise Fault(fault, "rle")
    if list(size) != shape:
        fault = f"the 'size' of its RLE is {size}, expected [height, width] {shape}"
        raise Fault(fault, "rle size")
    try:
        lengths = counts if isinstance(counts, list) else _run_lengths(counts)
        if not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError("a run is not a whole number of pixels")
        if sum(lengths) != total:
            raise ValueError(f"its runs add up to {sum(lengths)} px")
    except ValueError as error:
        fault = f"the 'counts' {short(counts)} are not the RLE of a mask of {total} px ({error})"
        raise Fault(fault, "rle counts") from error
    if not isinstance(counts, list):
        return rle
    return with_text(mask_api.frPyObjects(rle, *shape))


def with_text(rle: dict) -> dict:
    """Return pycocotools' compressed RLE with ``counts`` as a text, as JSON files have it."""
    return {"size": [*rle["size"]], "counts": rle["counts"].decode()}


def _run_lengths(counts: str | bytes) -> list[int]:
    """Return the run lengths of COCO's compressed RLE, or raise ValueError.

    A number is written in groups of 5 bits, lowest first, one character from "0" on per group. Bit
    32 announces another group ("P" to "o"); bit 16 of the last is the sign. From the fourth number
    on it is the difference from the length two before.
    """
    data = counts.encode() if isinstance(counts, str) else counts
    if not re.fullmatch(rb"([P-o]*[0-O])*", data):
        raise ValueError("it is cut off, or has a character that RLE does not use")
    lengths: list[int] = []
    for number in re.findall(rb"[P-o]*[0-O]", data):
        value = sum((code - 48 & 31) << 5 * i for i, code in enumerate(number))
        if number[-1] - 48 & 16:
            value -= 1 << 5 * len(number)
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    return lengths
