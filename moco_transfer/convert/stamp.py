"""The stamp: where weights come from and which pixels they expect, kept inside the converted file.

Conventions:
    Pixel statistics are on the 0-255 scale, in the channel order that ``format`` names. An entry is
    None where the source does not say; nobody guesses then.
Where it lies:
    Detectron2 ``.pkl``: key ``moco_transfer`` beside ``model`` (Detectron2 passes unknown keys
    through). torchvision ``.pth``: the state dict's own ``_metadata``, which load_state_dict leaves
    alone. timm ``.safetensors``: the metadata, as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from moco_transfer.models import BASIC_BLOCKS, IMAGENET_PIXELS, MSRA_PIXELS
from moco_transfer.runtime.errors import InputError

from .formats import Source
from .read import Content

KEY = "moco_transfer"
SCHEMA = 1

FINE_TUNED = "moco_transfer.finetune/"
"""How the ``format`` entry of our own detectors begins."""

# Who wrote a Detectron2 file that carries no stamp, told by its ``__author__``: these train with
# torchvision's statistics.
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
            raise InputError(
                f"{content.path}: its {KEY!r} stamp is not JSON ({error}); convert it again."
            ) from error
    if stamp is None:
        return None
    if not isinstance(stamp, Mapping) or stamp.get("schema") != SCHEMA:
        got = stamp.get("schema") if isinstance(stamp, Mapping) else type(stamp).__name__
        raise InputError(
            f"{content.path}: its stamp has schema {got!r}, this version reads {SCHEMA}; convert it"
            " again."
        )
    if stamp.get("format") is not None:  # None: the source did not say
        _check_pixels(
            content,
            {
                "format": stamp["format"],
                "mean": stamp.get("pixel_mean"),
                "std": stamp.get("pixel_std"),
            },
        )
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
    before = read_stamp(content)
    if before is not None:  # what the weights were trained with does not change by renaming them
        kept = (
            "mechanism",
            "encoder",
            "epoch",
            "format",
            "pixel_mean",
            "pixel_std",
            "stride_in_1x1",
        )
        stamp.update({key: before[key] for key in kept if key in before})
    if source.format == KEY and isinstance(content.top.get("mechanism"), str):
        stamp["mechanism"] = content.top["mechanism"]
    epoch = _at(content.top, source.layout.epoch)
    if isinstance(epoch, int) and not isinstance(epoch, bool):
        stamp["epoch"] = epoch
    return stamp


def _at(top: Mapping[str, Any], path: str) -> Any:
    """Return what lies at a dotted path of dicts, None where there is nothing."""
    node: Any = top
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _pixels(content: Content, source: Source, arch: str) -> dict[str, Any]:
    pixels: Mapping[str, Any] | None = IMAGENET_PIXELS
    stride: bool | None = False
    if source.format == KEY and "pixels" in content.top:
        pixels = content.top["pixels"]
        _check_pixels(content, pixels)
    elif source.layout.naming == "caffe2":
        pixels, stride = MSRA_PIXELS, True
    elif (
        source.layout.naming == "detectron2"
        and content.top.get("__author__") not in _TORCHVISION_AUTHORS
    ):
        pixels, stride = _trained_with(content)
    return {
        "format": pixels["format"] if pixels else None,
        "pixel_mean": [float(value) for value in pixels["mean"]] if pixels else None,
        "pixel_std": [float(value) for value in pixels["std"]] if pixels else None,
        # A basic block has no 1x1 convolution that could have a stride.
        "stride_in_1x1": False if arch in BASIC_BLOCKS else stride,
    }


def _trained_with(content: Content) -> tuple[Mapping[str, Any] | None, bool | None]:
    """Return what a detector was fine-tuned with, pixels and STRIDE_IN_1X1, from the config in our
    checkpoints; else None.
    """
    if not str(content.top.get("format", "")).startswith(FINE_TUNED):
        return None, None
    try:
        config = yaml.safe_load(content.top["config"])
        model = config["MODEL"]
        pixels = {
            "format": config["INPUT"]["FORMAT"],
            "mean": model["PIXEL_MEAN"],
            "std": model["PIXEL_STD"],
        }
        _check_pixels(content, pixels)
        return pixels, bool(model["RESNETS"]["STRIDE_IN_1X1"])
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{content.path}: its 'config' does not state INPUT.FORMAT and MODEL.PIXEL_MEAN"
            f" ({error!r:.100})."
        ) from error


def _check_pixels(content: Content, pixels: Any) -> None:
    def is_triple(values: Any) -> bool:
        numbers = isinstance(values, (list, tuple)) and len(values) == 3
        return numbers and all(
            isinstance(value, (int, float)) and math.isfinite(value) for value in values
        )

    well_formed = isinstance(pixels, Mapping) and pixels.get("format") in ("RGB", "BGR")
    if (
        not well_formed
        or not is_triple(pixels.get("mean"))
        or not is_triple(pixels.get("std"))
        or min(pixels["std"]) <= 0
    ):
        raise InputError(
            f"{content.path}: its pixels are {str(pixels)[:100]!r}, expected format RGB or BGR, and"
            " mean and std of 3 numbers on the 0-255 scale."
        )
