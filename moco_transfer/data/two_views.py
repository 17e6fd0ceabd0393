"""Pictures as views for pre-training: two for contrast, one with its label for the supervised baseline.

Views leave the data worker as uint8 and are normalised on the training device: a quarter of the bytes cross the process
border. Every draw is a function of (seed, epoch, index), so neither the number of workers nor an interruption changes it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.seed import generator_at
from .augmentation import RECIPES, apply_reference, draw_parameters
from .images import UNREADABLE, read_rgb

if TYPE_CHECKING:
    from .sources import IndexedPictures

ATTEMPTS = 20  # replacements tried for one place in a batch before giving up; only a broken folder needs more


@dataclass(frozen=True)
class ViewMaker:
    """From a picture to its views.

    Attributes:
        recipe: A key of ``augmentation.RECIPES``.
        size: Side of a view, px.
        crop_scale: Share of the picture's area a crop covers, (low, high].
        num_views: 2, independent draws, for contrast; 1 for the supervised baseline.
    """

    recipe: str
    size: int
    crop_scale: tuple[float, float]
    num_views: int = 2

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Return the views, uint8 (num_views, 3, size, size), RGB; all that is random is drawn from ``rng``."""
        return torch.from_numpy(np.stack([self._view(image, rng) for _ in range(self.num_views)]))

    def _view(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        width, height = image.size
        recipe = RECIPES[self.recipe]
        parameters = draw_parameters(rng, height=height, width=width, recipe=recipe, crop_scale=self.crop_scale)
        return apply_reference(image, parameters, size=self.size, grey_first=recipe.grey_first).transpose(2, 0, 1)


class Views(Dataset):
    """The views of pictures that can be read in any order.

    An item is asked for as ``(epoch, index)`` and is a dictionary:
        views: uint8 (V, 3, size, size), RGB; V = 2, independent draws, for contrast, 1 for the supervised baseline.
        label: int, -1 where the source has no classes.
        index: int, the picture's number in the source.
        unreadable: list of paths that could not be decoded and were replaced by another picture of the source.

    Args:
        source: The pictures (see ``sources.py``).
        recipe: A key of ``augmentation.RECIPES``.
        size: Side of a view, px.
        crop_scale: Share of the picture's area a crop covers, (low, high].
        seed: The run's seed.
        num_views: 2 or 1.
    """

    def __init__(
        self,
        source: IndexedPictures,
        *,
        recipe: str,
        size: int,
        crop_scale: tuple[float, float],
        seed: int,
        num_views: int = 2,
    ) -> None:
        self.source = source
        self.make_views = ViewMaker(recipe, size, crop_scale, num_views)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        rng = generator_at(self.seed, "views", epoch, index)
        unreadable: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                image = self.source.read(index)
            except UNREADABLE:
                unreadable.append(self.source.name(index))
                # The batch keeps its size, which the queue's order and other processes rely on.
                index = int(rng.integers(len(self.source)))
                continue
            label = int(self.source.labels[index]) if len(self.source.labels) else -1
            return {"views": self.make_views(image, rng), "label": label, "index": index, "unreadable": unreadable}
        return {"views": None, "label": -1, "index": -1, "unreadable": unreadable}


def decode(data: bytes) -> Image.Image:
    """Decode an encoded picture to RGB; raises one of ``images.UNREADABLE`` if that fails."""
    return read_rgb(io.BytesIO(data))


def collate_views(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items into a batch.

    Args:
        items: N items of :class:`Views`.

    Returns:
        ``views`` uint8 (V, N, 3, size, size), ``label`` and ``index`` int64 (N,), ``unreadable`` list of paths, and ``given_up``, the
        number of places for which no readable picture was found (``views`` is then None).
    """
    unreadable = [path for item in items for path in item["unreadable"]]
    given_up = sum(item["views"] is None for item in items)
    if given_up:
        return {"views": None, "unreadable": unreadable, "given_up": given_up}
    return {
        "views": torch.stack([item["views"] for item in items], dim=1),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "unreadable": unreadable,
        "given_up": 0,
    }


def normalize(views: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (views - mean) / std in float32, on the views' device.

    Args:
        views: uint8 or float (..., 3, H, W), 0-255, RGB.
        mean: Per channel, 0-255.
        std: Per channel, 0-255.
    """
    shape = (3, 1, 1)
    mean_t = torch.tensor(mean, dtype=torch.float32, device=views.device).view(shape)
    std_t = torch.tensor(std, dtype=torch.float32, device=views.device).view(shape)
    return (views.to(torch.float32) - mean_t) / std_t
