"""Which engine runs, and the sentence for the one that is not there."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError, did_you_mean

if (
    TYPE_CHECKING
):  # imports torch, and `moco-transfer doctor` asks this module where torch is broken
    from .engine import Engine

logger = logging.getLogger(__name__)

# Word of --engine -> module beside this one and the class in it; a module is imported only when its
# engine is asked for.
ENGINES = {
    "detectron2": ("detectron2_engine.build_run", "Detectron2Engine"),
    "torchvision": ("torchvision_engine.build_run", "TorchvisionEngine"),
}

DETECTRON2_TRIED = "0.6 at commit 02b5c4e2, with torch 2.11.0"
DETECTRON2_GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def choose_engine(name: str) -> str:
    """Return the engine for a ``--engine`` word.

    Args:
        name: ``auto``, which is Detectron2 where it is installed and loads, and the embedded engine
            elsewhere, or a key of :data:`ENGINES`.

    Raises:
        InputError: If the word is unknown, or the engine that it names cannot be used here.
    """
    if name == "auto":
        problem = detectron2_problem()
        if problem is not None and detectron2_is_installed():
            logger.warning(
                "Detectron2 is installed but does not load (%s); the embedded engine is taken.",
                problem,
            )
        return "detectron2" if problem is None else "torchvision"
    if name not in ENGINES:
        raise InputError(
            f"Unknown engine {name!r}.{did_you_mean(name, ENGINES)} Expected one of: auto,"
            f" {', '.join(ENGINES)}."
        )
    problem = detectron2_problem() if name == "detectron2" else None
    if problem is not None:
        state = (
            "is installed but does not load" if detectron2_is_installed() else "is not installed"
        )
        raise InputError(
            f"Engine 'detectron2' {state}: {problem}. Install it as {DETECTRON2_GUIDE} says"
            f" (tested: {DETECTRON2_TRIED}), or use --engine torchvision, which takes the same"
            " config and weights."
        )
    return name


def detectron2_is_installed() -> bool:
    """Return whether there is a package of that name, whatever state it is in."""
    return importlib.util.find_spec("detectron2") is not None


def detectron2_problem() -> str | None:
    """Return why Detectron2 cannot be used here, None where it can."""
    try:
        importlib.import_module(f".{ENGINES['detectron2'][0]}", __package__)
    except Exception as error:
        # Not there, or built for another torch, NumPy or Pillow: how that fails varies by version.
        return (str(error) or type(error).__name__).splitlines()[0]
    return None


def engine_class(name: str) -> type[Engine]:
    """Return what makes an engine of a run.

    Raises:
        InputError: As :func:`choose_engine`.
    """
    module, cls = ENGINES[choose_engine(name)]
    return getattr(importlib.import_module(f".{module}", __package__), cls)


def build_model(cfg: Any, engine: str) -> Any:
    """Build the detector on an engine; see ``moco_transfer.finetune.build_model``."""
    if choose_engine(engine) == "detectron2":
        from .detectron2_engine.build import build_model as build
    else:
        from .torchvision_engine.build import build_model as build
    return build(cfg)
