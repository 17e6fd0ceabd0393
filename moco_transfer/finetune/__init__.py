"""Fine-tuning: a detector from a config and a backbone, on one of two engines, to results.json."""

from __future__ import annotations

from typing import Any


def build_model(cfg: Any, engine: str = "torchvision") -> Any:
    """Build the detector that a config describes, with random weights; see ``torchvision_engine.rcnn`` for input and output.

    Args:
        cfg: From ``moco_transfer.config.load_detection_config``.
        engine: ``torchvision``, the embedded one.

    Raises:
        InputError: If the engine is unknown, or does not implement what the config asks for.
    """
    from .engines import build_model as build

    return build(cfg, engine)
