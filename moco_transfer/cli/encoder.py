"""What ``knn`` and ``linear`` share: options, and an encoder out of a file of any layout that
``convert`` reads.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pretrain.encoder_file import TrainedEncoder
    from ..pretrain.features import Precision

PRECISIONS = ("fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is evaluated on what."""
    add_checkpoint(parser)
    parser.add_argument(
        "--train",
        required=True,
        metavar="DIR",
        help="images to learn from: class folders, a list file with labels, or CIFAR-10",
    )
    parser.add_argument(
        "--test",
        required=True,
        metavar="DIR",
        help="images asked about, of the same classes (CIFAR-10: its test images)",
    )
    add_how(parser)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the file."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint of pretrain, an official MoCo file, or what convert reads",
    )


def add_how(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how features are computed."""
    parser.add_argument(
        "--encoder",
        default="q",
        choices=("q", "k"),
        help="q: the trained encoder (default); k: its momentum copy",
    )
    parser.add_argument(
        "--image-size",
        type=_positive,
        metavar="PX",
        help="side of an image (default: that of pre-training; 224 if unknown)",
    )
    parser.add_argument(
        "--resize",
        type=_positive,
        metavar="PX",
        help="shorter side before the centre crop (default: side x 256/224, or the run's)",
    )
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="data workers per process (default 4)"
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|mps",
        help="where to compute (default: CUDA when there is one)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=PRECISIONS,
        help="of the encoder (default fp32; bf16 is faster where it is built in)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def open_encoder(args: argparse.Namespace) -> TrainedEncoder:
    """Read the encoder that the options name.

    Raises:
        InputError: If the file cannot be read, is of no known layout, or its encoder is not whole.
    """
    from ..convert.read import read_checkpoint
    from ..data.images.labelled import protocol_resize
    from ..pretrain.encoder_file import trained_encoder

    content = read_checkpoint(args.checkpoint)
    found = trained_encoder(content.top, args.checkpoint, encoder=args.encoder) or _converted(
        content, args
    )
    size = args.image_size or found.view.size
    resize = args.resize or (protocol_resize(size) if args.image_size else found.view.resize)
    return dataclasses.replace(
        found, view=dataclasses.replace(found.view, size=size, resize=max(resize, size))
    )


def _converted(content: Any, args: argparse.Namespace) -> TrainedEncoder:
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
            f" has STRIDE_IN_1X1 {stamp['stride_in_1x1']}; features can be computed with RGB and"
            " False alone. Take the checkpoint that it was made from."
        )
    mean, std = tuple(stamp["pixel_mean"]), tuple(stamp["pixel_std"])
    found = backbone_encoder(source.state, args.checkpoint, arch=arch, mean=mean, std=std)
    return dataclasses.replace(found, mechanism=stamp["mechanism"] or "", epoch=stamp["epoch"])


def precision_of(args: argparse.Namespace, device: Any) -> Precision:
    """Return where and how to compute."""
    import torch

    from ..pretrain.features import Precision

    return Precision(
        device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
    )


def origin_of(args: argparse.Namespace, found: TrainedEncoder) -> dict[str, Any]:
    """Return what results.json says about the encoder and the images."""
    from ..runtime.files import sha256_of

    return {
        "checkpoint": args.checkpoint,
        "checkpoint_sha256": sha256_of(args.checkpoint),
        "arch": found.arch,
        "mechanism": found.mechanism,
        "epoch": found.epoch,
        "encoder": args.encoder,
        "train": args.train,
        "test": args.test,
        "image_size": found.view.size,
        "resize": found.view.resize,
        "precision": args.precision,
    }
