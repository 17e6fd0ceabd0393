"""What ``knn`` and ``linear`` share: the encoder that the options name, out of any file that
``convert`` reads, and what results.json holds about it.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pretrain.encoder_file import TrainedEncoder


def open_encoder(args: argparse.Namespace) -> TrainedEncoder:
    """Read the encoder that the options name; raises as ``encoder_file.read_encoder``."""
    from ..data.views.labelled import protocol_resize
    from ..pretrain.encoder_file import read_encoder

    found = read_encoder(args.checkpoint, encoder=args.encoder)
    if (size := args.image_size) is None:
        return found
    view = dataclasses.replace(found.view, size=size, resize=protocol_resize(size))
    return dataclasses.replace(found, view=view)


def origin_of(args: argparse.Namespace, found: TrainedEncoder) -> dict[str, Any]:
    """Return what results.json holds about the encoder and the images."""
    from ..convert.zoo import local_file
    from ..runtime.files import sha256_of

    asked = ("checkpoint", "encoder", "train", "test", "precision")
    origin = {name: getattr(args, name) for name in asked}
    origin |= {name: getattr(found, name) for name in ("arch", "mechanism", "epoch")}
    view = {"image_size": found.view.size, "resize": found.view.resize}
    return origin | view | {"checkpoint_sha256": sha256_of(local_file(args.checkpoint))}
