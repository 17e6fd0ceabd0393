"""The two engines: what each gives a fine-tuning run, and which one runs.

Data sets, schedule, seeds, hand-over of weights, linter, loop, evaluators and files are shared, so
that the engines differ in the detector and its input alone. This module imports no torch:
``moco-transfer doctor`` asks it where torch is broken.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError, did_you_mean
from ..runtime.machine import check_shared_memory

logger = logging.getLogger(__name__)

# Word of --engine -> module next to this one and the class in it; imported when it is asked for.
ENGINES = {
    "detectron2": ("detectron2_engine.build", "Detectron2Engine"),
    "torchvision": ("torchvision_engine.build", "TorchvisionEngine"),
}
DETECTRON2_TRIED = "0.6 at commit 02b5c4e2, with torch 2.11.0"
DETECTRON2_GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

# Dense pose needs a project in Detectron2's repository, and files of a body's surface. The project
# itself would fetch those at the beginning of training and after it.
DENSEPOSE_PROJECT = "densepose"
DENSEPOSE_GUIDE = "https://github.com/facebookresearch/detectron2/tree/main/projects/DensePose"
DENSEPOSE_URL = "https://dl.fbaipublicfiles.com/densepose/data/"
MIRROR_FILE = "UV_symmetry_transforms.mat"  # for mirrored images; read for tests as well
GEODESIC_FILES = ("SMPL_subdiv.mat", "SMPL_SUBDIV_TRANSFORM.mat", "Pdist_matrix.pkl")

Batches = Iterable[list[dict]]


class Engine(abc.ABC):
    """One engine, for one run, whose config is scaled and has the data's classes and its seed."""

    name: str
    repeats = True  # whether an iteration that is taken again has the same images
    bytes_per_pixel = 12  # of an image that a data worker hands over: float32, three colours

    def __init__(self, cfg: Any, device: Any) -> None:
        self.cfg, self.device = cfg, device

    def images_per_item(self, world_size: int) -> int:
        """Return how many training images a data worker hands over at a time."""
        return self.cfg.SOLVER.IMS_PER_BATCH // world_size

    def check_shared_memory(self, records: Sequence[dict], *, train: bool, world_size: int) -> None:
        """Raise InputError if what data workers prepare of these images, resized, does not fit."""
        from ..data.batches.transforms import resized_shape  # imports torch

        sizes, most = self.cfg.INPUT.MIN_SIZE_TRAIN, self.cfg.INPUT.MAX_SIZE_TRAIN
        if not train:
            sizes, most = (self.cfg.INPUT.MIN_SIZE_TEST,), self.cfg.INPUT.MAX_SIZE_TEST
        edges = {"shorter_edge": round(sum(sizes) / len(sizes)), "max_size": most}
        shapes = [resized_shape(r["height"], r["width"], **edges) for r in records[:1000]]
        if train and self.cfg.INPUT.CROP.ENABLED:
            shapes = [tuple(self.cfg.INPUT.CROP.SIZE)]
        pixels = sum(height * width for height, width in shapes) / max(1, len(shapes))
        check_shared_memory(
            pixels * self.bytes_per_pixel * (self.images_per_item(world_size) if train else 1),
            batches=2,  # torch's prefetch_factor
            key="DATALOADER.NUM_WORKERS",
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )

    @staticmethod
    @abc.abstractmethod
    def check(cfg: Any) -> None:
        """Raise InputError, with key and value, for what this engine's run does not implement."""

    @abc.abstractmethod
    def build_model(self) -> Any:
        """Return the detector, with weights drawn from the seed and Detectron2's keys."""

    def skeleton(self) -> Any:
        """Return the detector on torch's meta device: layers and shapes without memory."""
        import torch

        with torch.device("meta"):
            return self.build_model()

    @abc.abstractmethod
    def build_optimizer(self, model: Any) -> Any:
        """Return the optimizer that SOLVER describes, which clips gradients itself."""

    @abc.abstractmethod
    def iteration_starter(self, optimizer: Any) -> Callable[[int], None]:
        """Return what sets learning rate and random generators after so many iterations."""

    def training(self) -> contextlib.AbstractContextManager:
        """Return the context of the whole training."""
        return contextlib.nullcontext()

    def aside(self) -> contextlib.AbstractContextManager:
        """Return the context of PreciseBN and evaluations, which leaves random numbers alone."""
        return contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds for this engine alone. Collective."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - may be nothing
        """Take up what :meth:`state` gave."""

    @abc.abstractmethod
    def training_batches(self, train_sets: Sequence[Any], start_iteration: int) -> Batches:
        """Return this process's batches from an iteration on, without end."""

    @abc.abstractmethod
    def statistics_batches(self, train_sets: Sequence[Any], iteration: int) -> Batches:
        """Return batches for PreciseBN, without end, that leave the training stream where it is."""

    @abc.abstractmethod
    def test_batches(self, dataset: Any) -> Batches:
        """Return this process's share of a test set, each image once."""

    @abc.abstractmethod
    def detector(self, model: Any) -> Callable[[list[dict]], list[dict]]:
        """Return what detects in a batch; output as of the embedded engine (``rcnn.py``)."""

    def evaluator(self, ours: Any, dataset: Any) -> Any:
        """Return ``ours``, the evaluator of a test set, with what this engine evaluates itself."""
        return ours


def choose_engine(name: str) -> str:
    """Return the engine for a ``--engine`` word; ``auto`` is Detectron2 where it loads, and the
    embedded engine elsewhere.

    Raises:
        InputError: If the word is unknown, or the engine that it names cannot be used here.
    """
    if name not in ("auto", *ENGINES):
        hint, known = did_you_mean(name, ENGINES), ", ".join(ENGINES)
        raise InputError(f"Unknown engine {name!r}.{hint} Expected one of: auto, {known}.")
    problem = None if name == "torchvision" else detectron2_problem()
    if problem is None:
        return "detectron2" if name == "auto" else name
    is_broken = importlib.util.find_spec("detectron2") is not None
    if name == "detectron2":
        state = "installed but does not load" if is_broken else "not installed"
        raise InputError(
            f"Engine 'detectron2' is {state}: {problem}. Install it as {DETECTRON2_GUIDE} says"
            f" (tested: {DETECTRON2_TRIED}), or use --engine torchvision, which takes the same"
            " config and weights."
        )
    if is_broken:
        logger.warning("Detectron2 is installed but does not load (%s).", problem)
    return "torchvision"


def detectron2_problem() -> str | None:
    """Return why Detectron2 cannot be used here, None where it can."""
    try:
        importlib.import_module(f".{ENGINES['detectron2'][0]}", __package__)
    except Exception as error:
        # Not there, or built for another torch, NumPy or Pillow: how that fails varies by version.
        return (str(error) or type(error).__name__).splitlines()[0]
    return None


def densepose_problem() -> str | None:
    """Return why Detectron2's project DensePose cannot be used here, None where it can."""
    try:
        importlib.import_module(DENSEPOSE_PROJECT)
    except Exception as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None


def densepose_folder() -> Path:
    """Return where the project looks for its files before it fetches them."""
    cache = os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")
    return Path(os.path.expanduser(cache)) / "densepose" / "data"


def densepose_files_missing(names: Sequence[str]) -> str:
    """Return what is missing of the files ``names`` and what to do, "" where all are there."""
    folder = densepose_folder()
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return ""
    return (
        f"{folder} lacks {', '.join(missing)}, which the project would fetch in the middle of a"
        f" run. Download what is missing from {DENSEPOSE_URL} into that folder, or set FVCORE_CACHE"
        " to the folder that holds densepose/data"
    )


def engine_class(name: str) -> type[Engine]:
    """Return the engine for a ``--engine`` word; raises as :func:`choose_engine`."""
    module, cls = ENGINES[choose_engine(name)]
    return getattr(importlib.import_module(f".{module}", __package__), cls)
