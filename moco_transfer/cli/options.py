"""Options that several verbs share, and the types that check their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DATASET = (
    "your own data set: NAME=coco:JSON:IMAGES or NAME=voc:ROOT:SPLIT:CLASSES; may be repeated"
)


def _number(kind: Callable[[str], float], *, above: int) -> Callable[[str], Any]:
    def number(text: str) -> float:
        if not (value := kind(text)) > above:
            raise argparse.ArgumentTypeError(f"expected a number above {above}, got {value:g}")
        return value

    return number


count = _number(int, above=0)
natural = _number(int, above=-1)
positive = _number(float, above=0)


def add_config(parser: argparse.ArgumentParser, *, example: str) -> None:
    """Add ``--config-file``, ``--resume``, ``--dry-run`` and KEY VALUE words."""
    add, config = parser.add_argument, "YAML file, or the name of one that comes with the package"
    add("--config-file", required=True, metavar="FILE", help=config)
    resume = "continue the run in OUTPUT_DIR from its last checkpoint"
    add("--resume", action="store_true", help=resume)
    dry_run = "print what the run would do, after every check, and write nothing"
    add("--dry-run", action="store_true", help=dry_run)
    overrides = f"config keys to change, e.g. {example}"
    add("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=overrides)


def add_datasets(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--dataset``."""
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME=...", help=_DATASET)


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """Add which encoder is evaluated on which images, and how its features are computed."""
    add = parser.add_argument
    checkpoint = "a checkpoint of pretrain, an official MoCo file, or what convert reads"
    add("checkpoint", metavar="CHECKPOINT", help=checkpoint)
    train = "images to learn from: class folders, a list file with labels, or CIFAR-10"
    add("--train", required=True, metavar="DIR", help=train)
    add("--test", required=True, metavar="DIR", help="images to classify, of the same classes")
    add_role(parser)
    size = "side of an image (default: that of pre-training; 224 if unknown)"
    add("--image-size", type=count, metavar="PX", help=size)
    add("--workers", type=natural, default=4, metavar="N", help="data workers (default 4)")
    add("--device", default="auto", metavar="auto|cpu|cuda|mps", help="where to compute")
    precision = "of the encoder (default fp32)"
    add("--precision", default="fp32", choices=PRECISIONS, help=precision)


def add_precision(parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: str) -> None:
    """Add ``--precision`` of a detector's training."""
    text = (
        "of the training (default: auto, fp32 where SOLVER.AMP is off, else what is fastest here:"
        " bf16, fp16 with loss scaling, or fp32)"
    )
    parser.add_argument("--precision", default=default, choices=PRECISIONS, help=text)


def add_role(parser: argparse.ArgumentParser) -> None:
    """Add ``--encoder``."""
    roles = "q: the trained encoder (default); k: its momentum copy"
    parser.add_argument("--encoder", default="q", choices=("q", "k"), help=roles)
