"""From images to batches of views: two for contrast, one with its label for the supervised
baseline.

A batch is filled place by place. Every draw is a function of (seed, epoch, index), so neither the
number of workers nor an interruption changes it.

Pipelines:
    fast: the decoder of ``decode.py``; crop, resize and flip in uint8; colours, blur and
        normalisation as batched operators on the training device (``view_colours.py``). Faithful
        to the reference within the tolerances stated there and in :func:`resized_crop`.
    reference: the plain torchvision and PIL chain of the official code; only the normalisation is
        left to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ...runtime.errors import InputError
from ...runtime.seed import generator_at
from ..images.bands import decode_channels, held_channels
from ..images.decode import BUFFER_BYTES, UNREADABLE, read_rgb
from ..images.image_source import IndexedSource
from . import native
from .augmentation import RECIPES, ViewParameters, apply_reference, draw_parameters
from .order import ShardBatches, ShardImage
from .view_colours import ROW, colour_row

Pixels: TypeAlias = np.ndarray | Image.Image

ATTEMPTS = 20
"""Replacements tried for one place in a batch; only a broken folder needs more."""


@dataclass(frozen=True)
class ViewMaker:
    """From an image to its views."""

    recipe: str  # a key of augmentation.RECIPES
    size: int  # side of a view, px
    crop_scale: tuple[float, float]  # share of the image's area that a crop covers, (low, high]
    num_views: int = 2  # independent draws for contrast; 1 for the supervised baseline
    pipeline: str = "reference"  # or fast; both draw the same numbers for the same image
    upright: bool = False  # whether images are turned as their EXIF orientation says
    channels: int = 3  # that the network reads; others than 1 and 3 for the fast pipeline alone

    @property
    def is_fast(self) -> bool:
        """Whether colours are left to the training device."""
        return self.pipeline == "fast"

    def new_buffer(self) -> np.ndarray | None:
        """Return memory for the decoder, for one image at a time; None if it is not used."""
        return np.empty(BUFFER_BYTES, np.uint8) if self.is_fast else None

    def decode(self, data: bytes | memoryview, buffer: np.ndarray | None = None) -> Pixels:
        """Decode an image; raises one of ``decode.UNREADABLE`` if that fails."""
        if self.is_fast:
            return decode_channels(data, self.channels, buffer, upright=self.upright)
        if self.channels == 1:
            return Image.fromarray(decode_channels(data, 1, upright=self.upright))
        return read_rgb(data, upright=self.upright)

    def make(self, image: Pixels, rng: np.random.Generator, out: np.ndarray) -> list[list[float]]:
        """Draw the parameters of an image's views and write the views to ``out``, uint8
        (V, S, S, C). Returns each view's colours, which the fast pipeline leaves to the device.
        """
        recipe = RECIPES[self.recipe]
        height, width = image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]
        grey_first = recipe.grey_first
        drawn = [draw_parameters(rng, height, width, recipe, self.crop_scale) for _ in out]
        for view, parameters in zip(out, drawn, strict=True):
            if isinstance(image, Image.Image):
                view[:] = apply_reference(image, parameters, self.size, grey_first)
            else:
                resized_crop(image, parameters, view)
        return [colour_row(parameters, grey_first) for parameters in drawn]


def resized_crop(pixels: np.ndarray, parameters: ViewParameters, out: np.ndarray) -> None:
    """Write the crop, resized to (S, S) by PIL's antialiased bilinear filter and mirrored where the
    parameters say so.

    ``pixels`` is uint8 (H, W, C), ``out`` uint8 (S, S, C). PIL rounds to whole levels between its
    two passes, the compiled loop for C = 3 does not: at most 1 level apart. Without the loop
    torch's filter is used, also at most 1 level from PIL's.
    """
    if native.available() and pixels.shape[2] == 3:
        native.crop_resize(pixels, parameters.crop, flip=parameters.flip, out=out)
        return
    top, left, height, width = parameters.crop
    crop = np.array(pixels[top : top + height, left : left + width])
    planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=out.shape[:2], mode="bilinear", antialias=True)
    view = resized[0].permute(1, 2, 0).numpy()
    out[:] = view[:, ::-1] if parameters.flip else view


@dataclass
class ViewBatch:
    """A batch of ``count`` places under construction."""

    make_views: ViewMaker
    count: int
    # Names of images that could not be decoded and were replaced.
    unreadable: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # of them: PIL's own
    given_up: int = 0  # places for which no readable image was found

    def __post_init__(self) -> None:
        make = self.make_views
        channels = held_channels(make.channels)
        shape = (make.num_views, self.count, make.size, make.size, channels)
        self._views = torch.empty(0, dtype=torch.uint8)
        if get_worker_info() is not None:
            # As torch's own collating does: a tensor made elsewhere would be copied when sent.
            storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
            self._views.set_(storage, 0, shape)  # type: ignore[call-overload]
        else:
            self._views = self._views.new_empty(shape)
        self._colours = torch.zeros(make.num_views, self.count, ROW)
        self._numbers = torch.full((2, self.count), -1)

    def fill(self, place: int, image: Pixels, rng: np.random.Generator, *numbers: int) -> None:
        """Write the views, and label and index, of a decoded image to a place."""
        colours = self.make_views.make(image, rng, self._views.numpy()[:, place])
        self._colours.numpy()[:, place] = colours
        self._numbers.numpy()[:, place] = numbers

    def finished(self) -> dict[str, Any]:
        """Return the batch: ``views`` uint8 (V, N, C, S, S), RGB or bands, channels last in memory;
        ``colours`` float32 (V, N, ROW) in the fast pipeline alone; ``label`` (-1 without classes)
        and ``index`` int64 (N,); ``unreadable`` and ``reasons``; and ``given_up``, places without
        views.
        """
        return {
            "views": self._views.permute(0, 1, 4, 2, 3),
            **({"colours": self._colours} if self.make_views.is_fast else {}),
            "label": self._numbers[0].clone(),
            "index": self._numbers[1].clone(),
            "unreadable": self.unreadable,
            "reasons": self.reasons,
            "given_up": self.given_up,
        }


class Views(Dataset):
    """The views of images that can be read in any order: a list of places ``(epoch, index)`` gives
    a finished batch.
    """

    def __init__(self, source: IndexedSource, make_views: ViewMaker, *, seed: int) -> None:
        self.source, self.make_views, self.seed = source, make_views, seed

    def __getitem__(self, places: list[tuple[int, int]]) -> dict[str, Any]:
        batch = ViewBatch(self.make_views, len(places))

        def fill(part: range) -> list[list[str]]:
            buffer = self.make_views.new_buffer()
            return [self._fill(batch, place, places[place], buffer) for place in part]

        unreadable = list(chain(*native.in_threads(fill, len(places))))
        batch.unreadable = list(chain(*unreadable))
        batch.given_up = sum(len(names) == ATTEMPTS for names in unreadable)
        return batch.finished()

    def _fill(
        self, batch: ViewBatch, place: int, where: tuple[int, int], buffer: np.ndarray | None
    ) -> list[str]:
        """Fill a place of the batch; returns the names of those images that were replaced."""
        rng, index, labels = generator_at(self.seed, "views", *where), where[1], self.source.labels
        unreadable: list[str] = []
        while len(unreadable) < ATTEMPTS:
            try:
                image = self.make_views.decode(self.source.content(index), buffer)
            except UNREADABLE as error:
                unreadable.append(self.source.name(index))
                batch.reasons[unreadable[-1]] = str(error)
                # The batch keeps its size, which the queue's order and other processes rely on.
                index = int(rng.integers(len(self.source)))
                continue
            batch.fill(place, image, rng, int(labels[index]) if len(labels) else -1, index)
            break
        return unreadable


class ShardViews(IterableDataset):
    """This worker's batches of a run, each as ``ViewBatch.finished`` returns it.

    Views are a function of (seed, epoch, image's number), and of how often the epoch has come to
    the image. An image that cannot be decoded is replaced by the next of its block that can be.

    A problem with a shard arrives as a batch {"error": sentence}: an exception would reach the main
    process with a traceback in it.
    """

    def __init__(self, batches: ShardBatches, make_views: ViewMaker) -> None:
        self.batches, self.make_views = batches, make_views

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first = self.batches.start_iteration + (worker.id if worker else 0)
        stream = first % self.batches.num_streams
        try:
            candidates, buffer = self._candidates(stream, first), self.make_views.new_buffer()
            for _ in self.batches.iterations_of(stream, first, self.batches.max_iterations):
                batch = ViewBatch(self.make_views, self.batches.batch_size_per_rank)
                for place in range(batch.count):
                    self._fill(batch, place, *next(candidates), buffer)
                yield batch.finished()
        except InputError as error:
            yield {"error": str(error)}

    def _candidates(self, stream: int, start: int) -> Iterator[tuple[int, Iterator[ShardImage]]]:
        """Yield, for each place of the run from ``start`` on, the epoch and the image to use,
        followed by what replaces it.
        """
        waiting = self.batches.blocks(stream, start)
        block = next(waiting, None)
        while block is not None:
            block.fill(1.0)
            following = next(waiting, None)
            for turn, place in enumerate(block.order):
                if following is not None:  # read ahead, so that nothing waits for the next block
                    following.fill((turn + 1) / len(block.order))
                if turn >= block.used:
                    rest = (block.images[i] for i in block.order[turn:])
                    yield block.epoch, chain(rest, following.images if following else ())
                block.images[place] = None
            block = following

    def _fill(
        self, batch: ViewBatch, place: int, epoch: int, images: Iterator[ShardImage], buffer: Any
    ) -> None:
        """Write the views of the first image that can be decoded."""
        rng = None
        for candidate in islice(images, ATTEMPTS):
            if rng is None:
                again = [candidate.again] if candidate.again else []
                rng = generator_at(self.batches.seed, "views", epoch, candidate.number, *again)
            try:
                image = self.make_views.decode(candidate.data, buffer)
            except UNREADABLE as error:
                batch.unreadable.append(candidate.name)
                batch.reasons[candidate.name] = str(error)
                continue
            batch.fill(place, image, rng, candidate.label, candidate.number)
            return
        batch.given_up += 1
