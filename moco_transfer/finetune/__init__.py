"""Fine-tuning: a detector from a config and a backbone, on one of two engines, to results.json."""

from __future__ import annotations

from typing import Any


def build_model(cfg: Any, engine: str = "torchvision") -> Any:
    """Build the detector of a config (``load_detection_config``) with random weights and
    Detectron2's state-dict keys.

    ``torchvision`` is the embedded engine (``torchvision_engine.rcnn`` has input and output);
    ``detectron2`` gives Detectron2's own model on the CPU. Raises InputError if the engine is
    unknown, not installed, or does not implement what the config asks for.
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
