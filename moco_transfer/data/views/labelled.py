"""Labelled images as evaluation sees them: one centred view each, in the order of their names,
without augmentation.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...runtime.distributed import get_rank, get_world_size
from ...runtime.errors import InputError
from ...runtime.machine import check_shared_memory
from ...runtime.progress import progress
from ...runtime.stop import prepare_worker, sigterm_held
from ..images.bands import decode_channels, held_channels
from ..images.decode import UNREADABLE, read_rgb
from ..images.image_source import IndexedSource
from ..images.sources import open_indexed
from .augmentation import centre_view

logger = logging.getLogger(__name__)

# Decoded views up to this size stay in memory: CIFAR-10 is 0.18 GB, ImageNet's training set 190 GB.
_KEEP_BYTES = 2**29

UNREADABLE_LABEL = -1
"""Label of an image that could not be decoded; its view is black and must not be used."""


@dataclass(frozen=True)
class EvaluationView:
    """How an image becomes the network's input in evaluation."""

    size: int  # side, px
    resize: int  # shorter side before the centre crop, px
    mean: tuple[float, ...]  # of the pixels, 0-255: one number for grey, three for RGB, N for bands
    std: tuple[float, ...]
    upright: bool = False  # whether images are turned as their EXIF orientation says

    def pixels(self, data: bytes | memoryview) -> np.ndarray:
        """Return an encoded image's view, uint8 (size, size, C), C of ``bands.held_channels``;
        raises one of ``decode.UNREADABLE`` if it cannot be decoded.
        """
        channels = len(self.mean)
        image: Image.Image | np.ndarray
        if channels == 3:
            image = read_rgb(data, upright=self.upright)
        else:
            image = decode_channels(data, channels, upright=self.upright)
            image = Image.fromarray(image) if channels == 1 else image
        return centre_view(image, size=self.size, resize=self.resize)


def protocol_resize(size: int) -> int:
    """Return the shorter side from which the linear protocol crops ``size`` px: 256 for 224."""
    return round(size * 256 / 224)


def find_labelled(
    train: str | os.PathLike[str], test: str | os.PathLike[str], *, channels: int = 3
) -> tuple[IndexedSource, IndexedSource]:
    """Find two sets of labelled images: class folders, list files with labels, local tar shards, or
    CIFAR-10 (its training and test images); .npy files too for other ``channels`` than 3. Classes
    of ``test`` are numbered as ``train``'s. MissingFileError if one does not exist; InputError if
    one has no classes, or ``test`` has a class that ``train`` lacks.
    """
    roots = (os.fspath(train), "train"), (os.fspath(test), "test")
    known, asked = (open_indexed(root, split=split, arrays=channels != 3) for root, split in roots)
    for source, (root, _) in zip((known, asked), roots, strict=True):
        found = len(source.class_names)
        if found < 2:
            raise InputError(f"{root}: expected images of at least two classes, found {found}.")
    unknown = sorted(set(asked.class_names) - set(known.class_names))
    if unknown:
        raise InputError(
            f"{test} has {len(unknown)} classes that {train} lacks, the first is {unknown[0]!r}"
            f" (there: {', '.join(known.class_names[:5])}, …). Give images of the same classes."
        )
    number = np.array([known.class_names.index(name) for name in asked.class_names], np.int64)
    labels = number[asked.labels]
    return known, dataclasses.replace(asked, labels=labels, class_names=known.class_names)


class CentreViews(Dataset):
    """The centred views of labelled images; item i is (uint8 (C, size, size), label, i).

    An image that cannot be decoded is logged and has the label :data:`UNREADABLE_LABEL`.
    """

    def __init__(self, images: IndexedSource, view: EvaluationView) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        size = self.view.size
        try:
            pixels = self.view.pixels(self.images.content(index)).transpose(2, 0, 1)
        except UNREADABLE as error:
            logger.warning("skipped unreadable image %s (%s)", self.images.name(index), error)
            channels = held_channels(len(self.view.mean))
            return torch.zeros(channels, size, size, dtype=torch.uint8), UNREADABLE_LABEL, index
        return torch.from_numpy(pixels.copy()), int(self.images.labels[index]), index


@dataclass
class LabelledBatches:
    """This process's share (every ``world_size``-th) of labelled images in batches, as often as
    asked; small sets are decoded only once. InputError if there are fewer images than processes.
    """

    images: IndexedSource
    view: EvaluationView
    batch_size: int = 512
    num_workers: int = 0

    def __post_init__(self) -> None:
        count, processes = len(self.images), get_world_size()
        if count < processes:
            raise InputError(f"{count} images are fewer than {processes} processes.")
        batch = min(self.batch_size, -(-count // processes)) * self._view_bytes
        batches, key = min(2, -(-count // self.batch_size)), "the number of data workers"
        check_shared_memory(batch, batches=batches, key=key, num_workers=self.num_workers)
        self._kept: list[tuple[Tensor, ...]] = []
        self._reading: Iterator[tuple[Tensor, ...]] = iter(())

    @property
    def _view_bytes(self) -> int:
        return held_channels(len(self.view.mean)) * self.view.size**2

    def __call__(self, description: str) -> Iterator[tuple[Tensor, ...]]:
        """Yield (views uint8 (B, C, size, size), labels int64 (B,), indices int64 (B,)), with a
        progress bar.
        """
        own = range(get_rank(), len(self.images), get_world_size())
        loader = DataLoader(
            CentreViews(self.images, self.view),
            batch_size=self.batch_size,
            sampler=own,
            num_workers=self.num_workers,
            worker_init_fn=prepare_worker if self.num_workers else None,
            # The workers' seeds must not advance the run's own random numbers.
            generator=torch.Generator(),
        )
        # Held here for the reason that loading.Loader gives.
        with sigterm_held():
            self._reading = iter(self._kept or loader)
        keep = not self._kept and len(own) * self._view_bytes <= _KEEP_BYTES
        kept = []
        for batch in progress(self._reading, description, total=len(loader), leave=False):
            if keep:  # a copy: workers' tensors hold a file descriptor each
                kept.append(tuple(part.clone() for part in batch))
            yield tuple(batch)
        self._reading = iter(())
        self._kept = kept if keep else self._kept
