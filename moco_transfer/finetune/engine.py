"""What an engine has to give a fine-tuning run; ``build.py`` does all the rest, for both alike.

Whatever decides which numbers come out and is not the detector itself (data sets, scaling, seeds,
hand-over of weights, linter, loop, evaluators, files) is shared, so that two engines differ in the
detector and its input alone.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.annotations.catalog import DetectionDataset

Batches = Iterable[list[dict]]


class Engine(abc.ABC):
    """One engine, for one run.

    Args:
        cfg: The config of the run: scaled, with the data's classes and a seed of 0 or more.
        device: From ``start_processes``.
    """

    name: str

    def __init__(self, cfg: Any, device: torch.device) -> None:
        self.cfg, self.device = cfg, device

    @staticmethod
    @abc.abstractmethod
    def check(cfg: Any) -> None:
        """Refuse what this engine's run, as opposed to its model, does not implement; an option is
        never ignored.

        Raises:
            InputError: Naming key and value.
        """

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """Return the detector with freshly drawn weights, a function of the seed; its keys are
        Detectron2's.
        """

    @abc.abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer that SOLVER describes."""

    @abc.abstractmethod
    def iteration_starter(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        """Return ``FineTuning.begin_iteration``."""

    def gradient_clipping(self, optimizer: torch.optim.Optimizer) -> Callable[[], None] | None:
        """Return ``FineTuning.clip``; None where the optimizer does it, or nothing does."""
        return None

    def training(self) -> contextlib.AbstractContextManager:
        """Return what the whole of a training runs in."""
        return contextlib.nullcontext()

    def aside(self) -> contextlib.AbstractContextManager:
        """Return what PreciseBN and evaluations run in, so that they leave the training's random
        numbers where they are.
        """
        return contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds for this engine alone, under keys of its own.

        Collective.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing to take up where state() gives nothing
        """Take up what :meth:`state` gave."""

    @abc.abstractmethod
    def training_batches(
        self, train_sets: Sequence[DetectionDataset], start_iteration: int
    ) -> Batches:
        """Return this process's batches from an iteration on, without end."""

    @abc.abstractmethod
    def statistics_batches(self, train_sets: Sequence[DetectionDataset], iteration: int) -> Batches:
        """Return batches for PreciseBN, without end, that leave the training stream where it is."""

    @abc.abstractmethod
    def test_batches(self, dataset: DetectionDataset) -> Batches:
        """Return this process's share of a test set, each image once."""

    @abc.abstractmethod
    def detector(self, model: nn.Module) -> Callable[[list[dict]], list[dict[str, Tensor]]]:
        """Return what gives the detections of a batch.

        They are ``boxes`` (N, 4) XYXY px of the original image, ``scores`` (N,), ``classes``
        (N,)[, ``masks`` (N, H, W) bool, ``keypoints`` (N, K, 3)] for each image.
        """
