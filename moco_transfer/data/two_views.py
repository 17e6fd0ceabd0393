"""Pictures as views for pre-training: two for contrast, one with its label for the supervised baseline.

Views leave the data worker as uint8 and are normalised on the training device: a quarter of the bytes cross the process
border. Every draw is a function of (seed, epoch, index), so neither the number of workers nor an interruption changes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.seed import generator_at
from .augmentation import RECIPES, apply_reference, draw_parameters
from .images import UNREADABLE, ImageFolder, read_rgb

_ATTEMPTS = 20  # replacements tried for one place in a batch before giving up; only a broken folder needs more


class Views(Dataset):
    """The views of the pictures in a folder.

    An item is asked for as ``(epoch, index)`` and is a dictionary:
        views: uint8 (V, 3, size, size), RGB; V = 2, independent draws, for contrast, 1 for the supervised baseline.
        label: int, -1 where the folder has no classes.
        index: int, the picture's number in the folder.
        unreadable: list of paths that could not be decoded and were replaced by another picture of the folder.

    Args:
        folder: The pictures.
        recipe: ``v1``, ``v2`` or ``supervised``.
        size: Side of a view, px.
        crop_scale: Share of the picture's area a crop covers, (low, high].
        seed: The run's seed.
        num_views: 2 or 1.
    """

    def __init__(
        self,
        folder: ImageFolder,
        *,
        recipe: str,
        size: int,
        crop_scale: tuple[float, float],
        seed: int,
        num_views: int = 2,
    ) -> None:
        self.folder = folder
        self.recipe = RECIPES[recipe]
        self.size = size
        self.crop_scale = crop_scale
        self.seed = seed
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        rng = generator_at(self.seed, "views", epoch, index)
        unreadable: list[str] = []
        for _ in range(_ATTEMPTS):
            path = self.folder.path(index)
            try:
                image = read_rgb(path)
            except UNREADABLE:
                unreadable.append(path)
                # The batch keeps its size, which the queue's order and other processes rely on.
                index = int(rng.integers(len(self.folder)))
                continue
            views = torch.from_numpy(np.stack([self._view(image, rng) for _ in range(self.num_views)]))
            label = int(self.folder.labels[index]) if len(self.folder.labels) else -1
            return {"views": views, "label": label, "index": index, "unreadable": unreadable}
        return {"views": None, "label": -1, "index": -1, "unreadable": unreadable}

    def _view(self, image, rng: np.random.Generator) -> np.ndarray:
        width, height = image.size
        parameters = draw_parameters(rng, height=height, width=width, recipe=self.recipe, crop_scale=self.crop_scale)
        return apply_reference(image, parameters, size=self.size, grey_first=self.recipe.grey_first).transpose(2, 0, 1)


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
