"""Which engine runs, and the sentence for the one that is not there."""

from __future__ import annotations

import importlib.util
from typing import Any

from ..runtime.errors import InputError, did_you_mean

ENGINES = ("torchvision",)


def choose_engine(name: str) -> str:
    """Return the engine for a ``--engine`` word.

    Args:
        name: ``auto`` or one of :data:`ENGINES`.

    Raises:
        InputError: If the word is unknown, or the engine is not part of this version.
    """
    if name == "auto":
        return "torchvision"
    if name == "detectron2":
        installed = importlib.util.find_spec("detectron2") is not None
        raise InputError(
            f"Engine 'detectron2' is not part of this version yet (Detectron2 is {'' if installed else 'not '}installed). Use --engine torchvision, "
            f"or give the same config and weights to Detectron2's own train_net.py."
        )
    if name not in ENGINES:
        raise InputError(f"Unknown engine {name!r}.{did_you_mean(name, ENGINES)} Expected one of: auto, {', '.join(ENGINES)}.")
    return name


def build_model(cfg: Any, engine: str) -> Any:
    """Build the detector on an engine; see ``moco_transfer.finetune.build_model``."""
    choose_engine(engine)
    from .torchvision_engine.build import build_model as build

    return build(cfg)
