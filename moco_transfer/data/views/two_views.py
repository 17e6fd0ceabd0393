"""Images as views for pre-training: two for contrast, one with its label for the supervised
baseline.

Views leave the data worker as uint8 and are finished on the training device (see
    ``view_batch.py``): a quarter of the bytes cross the
process border. Every draw is a function of (seed, epoch, index), so neither the number of workers
nor an interruption changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from ...runtime.seed import generator_at
from ..images.decode import UNREADABLE
from .threads import in_threads
from .view_batch import ViewBatch, ViewMaker, normalize

if TYPE_CHECKING:
    import numpy as np

    from ..images.sources import IndexedImages

__all__ = ["ATTEMPTS", "ViewMaker", "Views", "collate_views", "normalize"]

# replacements tried for one place in a batch before giving up; only a broken folder needs more
ATTEMPTS = 20


class Views(Dataset):
    """The views of images that can be read in any order.

    An item is asked for as ``(epoch, index)`` and is a dictionary:
        views: uint8 (V, 3, size, size), RGB; V = 2, independent draws, for contrast, 1 for the
            supervised baseline.
        colours: float32 (V, ROW), in the fast pipeline alone (see ``view_colours.py``).
        label: int, -1 where the source has no classes.
        index: int, the image's number in the source.
        unreadable: list of paths that could not be decoded and were replaced by another image of
            the source.
    A list of places is a whole batch, as :meth:`ViewBatch.finished` returns it.

    Args:
        source: The images (see ``sources.py``).
        recipe: A key of ``augmentation.RECIPES``.
        size: Side of a view, px.
        crop_scale: Share of the image's area a crop covers, (low, high].
        seed: The run's seed.
        num_views: 2 or 1.
        pipeline: One of ``view_batch.PIPELINES``.
    """

    def __init__(
        self,
        source: IndexedImages,
        *,
        recipe: str,
        size: int,
        crop_scale: tuple[float, float],
        seed: int,
        num_views: int = 2,
        pipeline: str = "reference",
    ) -> None:
        self.source = source
        self.make_views = ViewMaker(recipe, size, crop_scale, num_views, pipeline)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        batch = self.__getitems__([place])
        if batch["given_up"]:
            return {"views": None, "label": -1, "index": -1, "unreadable": batch["unreadable"]}
        colours = {"colours": batch["colours"][:, 0]} if "colours" in batch else {}
        numbers = {"label": int(batch["label"]), "index": int(batch["index"])}
        return {
            "views": batch["views"][:, 0],
            **colours,
            **numbers,
            "unreadable": batch["unreadable"],
        }

    def __getitems__(self, places: list[tuple[int, int]]) -> dict[str, Any]:
        batch = ViewBatch(self.make_views, len(places))

        def fill(part: range) -> tuple[list[str], int]:
            buffer, unreadable = self.make_views.new_buffer(), []
            given_up = sum(
                not self._fill(batch, place, *places[place], buffer, unreadable) for place in part
            )
            return unreadable, given_up

        for unreadable, given_up in in_threads(fill, len(places)):
            batch.unreadable += unreadable
            batch.given_up += given_up
        return batch.finished()

    def _fill(
        self,
        batch: ViewBatch,
        place: int,
        epoch: int,
        index: int,
        buffer: np.ndarray | None,
        unreadable: list[str],
    ) -> bool:
        """Fill a place of the batch; False when no readable image was found for it.

        Several threads at a time, each with a buffer of its own.
        """
        rng = generator_at(self.seed, "views", epoch, index)
        for _ in range(ATTEMPTS):
            try:
                drawn = self.make_views.read(self.source, index, rng, buffer)
            except UNREADABLE:
                unreadable.append(self.source.name(index))
                # The batch keeps its size, which the queue's order and other processes rely on.
                index = int(rng.integers(len(self.source)))
                continue
            label = int(self.source.labels[index]) if len(self.source.labels) else -1
            batch.fill(place, drawn, label=label, index=index)
            return True
        return False


def collate_views(items: list[dict[str, Any]] | dict[str, Any]) -> dict[str, Any]:
    """Stack items into a batch; a batch that is one already stays as it is.

    Args:
        items: N items of :class:`Views`.

    Returns:
        The batch as of :meth:`ViewBatch.finished`.
    """
    if isinstance(items, dict):
        return items
    unreadable = [path for item in items for path in item["unreadable"]]
    given_up = sum(item["views"] is None for item in items)
    if given_up:
        return {"views": None, "unreadable": unreadable, "given_up": given_up}
    stacked = {
        name: torch.stack([item[name] for item in items], dim=1)
        for name in ("views", "colours")
        if name in items[0]
    }
    numbers = {name: torch.tensor([item[name] for item in items]) for name in ("label", "index")}
    return {**stacked, **numbers, "unreadable": unreadable, "given_up": 0}
