"""From images to batches of views: which pipeline makes them, and the memory that they are
written to.

A batch is allocated once and filled place by place, in a data worker in shared memory: what crosses
    the process border is uint8, and
nothing is copied on the way.

Pipelines:
    fast: the decoder of ``decode.py``; crop, resize and flip in uint8 here; colours, blur and
        normalisation as batched operators on the training device (``view_colours.py``). Faithful to
        the reference within the tolerances written there and in :func:`resized_crop`.
    reference: the plain torchvision and PIL chain of the official code, finished here but for the
        normalisation.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from ..images.decode import BUFFER_BYTES, UNREADABLE, Region, decode_pixels, read_rgb
from . import native
from .augmentation import RECIPES, ViewParameters, apply_reference, draw_parameters
from .view_colours import ROW, colour_row, finish_views

PIPELINES = ("fast", "reference")


def resized_crop(pixels: np.ndarray, parameters: ViewParameters, out: np.ndarray) -> None:
    """Write the crop, resized to (S, S) by an antialiased bilinear filter and mirrored where the
    parameters say so.

    The filter is PIL's, which torchvision's RandomResizedCrop uses on images. PIL rounds to whole
    levels between its two passes, the compiled loop does not: at most 1 level apart. Without the
        compiled loop torch's is taken, also at most 1 level from PIL's.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        parameters: Crop and flip.
        out: uint8 (S, S, 3), written.
    """
    if not pixels[0].flags.c_contiguous:
        pixels = np.ascontiguousarray(pixels)
    if native.available():
        native.crop_resize(pixels, parameters.crop, flip=parameters.flip, out=out)
        return
    top, left, height, width = parameters.crop
    crop = pixels[top : top + height, left : left + width]
    planes = (
        torch.from_numpy(crop if crop.flags.writeable else crop.copy())
        .permute(2, 0, 1)
        .unsqueeze(0)
    )
    view = (
        F.interpolate(
            planes, size=out.shape[:2], mode="bilinear", antialias=True, align_corners=False
        )[0]
        .permute(1, 2, 0)
        .numpy()
    )
    out[:] = view[:, ::-1] if parameters.flip else view


class DrawnImage(NamedTuple):
    """An image and what its views will be.

    Attributes:
        image: RGB; uint8 (H, W, 3) in the fast pipeline, where perhaps the part alone that the
            crops need is decoded.
        parameters: One for each view, drawn for the image's size.
    """

    image: Image.Image | np.ndarray
    parameters: list[ViewParameters]


@dataclass(frozen=True)
class ViewMaker:
    """From an image to its views.

    Attributes:
        recipe: A key of ``augmentation.RECIPES``.
        size: Side of a view, px.
        crop_scale: Share of the image's area a crop covers, (low, high].
        num_views: 2, independent draws, for contrast; 1 for the supervised baseline.
        pipeline: One of :data:`PIPELINES`. Both draw the same numbers for the same image.
    """

    recipe: str
    size: int
    crop_scale: tuple[float, float]
    num_views: int = 2
    pipeline: str = "reference"

    def __post_init__(self) -> None:
        if self.pipeline not in PIPELINES:
            raise ValueError(f"pipeline must be one of {PIPELINES}, got {self.pipeline!r}.")

    @property
    def is_fast(self) -> bool:
        """Whether colours are left to the training device."""
        return self.pipeline == "fast"

    def new_buffer(self) -> np.ndarray | None:
        """Return memory for the decoder, one image at a time; None where the pipeline has no use
        for it.
        """
        return np.empty(BUFFER_BYTES, np.uint8) if self.is_fast else None

    def read(
        self, source: Any, index: int, rng: np.random.Generator, buffer: np.ndarray | None = None
    ) -> DrawnImage:
        """Read an image of a source and draw its views.

        Args:
            source: The images (see ``sources.py``).
            index: Which.
            rng: All that is random is drawn from it; where the image cannot be read, nothing.
            buffer: Where a decoded image may lie.

        Raises:
            OSError, SyntaxError, ValueError, DecompressionBombError: If it cannot be read; they are
                ``decode.UNREADABLE``.
        """
        return self._with_views(
            rng,
            lambda region: (
                source.decode(index, buffer, region) if self.is_fast else source.read(index)
            ),
        )

    def decode(
        self, data: bytes, rng: np.random.Generator, buffer: np.ndarray | None = None
    ) -> DrawnImage:
        """Decode an image and draw its views, as :meth:`read`."""
        return self._with_views(
            rng,
            lambda region: (
                decode_pixels(data, buffer, region) if self.is_fast else read_rgb(io.BytesIO(data))
            ),
        )

    def _with_views(
        self, rng: np.random.Generator, decode: Callable[[Region], Image.Image | np.ndarray]
    ) -> DrawnImage:
        # Views are functions of the image's size, which a header can tell before the pixels are
        # there. Should these say otherwise, or not come at all, then the generator goes back to
        # where it was: whether parts are decoded must not be seen in any number.
        before, drawn = rng.bit_generator.state, {}

        def region(height: int, width: int) -> tuple[int, int, int, int]:
            drawn[height, width] = self._draw(rng, height, width)
            return _around([parameters.crop for parameters in drawn[height, width]])

        try:
            image = decode(region)
        except UNREADABLE:
            rng.bit_generator.state = before
            raise
        size = image.shape[:2] if self.is_fast else image.size[::-1]
        if size not in drawn:
            rng.bit_generator.state = before
            drawn[size] = self._draw(rng, *size)
        return DrawnImage(image, drawn[size])

    def _draw(self, rng: np.random.Generator, height: int, width: int) -> list[ViewParameters]:
        settings = {
            "height": height,
            "width": width,
            "recipe": RECIPES[self.recipe],
            "crop_scale": self.crop_scale,
        }
        return [draw_parameters(rng, **settings) for _ in range(self.num_views)]

    def fill(self, drawn: DrawnImage, views: np.ndarray, colours: np.ndarray) -> None:
        """Write an image's views.

        Args:
            drawn: From :meth:`read` or :meth:`decode`.
            views: uint8 (V, S, S, 3), written.
            colours: float32 (V, ROW), written where the pipeline leaves colours to the device.
        """
        grey_first = RECIPES[self.recipe].grey_first
        for v, parameters in enumerate(drawn.parameters):
            if self.is_fast:
                resized_crop(drawn.image, parameters, views[v])
                colours[v] = colour_row(parameters, grey_first=grey_first)
            else:
                views[v] = apply_reference(
                    drawn.image, parameters, size=self.size, grey_first=grey_first
                )


def _around(crops: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """Return the smallest (top, left, height, width) that holds all."""
    top, left = min(crop[0] for crop in crops), min(crop[1] for crop in crops)
    return (
        top,
        left,
        max(crop[0] + crop[2] for crop in crops) - top,
        max(crop[1] + crop[3] for crop in crops) - left,
    )


@dataclass
class ViewBatch:
    """A batch under construction.

    Args:
        make_views: Makes the views.
        count: Places, N.

    Attributes:
        unreadable: Paths of images that could not be decoded and were replaced.
        given_up: Places for which no readable image was found.
    """

    make_views: ViewMaker
    count: int
    unreadable: list[str] = field(default_factory=list)
    given_up: int = 0

    def __post_init__(self) -> None:
        make = self.make_views
        shape = (make.num_views, self.count, make.size, make.size, 3)
        self._views = (
            _shared_bytes(shape)
            if get_worker_info() is not None
            else torch.empty(shape, dtype=torch.uint8)
        )
        self._colours = torch.zeros(make.num_views, self.count, ROW)
        self._arrays = self._views.numpy(), self._colours.numpy()
        self._labels = np.full(self.count, -1, np.int64)
        self._indices = np.full(self.count, -1, np.int64)

    def fill(self, place: int, drawn: DrawnImage, *, label: int, index: int) -> None:
        """Write an image's views, label and number to a place of the batch."""
        views, colours = self._arrays
        self.make_views.fill(drawn, views[:, place], colours[:, place])
        self._labels[place], self._indices[place] = label, index

    def finished(self) -> dict[str, Any]:
        """Return the batch.

        Returns:
            ``views`` uint8 (V, N, 3, S, S), RGB, channels last in memory; ``colours`` float32 (V,
            N, ROW) in the fast pipeline alone; ``label`` and ``index`` int64 (N,); ``unreadable``
            list of paths, and ``given_up``, the number of places for which no readable image was
            found (``views`` is then None).
        """
        if self.given_up:
            return {"views": None, "unreadable": self.unreadable, "given_up": self.given_up}
        colours = {"colours": self._colours} if self.make_views.is_fast else {}
        numbers = {
            "label": torch.from_numpy(self._labels),
            "index": torch.from_numpy(self._indices),
        }
        return {
            "views": self._views.permute(0, 1, 4, 2, 3),
            **colours,
            **numbers,
            "unreadable": self.unreadable,
            "given_up": 0,
        }


def _shared_bytes(shape: tuple[int, ...]) -> Tensor:
    # As torch's own collating allocates a batch in a worker; a tensor made elsewhere would be
    # copied on its way out.
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


def finish(
    views: Tensor, colours: Tensor | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return what the encoder sees: normalised views, after their colours where the pipeline left
    those to the device.

    Args:
        views: uint8 (N, 3, S, S), one view of a batch, on the training device.
        colours: float32 (N, ROW), on the CPU; None in the reference pipeline.
        mean: Per channel, 0-255.
        std: Per channel, 0-255.

    Returns:
        float32 (N, 3, S, S), channels-last where ``views`` is.
    """
    return (
        normalize(views, mean, std)
        if colours is None
        else finish_views(views, colours, mean=mean, std=std)
    )


def normalize(views: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (views - mean) / std in float32, on the views' device.

    Args:
        views: uint8 or float (..., 3, H, W), 0-255, RGB.
        mean: Per channel, 0-255.
        std: Per channel, 0-255.
    """
    return (views.to(torch.float32) - _per_channel(tuple(mean), views.device)) / _per_channel(
        tuple(std), views.device
    )


@functools.lru_cache(
    maxsize=32
)  # made once: a tensor made on a GPU in each step would make the host wait for it
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
