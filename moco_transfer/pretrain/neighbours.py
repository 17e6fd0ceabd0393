"""Nearest neighbours of a few images by an encoder's features, as an image: what the features
take for alike.

Shapes in this module:
    N: images searched    C: dimension of the features    Q: queries    k: neighbours
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.drawing import class_colour, fit, save_grid
from ..data.images.decode import read_rgb
from ..data.images.image_source import IndexedSource
from ..runtime.errors import InputError

_CELL = 144  # side of an image, px


@dataclass(frozen=True)
class Pool:
    """Some images of a source: what is searched.

    Attributes:
        source: All images.
        indices: int64 (N,), places in the source, rising.
    """

    source: IndexedSource
    indices: np.ndarray
    class_names: ClassVar[tuple[str, ...]] = ()
    pixel_change: ClassVar[str] = ""
    is_raw: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the path of image ``index`` of the pool."""
        return self.source.name(int(self.indices[index]))

    def content(self, index: int) -> bytes | memoryview:
        """Return image ``index`` of the pool, encoded."""
        return self.source.content(int(self.indices[index]))

    def class_name(self, index: int) -> str:
        """Return the class of image ``index``, "" where the source has none."""
        labels = self.source.labels
        return self.source.class_names[labels[self.indices[index]]] if len(labels) else ""

    @property
    def labels(self) -> np.ndarray:
        """Each image's number, which names the images whose features come back."""
        return np.arange(len(self), dtype=np.int64)

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        return f"{len(self)} of {self.source.describe()}"


def draw_pool(source: IndexedSource, size: int, *, seed: int = 0) -> Pool:
    """Take at most ``size`` images of a source by chance, with a seed of its own."""
    total = len(source)
    if total <= size:
        return Pool(source, np.arange(total))
    return Pool(source, np.sort(np.random.default_rng(seed).choice(total, size, replace=False)))


def spread_queries(count: int, total: int) -> list[int]:
    """Return ``count`` of ``total`` places, spread evenly: nobody has chosen them; folders of
    classes come by turns.
    """
    return sorted({round(float(place)) for place in (np.arange(count) + 0.5) / count * total - 0.5})


def nearest_neighbours(
    features: Tensor, queries: Sequence[int], *, k: int
) -> tuple[Tensor, Tensor]:
    """Return the images most like each query, without the query itself.

    Args:
        features: (N, C), float; need not have unit norm.
        queries: Q rows of it.
        k: Neighbours, at most N - 1.

    Returns:
        Cosines (Q, k), falling, and rows of ``features`` int64 (Q, k).

    Raises:
        InputError: If there are no k other images.
    """
    if not 1 <= k < len(features):
        raise InputError(
            f"{k} neighbours were asked for, and {len(features)} images can be read; ask for 1 to"
            f" {len(features) - 1}."
        )
    unit = F.normalize(features, dim=1)
    rows = torch.as_tensor(list(queries), device=unit.device)
    similarity = unit[rows] @ unit.T
    similarity[torch.arange(len(rows), device=unit.device), rows] = -torch.inf
    return tuple(similarity.topk(k, dim=1))


def draw_neighbours(
    path: str | os.PathLike[str],
    pool: Pool,
    queries: Sequence[int],
    cosines: Tensor,
    neighbours: Tensor,
) -> tuple[Path, Path]:
    """Write one row per query, the query first, as PNG and SVG; return both paths.

    Args:
        path: The PNG; the SVG lies beside it.
        pool: The images.
        queries: Q places in the pool.
        cosines: (Q, k).
        neighbours: (Q, k) places in the pool. Where there are classes, a neighbour of the query's
            class has a frame.
    """
    rows = []
    for query, row_cosines, row in zip(queries, cosines.tolist(), neighbours.tolist(), strict=True):
        name = pool.class_name(query)
        cells = [(_pixels(pool, query), name or os.path.basename(pool.name(query)))]
        for cosine, index in zip(row_cosines, row, strict=True):
            pixels, other = _pixels(pool, index), pool.class_name(index)
            if name and other == name:
                cv2.rectangle(pixels, (1, 1), (_CELL - 2, _CELL - 2), class_colour(0), 3)
            cells.append((pixels, f"{cosine:.2f}  {other}".strip()))
        rows.append(cells)
    titles = ("query", *map(str, range(1, neighbours.shape[1] + 1)))
    note = "framed: of the query's class" if pool.class_name(0) else ""
    return save_grid(path, rows, titles, note=note, cell=_CELL)


def _pixels(pool: Pool, index: int) -> np.ndarray:
    # The middle square, as the network sees it but for its resolution.
    image = read_rgb(pool.content(index))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return fit(np.asarray(image.crop((left, top, left + side, top + side))), _CELL)[0]
