"""Annotations that were drawn on pixels as they are stored, turned along with their image.

Images are read upright, as their EXIF orientation says. Some tools show the stored pixels, so that
boxes, polygons, masks and keypoints belong to those; ``exif=apply`` of ``--dataset`` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pycocotools import mask as mask_api

from ..images.decode import orientation_of
from .masks import with_text

# EXIF orientation -> the place in the upright image of a place (x, y) in the stored one, which is
# w x h px; coordinates are continuous.
_PLACES: dict[int, Callable[..., tuple]] = {
    2: lambda x, y, w, h: (w - x, y),
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, w, h: (x, h - y),
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}
_THREADS = 8  # more than cores: they hide the wait for the disk


def turn_upright(records: list[dict]) -> None:
    """Turn the annotations and sizes of all records, in place, as their images' EXIF tags say."""
    with ThreadPoolExecutor(_THREADS) as threads:
        orientations = threads.map(orientation_of, [record["file_name"] for record in records])
        for record, orientation in zip(records, orientations, strict=True):
            if orientation != 1:
                _turn(record, orientation)


def _turn(record: dict, orientation: int) -> None:
    size = record["width"], record["height"]

    def moved(points: list[float]) -> list[float]:
        """Return [x, y, x, y, ...] in the upright image."""
        x, y = _PLACES[orientation](np.array(points[0::2]), np.array(points[1::2]), *size)
        return np.stack([x, y], 1).ravel().tolist()

    for annotation in record["annotations"]:
        x0, y0, x1, y1 = moved(annotation["bbox"])
        annotation["bbox"] = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        mask = annotation.get("segmentation")
        if isinstance(mask, dict):
            annotation["segmentation"] = _turned_mask(mask, orientation)
        elif mask:
            annotation["segmentation"] = [moved(polygon) for polygon in mask]
        if points := annotation.get("keypoints"):
            xy = moved([v for i, v in enumerate(points) if i % 3 < 2])
            triples = zip(xy[0::2], xy[1::2], points[2::3], strict=True)
            annotation["keypoints"] = [v for triple in triples for v in triple]
    if orientation >= 5:
        record["width"], record["height"] = size[::-1]


def _turned_mask(mask: dict, orientation: int) -> dict:
    pixels = mask_api.decode(mask)
    height, width = pixels.shape
    rows, columns = np.nonzero(pixels)
    # The centre of a pixel moves as any place does.
    x, y = _PLACES[orientation](columns + 0.5, rows + 0.5, width, height)
    upright = np.zeros(pixels.T.shape if orientation >= 5 else pixels.shape, np.uint8, order="F")
    upright[y.astype(int), x.astype(int)] = 1
    return with_text(mask_api.encode(upright))
