"""JPEG decoded on the training device: `DATA.DECODE device`, on CUDA by nvJPEG in batches.

A data worker then ships encoded bytes and what it drew; the training process decodes the batch,
cuts the views, resizes and mirrors them on the device, and gets what a worker would have made:
    uint8 views, the same numbers drawn from the size that a file's header says.

    worker    EncodedViews: bytes of usual JPEGs (Huffman-coded, 8 bits, grey or YCbCr, whole to the
              end marker) as they are; anything else decoded there by ``decode.py`` and shipped as
              pixels. Unreadable images are replaced there by the worker's rule.
    device    DeviceDecoder: torchvision's ``decode_jpeg`` of the whole list; crops by torch's
        antialiased bilinear filter.

What a worker cannot see without decoding is damage inside the file. A batch that the device's
decoder refuses is decoded image by image; those that it refuses alone are made again as a
worker of ``DATA.DECODE worker`` makes them, replacement included.

Faithfulness, held by tests/data/test_device_decode.py on the CPU, where the same code runs:
    1 level from the worker's views on the same pixels (the filter's rounding);
    on the CPU torchvision's libjpeg-turbo gives the worker's pixels. **nvJPEG does not**: its
    inverse transform and its chroma upsampling round otherwise; by a few levels on most pixels,
    more along sharp coloured edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.io import ImageReadMode, decode_jpeg

from ...runtime.seed import generator_at
from ..images.decode import UNREADABLE, decode_pixels
from .augmentation import RECIPES, draw_parameters
from .two_views import ATTEMPTS, Views
from .view_batch import ViewMaker
from .view_colours import ROW, colour_row

PIXELS = (
    "decoded on the GPU by nvJPEG, whose pixels differ from libjpeg's: by a few levels of 255"
    " mostly, by more along sharp coloured edges"
)
"""What a run's config says of its pixels."""

_HUFFMAN = (
    0xC0,
    0xC1,
    0xC2,
)  # baseline, extended, progressive; arithmetic coding and lossless are not nvJPEG's
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LETTERS = b"RGB"  # ids of the components of a JPEG that holds RGB as it is


class Encoded(NamedTuple):
    """An image that the device will decode.

    Attributes:
        data: The JPEG file's bytes.
        height, width: px, from its header.
    """

    data: bytes
    height: int
    width: int


def read_header(data: bytes) -> Encoded | None:
    """Return a JPEG with its size if every decoder reads its kind and it has an end; None for
    whatever is better left to ``decode.py``.
    """
    if data[:2] != b"\xff\xd8" or data[-64:].rstrip(b"\0").find(b"\xff\xd9") < 0:
        return None
    place, end = 2, len(data) - 20
    while place < end and data[place] == 0xFF:
        marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
        if (
            marker == 0xEE and data[place + 4 : place + 9] == b"Adobe" and data[place + 15] == 0
        ):  # RGB or CMYK, not YCbCr
            return None
        if marker in _FRAMES:
            height, width, channels = (
                data[place + 5] << 8 | data[place + 6],
                data[place + 7] << 8 | data[place + 8],
                data[place + 9],
            )
            usual = (
                marker in _HUFFMAN
                and data[place + 4] == 8
                and channels in (1, 3)
                and height
                and width
            )
            letters = channels == 3 and bytes(data[place + 10 : place + 19 : 3]) == _LETTERS
            return (
                Encoded(data, height, width)
                if usual and not letters and height * width <= _MOST_PIXELS
                else None
            )
        place += 2 + length if marker != 0xFF else 1
    return None


_MOST_PIXELS = (
    21 << 20
)  # larger ones are rare, and 256 of them at once would fill a GPU; the worker's buffer ends there too


class EncodedBatch:
    """A batch under construction whose images are decoded later; filled as
    ``view_batch.ViewBatch`` is.

    Args:
        make_views: Recipe and size of the views; its pipeline is ``fast``.
        count: Places, N.
    """

    def __init__(self, make_views: ViewMaker, count: int) -> None:
        self.make_views, self.count = make_views, count
        self.unreadable: list[str] = []
        self.given_up = 0
        self._parts: list[np.ndarray] = [np.empty(0, np.uint8)] * count
        self._sizes = np.zeros((count, 3), np.int64)
        self._geometry = np.zeros((make_views.num_views, count, 5), np.int64)
        self._colours = torch.zeros(make_views.num_views, count, ROW)
        self._numbers = np.full((2, count), -1, np.int64)

    def fill(
        self,
        place: int,
        image: Encoded | np.ndarray,
        rng: np.random.Generator,
        *,
        label: int,
        index: int,
    ) -> None:
        """Note an image and what is drawn for its views, the numbers that ``ViewMaker.fill``
        draws.
        """
        make, recipe = self.make_views, RECIPES[self.make_views.recipe]
        encoded = isinstance(image, Encoded)
        height, width = (image.height, image.width) if encoded else image.shape[:2]
        self._parts[place] = (
            np.frombuffer(image.data, np.uint8)
            if encoded
            else np.ascontiguousarray(image).reshape(-1)
        )
        self._sizes[place] = height, width, encoded
        for v in range(make.num_views):
            parameters = draw_parameters(
                rng, height=height, width=width, recipe=recipe, crop_scale=make.crop_scale
            )
            self._geometry[v, place] = *parameters.crop, parameters.flip
            self._colours[v, place] = torch.tensor(
                colour_row(parameters, grey_first=recipe.grey_first)
            )
        self._numbers[:, place] = label, index

    def finished(self) -> dict[str, Any]:
        """Return the batch.

        Returns:
            ``encoded`` uint8 (bytes,), the images one behind the other; ``ends`` int64 (N + 1,),
            where each begins and ends in it; ``sizes`` int64 (N, 3): height, width, and 1 for a
            JPEG, 0 for rows of RGB bytes; ``geometry`` int64 (V, N, 5): top, left, height, width of
            the crop, and 1 to mirror it; ``colours``, ``label``, ``index``, ``unreadable`` and
            ``given_up`` as in a batch of views.
        """
        if self.given_up:
            return {"views": None, "unreadable": self.unreadable, "given_up": self.given_up}
        ends = np.cumsum([0, *map(len, self._parts)])
        whole = _bytes(int(ends[-1]))
        np.concatenate(self._parts, out=whole.numpy())
        label, index = torch.from_numpy(self._numbers)
        arrays = {"ends": ends, "sizes": self._sizes, "geometry": self._geometry}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        numbers = {"label": label.clone(), "index": index.clone()}
        return {
            "encoded": whole,
            **tensors,
            "colours": self._colours,
            **numbers,
            "unreadable": self.unreadable,
            "given_up": 0,
        }


def _bytes(count: int) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.uint8)
    # In shared memory from the start: it would be copied on its way out of the worker.
    return torch.empty(0, dtype=torch.uint8).set_(
        torch.UntypedStorage._new_shared(count), 0, (count,)
    )


class EncodedViews(Views):
    """What a data worker ships where the device decodes: for a list of places the batch of
    :meth:`EncodedBatch.finished`, and ``places``.
    """

    def __getitems__(self, places: list[tuple[int, int]]) -> dict[str, Any]:
        batch = EncodedBatch(self.make_views, len(places))
        for place, (epoch, index) in enumerate(places):
            self._fill(batch, place, epoch, index)
        return batch.finished() | {"places": torch.tensor(places, dtype=torch.int64)}

    def _fill(self, batch: EncodedBatch, place: int, epoch: int, index: int) -> None:
        rng = generator_at(self.seed, "views", epoch, index)
        for _ in range(ATTEMPTS):
            try:
                image = self._read(index)
            except UNREADABLE:
                batch.unreadable.append(self.source.name(index))
                index = int(rng.integers(len(self.source)))
                continue
            label = int(self.source.labels[index]) if len(self.source.labels) else -1
            batch.fill(place, image, rng, label=label, index=index)
            return
        batch.given_up += 1

    def _read(self, index: int) -> Encoded | np.ndarray:
        if not hasattr(self.source, "encoded"):
            return self.source.decode(index)
        data = self.source.encoded(index)
        # Decoded images wait for the others of their batch: none may lie in a buffer that the
        # next one takes.
        return read_header(data) or decode_pixels(data)


class DeviceDecoder:
    """From encoded batches to batches of views on a device.

    Args:
        views: What a worker of ``DATA.DECODE worker`` would ship; makes the places that the device
            cannot decode.
        device: Where to decode, cut and resize.
    """

    def __init__(self, views: Views, device: torch.device) -> None:
        self.views, self.device = views, device

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch as ``ViewBatch.finished`` returns it, ``views`` on the device; a batch
        that was given up as it is.
        """
        if batch["given_up"]:
            return batch
        made = {name: batch[name] for name in ("colours", "label", "index", "given_up")}
        images = self._decoded(batch)
        views = self._views(images, batch["geometry"])
        unreadable = list(batch["unreadable"])
        for place in (i for i, image in enumerate(images) if image is None):
            again = self.views.__getitems__([tuple(batch["places"][place].tolist())])
            unreadable += again["unreadable"]
            if again["given_up"]:
                return {"views": None, "unreadable": unreadable, "given_up": again["given_up"]}
            views[:, place] = again["views"][:, 0].to(self.device)
            made["colours"][:, place] = again["colours"][:, 0]
            made["label"][place], made["index"][place] = again["label"][0], again["index"][0]
        return {"views": views, **made, "unreadable": unreadable}

    def _decoded(self, batch: dict[str, Any]) -> list[Tensor | None]:
        """Return each image as uint8 (3, H, W) on the device, None where the decoder refuses it
        or finds another size than its header's.
        """
        whole, ends, sizes = batch["encoded"], batch["ends"].tolist(), batch["sizes"].tolist()
        parts = [whole[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        jpegs = [i for i, (_, _, encoded) in enumerate(sizes) if encoded]
        found: list[Tensor | None] = [None] * len(parts)
        for i, image in zip(jpegs, self._decode([parts[i] for i in jpegs]), strict=True):
            found[i] = (
                image if image is not None and image.shape[1:] == tuple(sizes[i][:2]) else None
            )
        for i, (height, width, encoded) in enumerate(sizes):
            if not encoded:
                found[i] = (
                    parts[i]
                    .to(self.device, non_blocking=True)
                    .view(height, width, 3)
                    .permute(2, 0, 1)
                )
        return found

    def _decode(self, jpegs: list[Tensor]) -> list[Tensor | None]:
        if not jpegs:
            return []
        try:
            return decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=self.device)
        except RuntimeError:  # one of them; which one is not said, and nothing is given back
            return (
                [None]
                if len(jpegs) == 1
                else [image for jpeg in jpegs for image in self._decode([jpeg])]
            )

    def _views(self, images: list[Tensor | None], geometry: Tensor) -> Tensor:
        """Return uint8 (V, N, 3, S, S), channels last in memory; zeros where there is no image."""
        size = self.views.make_views.size
        out = torch.empty(
            *geometry.shape[:2], size, size, 3, dtype=torch.uint8, device=self.device
        ).permute(0, 1, 4, 2, 3)
        flips = geometry[:, :, 4].bool().to(self.device, non_blocking=True)
        for v, crops in enumerate(geometry.tolist()):
            resized = torch.stack(
                [
                    self._resized(image, crop, size)
                    for image, crop in zip(images, crops, strict=True)
                ]
            )
            mirrored = torch.where(flips[v].view(-1, 1, 1, 1), resized.flip(3), resized)
            out[v] = mirrored.add_(0.5).clamp_(0, 255)  # whole levels by cutting off
        return out

    def _resized(self, image: Tensor | None, crop: list[int], size: int) -> Tensor:
        if image is None:
            return torch.zeros(3, size, size, device=self.device)
        top, left, height, width, _ = crop
        # In float32: the filter takes no bytes on CUDA.
        part = image[None, :, top : top + height, left : left + width].float()
        return F.interpolate(
            part, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )[0]
