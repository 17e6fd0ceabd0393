"""The stamp: where weights come from and which pixels they expect, kept inside the converted file.

Pixel statistics are on the 0-255 scale, in the channel order that ``format`` names. An entry is
None where the source does not say. The stamp is the key ``moco_transfer``: of the outer dict in
Detectron2 and official files, of the state dict's ``_metadata`` (which load_state_dict ignores) in
torchvision's, of the metadata, as JSON, in timm's and Hugging Face's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..models import BANDS, BASIC_BLOCKS, IMAGENET_PIXELS, MSRA_PIXELS
from ..runtime.errors import InputError
from ..runtime.text import carried_config, parse_json
from .formats import Source
from .huggingface import read_facts
from .read import Content

KEY = "moco_transfer"
SCHEMA = 1

# ``__author__`` of Detectron2 files without a stamp that torchvision's statistics belong to.
_TORCHVISION_AUTHORS = ("MOCO", "torchvision", "moco_transfer")

# What renaming the tensors does not change.
_KEPT = ("mechanism", "encoder", "epoch", "format", "pixel_mean", "pixel_std", "stride_in_1x1")


def read_stamp(content: Content) -> dict[str, Any] | None:
    """Return the stamp that a converted file carries, or None; InputError if it makes no sense."""
    hidden = getattr(content.top, "_metadata", None)
    stamp = content.top.get(KEY, hidden.get(KEY) if isinstance(hidden, Mapping) else None)
    try:
        stamp = parse_json(content.metadata.get(KEY, "null")) if stamp is None else stamp
    except ValueError as error:
        raise InputError(f"{content.path}: its {KEY!r} stamp is not JSON ({error}).") from error
    if stamp is None:
        return None
    schema = stamp.get("schema") if isinstance(stamp, Mapping) else type(stamp).__name__
    stride = stamp.get("stride_in_1x1") if isinstance(stamp, Mapping) else None
    if schema != SCHEMA or stride not in (True, False, None):
        raise InputError(
            f"{content.path}: its stamp has schema {schema!r} and stride_in_1x1 {stride!r},"
            f" expected {SCHEMA} and True or False; convert it again."
        )
    if stamp.get("format") is not None:
        _check_pixels(content, *(stamp.get(k) for k in ("format", "pixel_mean", "pixel_std")))
    return dict(stamp)


def make_stamp(content: Content, source: Source, *, arch: str, sha256: str) -> dict[str, Any]:
    """Return the stamp of a file to be written.

    ``source`` was taken out of ``content``, whose file has the SHA-256 ``sha256`` (hexadecimal).
    """
    pixels, stride = _pixels(content, source)
    stamp = {
        "schema": SCHEMA,
        "source": content.path.name,
        "source_sha256": sha256,
        "source_format": source.format,
        "mechanism": source.layout.mechanism,
        "arch": arch,
        "encoder": source.encoder,
        "epoch": None,
        "format": pixels["format"] if pixels else None,
        "pixel_mean": [float(value) for value in pixels["mean"]] if pixels else None,
        "pixel_std": [float(value) for value in pixels["std"]] if pixels else None,
        "stride_in_1x1": False if arch in BASIC_BLOCKS else stride,
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


def _pixels(content: Content, source: Source) -> tuple[Mapping[str, Any] | None, bool | None]:
    """Return the pixels and STRIDE_IN_1X1 that an encoder was trained with; None: not known."""
    if source.format == KEY and "pixels" in content.top:
        pixels = content.top["pixels"]
        pixels = pixels if isinstance(pixels, Mapping) else {}
        return _check_pixels(content, *(pixels.get(k) for k in ("format", "mean", "std"))), False
    if source.naming == "huggingface":
        return read_facts(content.path)
    if source.naming == "caffe2":
        return MSRA_PIXELS, True
    if source.naming != "detectron2" or content.top.get("__author__") in _TORCHVISION_AUTHORS:
        return IMAGENET_PIXELS, False
    if not str(content.top.get("format", "")).startswith("moco_transfer.finetune/"):
        return None, None
    try:  # one of our detectors
        config = carried_config(content.top["config"], content.path)
        model, order = config["MODEL"], config["INPUT"]["FORMAT"]
        pixels = _check_pixels(content, order, model["PIXEL_MEAN"], model["PIXEL_STD"])
        return pixels, bool(model["RESNETS"]["STRIDE_IN_1X1"])
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{content.path}: its 'config' does not state INPUT.FORMAT and MODEL.PIXEL_MEAN"
            f" ({error!r:.100})."
        ) from error


def _check_pixels(content: Content, order: Any, mean: Any, std: Any) -> dict[str, Any]:
    try:
        channels = {"RGB": 3, "BGR": 3, "L": 1, BANDS: len(mean)}[order]
        is_good = len(mean) == len(std) == channels and min(std) > 0
        is_good = is_good and all(math.isfinite(value) for value in (*mean, *std))
    except (TypeError, KeyError):
        is_good = False
    if not is_good:
        raise InputError(
            f"{content.path}: its pixels are {order!r:.50}, {mean!r:.50}, {std!r:.50}, expected"
            f" format RGB or BGR (L for grey, {BANDS} for others), and mean and std for each"
            " channel on 0-255."
        )
    return {"format": order, "mean": mean, "std": std}
