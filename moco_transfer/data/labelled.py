"""Labelled pictures as evaluation sees them: one centred view each, in the order of their names, without augmentation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..runtime.distributed import get_rank, get_world_size, is_main_process
from ..runtime.errors import InputError
from .augmentation import centre_view
from .images import UNREADABLE
from .shard_index import ShardSet
from .sources import IndexedPictures, open_source

logger = logging.getLogger(__name__)

_KEEP_BYTES = 2**29  # decoded views up to this size stay in memory: CIFAR-10 is 0.18 GB, ImageNet's training set 190 GB

UNREADABLE_LABEL = -1
"""Label of a picture that could not be decoded; its view is black and must not be used."""


@dataclass(frozen=True)
class EvaluationView:
    """How a picture becomes the network's input in evaluation.

    Attributes:
        size: Side, px.
        resize: Shorter side before the centre crop, px.
        mean, std: Of the pixels, RGB, 0-255.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def protocol_resize(size: int) -> int:
    """Return the shorter side, px, from which a view of ``size`` px is cut in the linear protocol: 256 for 224."""
    return round(size * 256 / 224)


def find_labelled(train: str, test: str) -> tuple[IndexedPictures, IndexedPictures]:
    """List two folders of class folders that have the same classes.

    Args:
        train: Folder whose pictures a classifier learns from, or any other labelled source but shards (see ``sources.py``).
        test: Folder whose pictures it is asked about; its class folders are numbered as those of ``train``.

    Raises:
        MissingFileError: If a folder does not exist.
        InputError: If one has no class folders, or ``test`` has a class that ``train`` lacks.
    """
    folders = []
    for root in (train, test):
        folder = open_source(root)
        if isinstance(folder, ShardSet):
            raise InputError(f"{root} is made of tar shards, which are read in no fixed order. Unpack them into class folders (KNN.TRAIN).")
        if len(folder.class_names) < 2:
            raise InputError(f"{root}: expected at least two class folders with pictures, found {len(folder.class_names)}.")
        folders.append(folder)
    known, asked = folders
    unknown = sorted(set(asked.class_names) - set(known.class_names))
    if unknown:
        raise InputError(
            f"{test} has {len(unknown)} class folders that {train} lacks, the first is {unknown[0]!r} "
            f"(there: {', '.join(known.class_names[:5])}, …). Give two folders with the same classes."
        )
    number = np.array([known.class_names.index(name) for name in asked.class_names], np.int64)
    return known, dataclasses.replace(asked, labels=number[asked.labels], class_names=known.class_names)


class CentreViews(Dataset):
    """The centred views of a folder's pictures; item i is (uint8 (3, size, size) RGB, label, i).

    A picture that cannot be decoded is logged with its path and has the label :data:`UNREADABLE_LABEL`.

    Args:
        folder: The pictures, with labels.
        view: Size of the view.
    """

    def __init__(self, folder: IndexedPictures, view: EvaluationView) -> None:
        self.folder = folder
        self.view = view

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        try:
            pixels = centre_view(self.folder.read(index), size=self.view.size, resize=self.view.resize)
        except UNREADABLE as error:
            logger.warning("skipped unreadable picture %s (%s)", self.folder.name(index), error)
            return torch.zeros(3, self.view.size, self.view.size, dtype=torch.uint8), UNREADABLE_LABEL, index
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(self.folder.labels[index]), index


class LabelledBatches:
    """This process's share of a labelled folder in batches, as often as asked; small sets are decoded only once.

    Every ``world_size``-th picture belongs to this process.

    Args:
        folder: The pictures.
        view: Size of the view.
        batch_size: Pictures per batch.
        num_workers: Data workers.

    Raises:
        InputError: If there are fewer pictures than processes.
    """

    def __init__(self, folder: IndexedPictures, view: EvaluationView, *, batch_size: int = 512, num_workers: int = 0) -> None:
        if len(folder) < get_world_size():
            raise InputError(f"{folder.root} holds {len(folder)} pictures, fewer than the {get_world_size()} processes. Start fewer processes.")
        self.folder = folder
        self.view = view
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, description: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (views uint8 (B, 3, size, size), labels int64 (B,), indices int64 (B,)), with a progress bar."""
        own = range(get_rank(), len(self.folder), get_world_size())
        source = self._kept or DataLoader(
            CentreViews(self.folder, self.view),
            batch_size=self.batch_size,
            sampler=own,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # the workers' seeds must not move the run's own random numbers
        )
        keep = not self._kept and len(own) * 3 * self.view.size**2 <= _KEEP_BYTES
        kept = []
        for batch in tqdm(source, desc=description, unit="batch", leave=False, disable=None if is_main_process() else True):
            if keep:
                kept.append(tuple(part.clone() for part in batch))  # a copy: workers' tensors hold a file descriptor each
            yield tuple(batch)
        if keep:
            self._kept = kept
