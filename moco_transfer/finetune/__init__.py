"""Fine-tuning: a detector from a config and a backbone, on one of two engines, to results.json."""

from __future__ import annotations

from typing import Any


def build_model(cfg: Any, engine: str = "torchvision") -> Any:
    """Build the detector that a config describes, with random weights; state-dict keys and shapes
    are the same on both engines.

    Args:
        cfg: From ``moco_transfer.config.load_detection_config``.
        engine: ``torchvision``, the embedded one (see ``torchvision_engine.rcnn`` for input and
            output), or ``detectron2``: Detectron2's own model on the CPU, with its input and output
            (``instances``).

    Raises:
        InputError: If the engine is unknown or not installed, or does not implement what the config
            asks for.
    """
    import importlib

    from .engine import choose_engine

    module = importlib.import_module(f".{choose_engine(engine)}_engine.build", __package__)
    return module.build_model(cfg)


def load_detector(path: Any, **options: Any) -> Any:
    """Load a fine-tuned detector that takes images: ``load_detector("out/voc")("image.jpg")``.

    Takes and returns what ``predict.load_detector`` does.
    """
    from .predict import load_detector as load

    return load(path, **options)
