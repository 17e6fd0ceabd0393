"""Options that several verbs share, and the types that check their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def _number(kind: Callable[[str], float], *, above: int) -> Callable[[str], Any]:
    def number(text: str) -> float:
        if not (value := kind(text)) > above:
            raise argparse.ArgumentTypeError(f"expected a number above {above}, got {value:g}")
        return value

    return number


count = _number(int, above=0)
natural = _number(int, above=-1)
positive = _number(float, above=0)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-file``, ``--resume``, ``--dry-run`` and KEY VALUE words."""
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--resume", action="store_true")
    add("--dry-run", action="store_true")
    add("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """Add which encoder is evaluated on which images, and how its features are computed."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT")
    add("--train", required=True, metavar="DIR")
    add("--test", required=True, metavar="DIR")
    add("--encoder", default="q", choices=("q", "k"))
    add("--image-size", type=count, metavar="PX")
    add("--workers", type=natural, default=4, metavar="N")
    add("--device", default="auto", metavar="auto|cpu|cuda|mps")
    add("--precision", default="fp32", choices=PRECISIONS)
