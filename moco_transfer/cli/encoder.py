"""What ``knn`` and ``linear`` share: the encoder that the options name, out of any file that
``convert`` reads, and what results.json holds about it.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..convert.read import Content
    from ..pretrain.encoder_file import TrainedEncoder
    from ..pretrain.features import Compute


def open_encoder(args: argparse.Namespace) -> TrainedEncoder:
    """Read the encoder that the options name.

    Raises:
        InputError: If the file cannot be read, is of no known layout, or its encoder is not whole.
    """
    from ..convert.read import read_checkpoint
    from ..data.views.labelled import protocol_resize
    from ..pretrain.encoder_file import trained_encoder

    content = read_checkpoint(args.checkpoint)
    found = trained_encoder(content.top, args.checkpoint, encoder=args.encoder)
    found = found or _converted(content, args)
    if (size := args.image_size) is None:
        return found
    view = dataclasses.replace(found.view, size=size, resize=protocol_resize(size))
    return dataclasses.replace(found, view=view)


def _converted(content: Content, args: argparse.Namespace) -> TrainedEncoder:
    """Take a backbone, without a head, out of a file of another layout."""
    from ..convert.coverage import check_source
    from ..convert.formats import read_source
    from ..convert.stamp import make_stamp
    from ..models import recognise
    from ..pretrain.encoder_file import backbone_encoder
    from ..runtime.errors import InputError
    from ..runtime.files import sha256_of

    source = read_source(content, encoder=args.encoder)
    arch = recognise(source.state)
    check_source(source, arch, args.checkpoint)
    stamp = make_stamp(content, source, arch=arch, sha256=sha256_of(args.checkpoint))
    if stamp["format"] != "RGB" or stamp["stride_in_1x1"] is not False:
        raise InputError(
            f"{args.checkpoint} ({source.title}) expects {stamp['format'] or 'unknown'} pixels and"
            f" STRIDE_IN_1X1 {stamp['stride_in_1x1']}; features need RGB and False. Use the"
            " checkpoint that it was made from."
        )
    mean, std = tuple(stamp["pixel_mean"]), tuple(stamp["pixel_std"])
    found = backbone_encoder(source.state, args.checkpoint, arch=arch, mean=mean, std=std)
    return dataclasses.replace(found, mechanism=stamp["mechanism"] or "", epoch=stamp["epoch"])


def compute_of(args: argparse.Namespace, device: Any) -> Compute:
    """Return where and how to compute."""
    from ..pretrain.features import Compute
    from ..runtime.device import choose_precision

    return Compute(device, choose_precision(args.precision, device).dtype)


def origin_of(args: argparse.Namespace, found: TrainedEncoder) -> dict[str, Any]:
    """Return what results.json holds about the encoder and the images."""
    from ..runtime.files import sha256_of

    asked = ("checkpoint", "encoder", "train", "test", "precision")
    origin = {name: getattr(args, name) for name in asked}
    origin |= {name: getattr(found, name) for name in ("arch", "mechanism", "epoch")}
    view = {"image_size": found.view.size, "resize": found.view.resize}
    return origin | view | {"checkpoint_sha256": sha256_of(args.checkpoint)}
