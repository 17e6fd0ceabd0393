"""The stamp: where weights come from and which pixels they expect, kept inside the converted file.

Pixel statistics are on the 0-255 scale, in the channel order that ``format`` names. An entry is
None where the source does not say; nothing is guessed.

Detectron2 ``.pkl`` and official files: key ``moco_transfer`` of the outer dict (Detectron2 passes
unknown keys through). torchvision ``.pth``: the state dict's own ``_metadata``, which
load_state_dict ignores. timm ``.safetensors``: the metadata, as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from ..models import IMAGENET_PIXELS, MSRA_PIXELS
from ..models.resnets import BASIC_BLOCKS
from ..runtime.errors import InputError
from .formats import Source
from .read import Content

KEY = "moco_transfer"
SCHEMA = 1

_FINE_TUNED = "moco_transfer.finetune/"
"""How the ``format`` entry of our own detectors begins."""

# ``__author__`` of Detectron2 files without a stamp that torchvision's statistics belong to.
_TORCHVISION_AUTHORS = ("MOCO", "torchvision", "moco_transfer")

# What renaming the tensors does not change.
_KEPT = ("mechanism", "encoder", "epoch", "format", "pixel_mean", "pixel_std", "stride_in_1x1")


def read_stamp(content: Content) -> dict[str, Any] | None:
    """Return the stamp that a converted file carries, or None.

    Raises:
        InputError: If its schema is unknown or its entries make no sense.
    """
    beside = getattr(content.top, "_metadata", None)
    stamp = content.top.get(KEY, beside.get(KEY) if isinstance(beside, Mapping) else None)
    if stamp is None and KEY in content.metadata:
        try:
            stamp = json.loads(content.metadata[KEY])
        except ValueError as error:
            raise InputError(f"{content.path}: its {KEY!r} stamp is not JSON ({error}).") from error
    if stamp is None:
        return None
    if not isinstance(stamp, Mapping) or stamp.get("schema") != SCHEMA:
        got = stamp.get("schema") if isinstance(stamp, Mapping) else type(stamp).__name__
        raise InputError(
            f"{content.path}: its stamp has schema {got!r}, this version reads {SCHEMA}; convert it"
            " again."
        )
    if stamp.get("format") is not None:
        mean, std = stamp.get("pixel_mean"), stamp.get("pixel_std")
        _check_pixels(content, {"format": stamp["format"], "mean": mean, "std": std})
    if stamp.get("stride_in_1x1") not in (True, False, None):
        raise InputError(
            f"{content.path}: its stamp has stride_in_1x1 {stamp.get('stride_in_1x1')!r}, expected"
            " True or False."
        )
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
        **_pixels(content, source, arch),
    }
    before = read_stamp(content) or {}
    stamp |= {key: before[key] for key in _KEPT if key in before}
    if source.format == KEY and isinstance(content.top.get("mechanism"), str):
        stamp["mechanism"] = content.top["mechanism"]
    epoch: Any = content.top
    for key in source.layout.epoch.split("."):
        epoch = epoch.get(key) if isinstance(epoch, Mapping) else None
    if type(epoch) is int:  # not bool
        stamp["epoch"] = epoch
    return stamp


def _pixels(content: Content, source: Source, arch: str) -> dict[str, Any]:
    pixels: Mapping[str, Any] | None = IMAGENET_PIXELS
    stride: bool | None = False
    if source.format == KEY and "pixels" in content.top:
        pixels = _check_pixels(content, content.top["pixels"])
    elif source.naming == "caffe2":
        pixels, stride = MSRA_PIXELS, True
    elif (
        source.naming == "detectron2" and content.top.get("__author__") not in _TORCHVISION_AUTHORS
    ):
        pixels, stride = _trained_with(content)
    return {
        "format": pixels["format"] if pixels else None,
        "pixel_mean": [float(value) for value in pixels["mean"]] if pixels else None,
        "pixel_std": [float(value) for value in pixels["std"]] if pixels else None,
        "stride_in_1x1": False if arch in BASIC_BLOCKS else stride,
    }


def _trained_with(content: Content) -> tuple[Mapping[str, Any] | None, bool | None]:
    """Return the pixels and STRIDE_IN_1X1 in the config of one of our detectors; else None."""
    if not str(content.top.get("format", "")).startswith(_FINE_TUNED):
        return None, None
    try:
        config = yaml.safe_load(content.top["config"])
        model, order = config["MODEL"], config["INPUT"]["FORMAT"]
        pixels = {"format": order, "mean": model["PIXEL_MEAN"], "std": model["PIXEL_STD"]}
        return _check_pixels(content, pixels), bool(model["RESNETS"]["STRIDE_IN_1X1"])
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{content.path}: its 'config' does not state INPUT.FORMAT and MODEL.PIXEL_MEAN"
            f" ({error!r:.100})."
        ) from error


def _check_pixels(content: Content, pixels: Any) -> Mapping[str, Any]:
    def is_triple(values: Any) -> bool:
        return (
            isinstance(values, (list, tuple))
            and len(values) == 3
            and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        )

    if not (
        isinstance(pixels, Mapping)
        and pixels.get("format") in ("RGB", "BGR")
        and is_triple(pixels.get("mean"))
        and is_triple(pixels.get("std"))
        and min(pixels["std"]) > 0
    ):
        raise InputError(
            f"{content.path}: its pixels are {str(pixels)[:100]!r}, expected format RGB or BGR, and"
            " mean and std of 3 numbers on the 0-255 scale."
        )
    return pixels
