"""The two-view pipeline as a dataset of ``torch.utils.data``, for training loops of one's own.

dataset = TwoViews("images", size=96)
loader = DataLoader(dataset, 64, shuffle=True, drop_last=True, collate_fn=collate)
for batch in loader:
    im_q, im_k = dataset.finish(batch, device)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...models import IMAGENET_MEAN, IMAGENET_STD
from ...runtime.errors import InputError
from ..images.sources import open_indexed
from .augmentation import RECIPES
from .view_batch import ViewMaker, Views
from .view_colours import finish_views

Place: TypeAlias = int | tuple[int, int]


class TwoViews(Dataset):
    """Two random views of each image.

    Data workers decode, crop and resize; ``finish`` does colours, blur and normalisation of a whole
    batch, on the training device. An index draws from torch's generator, which DataLoader seeds for
    each worker and epoch. In place of an index a sampler may give ``(epoch, index)``: the views are
    then a function of these and ``seed``, those of ``moco-transfer pretrain`` (whose order is
    ``order.EpochBatches``, a batch sampler).

    Args:
        root: A folder, or what else DATA.ROOT can name but a stream of shards.
        size: Side of a view, px.
        augmentation: v1, v2, cifar or supervised (crop and flip alone).
        crop_scale: Share of the image's area that a crop covers, (low, high], 0-1.
        mean: Of the pixels, 0-255, RGB.
        std: Of the pixels, 0-255, RGB.
        seed: Of the views of ``(epoch, index)``.

    Raises:
        InputError: If the root holds no images, or the augmentation is unknown.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int = 224,
        augmentation: str = "v2",
        crop_scale: tuple[float, float] = (0.2, 1.0),
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        seed: int = 0,
    ) -> None:
        if augmentation not in RECIPES:
            raise InputError(f"No augmentation {augmentation!r}; there is {', '.join(RECIPES)}.")
        make = ViewMaker(augmentation, size, crop_scale, pipeline="fast", upright=True)
        self.views = Views(open_indexed(os.fspath(root)), make, seed=seed)
        self.pixels = mean, std

    def __len__(self) -> int:
        return len(self.views.source)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """Return a batch of one image, as ``collate`` takes and returns it."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """Return one batch of all places, in a list; DataLoader asks for it."""
        drawn = torch.randint(2**31, (len(places),)).tolist()  # in place of an epoch
        batch = self.views[
            [p if isinstance(p, tuple) else (n, p) for n, p in zip(drawn, places, strict=True)]
        ]
        if batch["given_up"]:
            reasons = [f"{name}: {reason}" for name, reason in batch["reasons"].items()]
            raise InputError(f"Too many images cannot be read, such as {reasons[0]}.")
        return [batch]

    def finish(
        self, batch: dict[str, Any], device: str | torch.device = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Return the views of a batch on a device: two of float32 (N, 3, S, S), normalised,
        channels last in memory.
        """
        views, colours = batch["views"], batch["colours"]
        on_device = views.flatten(0, 1).to(device, non_blocking=True)
        first, second = finish_views(on_device, colours.flatten(0, 1), *self.pixels).chunk(2)
        return first, second


def collate(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join batches of any size into one.

    ``views`` uint8 (2, N, 3, S, S), RGB before their colours; ``colours`` float32, drawn, for
    ``finish``; ``label`` (-1 without class folders) and ``index`` int64 (N,); ``unreadable``, names
    of images that were replaced by others.
    """
    if len(batches) == 1:
        return batches[0]
    dims = {"views": 1, "colours": 1, "label": 0, "index": 0}
    joined = {name: torch.cat([b[name] for b in batches], dim) for name, dim in dims.items()}
    return joined | {"unreadable": [*chain(*(b["unreadable"] for b in batches))]}
