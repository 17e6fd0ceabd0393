"""The stamp: where weights come from and which pixels they expect, kept inside the converted file.

Conventions:
    Pixel statistics are on the 0-255 scale, in the channel order that ``format`` names. An entry is None where the source does
    not say; nobody guesses then.
Where it lies:
    Detectron2 ``.pkl``: key ``moco_transfer`` beside ``model`` (Detectron2 passes unknown keys through). torchvision ``.pth``:
    the state dict's own ``_metadata``, which load_state_dict leaves alone. timm ``.safetensors``: the metadata, as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from moco_transfer.runtime.errors import InputError

from .formats import Source
from .layouts import IMAGENET_PIXELS, MSRA_PIXELS
from .read import Content

KEY = "moco_transfer"
SCHEMA = 1

# Who wrote a Detectron2 file that carries no stamp, told by its ``__author__``: these train with torchvision's statistics.
_TORCHVISION_AUTHORS = ("MOCO", "torchvision", "moco_transfer")


def read_stamp(content: Content) -> dict[str, Any] | None:
    """Return the stamp that a converted file carries, or None.

    Raises:
        InputError: If there is one of a schema that this version does not know.
    """
    beside = getattr(content.top, "_metadata", None)
    stamp = content.top.get(KEY, beside.get(KEY) if isinstance(beside, Mapping) else None)
    if stamp is None and KEY in content.metadata:
        try:
            stamp = json.loads(content.metadata[KEY])
        except ValueError as error:
            raise InputError(f"{content.path}: its {KEY!r} stamp is not JSON ({error}); convert it anew.") from error
    if stamp is None:
        return None
    if not isinstance(stamp, Mapping) or stamp.get("schema") != SCHEMA:
        got = stamp.get("schema") if isinstance(stamp, Mapping) else type(stamp).__name__
        raise InputError(f"{content.path}: its stamp has schema {got!r}, this version reads {SCHEMA}; convert it anew.")
    if stamp.get("format") is not None:  # None: the source did not say
        _check_pixels(content, {"format": stamp["format"], "mean": stamp.get("pixel_mean"), "std": stamp.get("pixel_std")})
    if not isinstance(stamp.get("stride_in_1x1"), bool):
        raise InputError(f"{content.path}: its stamp has stride_in_1x1 {stamp.get('stride_in_1x1')!r}, expected True or False.")
    return dict(stamp)


def make_stamp(content: Content, source: Source, *, arch: str, sha256: str) -> dict[str, Any]:
    """Return the stamp of a file that is about to be written from ``source``.

    Args:
        content: The file that was read.
        source: The encoder taken out of it.
        arch: Its architecture.
        sha256: Of the file that was read, 64 hexadecimal digits.

    Raises:
        InputError: If our own checkpoint states its pixels in a way that cannot be understood.
    """
    stamp = {
        "schema": SCHEMA,
        "source": content.path.name,
        "source_sha256": sha256,
        "source_format": source.format,
        "mechanism": source.layout.mechanism,
        "arch": arch,
        "encoder": source.encoder,
        "epoch": None,
        **_pixels(content, source),
        "stride_in_1x1": source.layout.naming == "caffe2",
    }
    before = read_stamp(content)
    if before is not None:  # what the weights were trained with does not change by renaming them
        kept = ("mechanism", "encoder", "epoch", "format", "pixel_mean", "pixel_std", "stride_in_1x1")
        stamp.update({key: before[key] for key in kept if key in before})
    if source.format == KEY and isinstance(content.top.get("mechanism"), str):
        stamp["mechanism"] = content.top["mechanism"]
    epoch = content.top.get("epoch")
    if source.layout.has_epoch and isinstance(epoch, int) and not isinstance(epoch, bool):
        stamp["epoch"] = epoch
    return stamp


def _pixels(content: Content, source: Source) -> dict[str, Any]:
    pixels: Mapping[str, Any] | None = IMAGENET_PIXELS
    if source.format == KEY and "pixels" in content.top:
        pixels = content.top["pixels"]
        _check_pixels(content, pixels)
    elif source.layout.naming == "caffe2":
        pixels = MSRA_PIXELS
    elif source.layout.naming == "detectron2" and content.top.get("__author__") not in _TORCHVISION_AUTHORS:
        pixels = None
    if pixels is None:
        return {"format": None, "pixel_mean": None, "pixel_std": None}
    return {
        "format": pixels["format"],
        "pixel_mean": [float(value) for value in pixels["mean"]],
        "pixel_std": [float(value) for value in pixels["std"]],
    }


def _check_pixels(content: Content, pixels: Any) -> None:
    def is_triple(values: Any) -> bool:
        numbers = isinstance(values, (list, tuple)) and len(values) == 3
        return numbers and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)

    well_formed = isinstance(pixels, Mapping) and pixels.get("format") in ("RGB", "BGR")
    if not well_formed or not is_triple(pixels.get("mean")) or not is_triple(pixels.get("std")) or min(pixels["std"]) <= 0:
        raise InputError(
            f"{content.path}: its pixels are {str(pixels)[:100]!r}, expected format RGB or BGR, and mean and std of 3 "
            "numbers on the 0-255 scale."
        )
