"""The embedded engine's part of a fine-tuning run, from a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.batches.loader import test_loader, train_loader
from moco_transfer.finetune.build_data import inference_mapper, training_data, training_mapper
from moco_transfer.finetune.engine import Batches, Engine
from moco_transfer.finetune.torchvision_engine.build import (
    build_learning_rate,
    build_model,
    build_optimizer,
)
from moco_transfer.finetune.torchvision_engine.implemented_keys import refusal
from moco_transfer.finetune.torchvision_engine.solver import clip_gradients, set_lr
from moco_transfer.runtime.distributed import get_rank, get_world_size
from moco_transfer.runtime.seed import derive_seed, seed_everything

FLOAT32_PRECISIONS = (
    "",
    "highest",
    "high",
    "medium",
)  # of torch.set_float32_matmul_precision; "" leaves it as it is


class TorchvisionEngine(Engine):
    """Seeds every iteration and every image by its place in the run, so that nothing has to be
    saved to resume bit for bit.
    """

    name = "torchvision"

    @staticmethod
    def check(cfg: CfgNode) -> None:
        """See ``Engine.check``; keys of the model are looked at when it is built."""
        only: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "DATASETS.PROPOSAL_FILES_TRAIN": (tuple(cfg.DATASETS.PROPOSAL_FILES_TRAIN), ((),)),
            "DATASETS.PROPOSAL_FILES_TEST": (tuple(cfg.DATASETS.PROPOSAL_FILES_TEST), ((),)),
            "INPUT.CROP.ENABLED": (cfg.INPUT.CROP.ENABLED, (False,)),
            "INPUT.FORMAT": (cfg.INPUT.FORMAT, ("RGB", "BGR")),
            "INPUT.MASK_FORMAT": (cfg.INPUT.MASK_FORMAT, ("polygon",)),
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": (
                cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
                ("choice", "range"),
            ),
            "INPUT.RANDOM_FLIP": (cfg.INPUT.RANDOM_FLIP, ("horizontal", "vertical", "none")),
            "TEST.AUG.ENABLED": (cfg.TEST.AUG.ENABLED, (False,)),
            "TEST.EXPECTED_RESULTS": (list(cfg.TEST.EXPECTED_RESULTS), ([],)),
            "DATALOADER.SAMPLER_TRAIN": (cfg.DATALOADER.SAMPLER_TRAIN, ("TrainingSampler",)),
            "FLOAT32_PRECISION": (cfg.FLOAT32_PRECISION, FLOAT32_PRECISIONS),
            "VIS_PERIOD": (cfg.VIS_PERIOD, (0,)),
        }
        for key, (value, implemented) in only.items():
            if value not in implemented:
                raise refusal(key, value, implemented)
        training_mapper(cfg)  # the sizes: refused now, not by the first batch
        inference_mapper(cfg)

    def build_model(self) -> nn.Module:
        """See ``Engine.build_model``."""
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        if self.cfg.FLOAT32_PRECISION:
            torch.set_float32_matmul_precision(self.cfg.FLOAT32_PRECISION)
            torch.backends.cudnn.allow_tf32 = self.cfg.FLOAT32_PRECISION != "highest"
        seed_everything(self.cfg.SEED, "weights")
        return build_model(self.cfg)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See ``Engine.build_optimizer``."""
        return build_optimizer(self.cfg, model)

    def iteration_starter(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        """See ``Engine.iteration_starter``."""
        lr_at, seed, rank = build_learning_rate(self.cfg), self.cfg.SEED, get_rank()

        def begin(iteration: int) -> None:
            # Sampling of anchors and RoIs draws from torch's generator; a resumed run must find it
            # here.
            seed_everything(seed, "iteration", iteration, "rank", rank)
            set_lr(optimizer, lr_at(iteration))

        return begin

    def gradient_clipping(self, optimizer: torch.optim.Optimizer) -> Callable[[], None] | None:
        """See ``Engine.gradient_clipping``."""
        clip = self.cfg.SOLVER.CLIP_GRADIENTS
        if not clip.ENABLED:
            return None
        limits = {
            "clip_type": clip.CLIP_TYPE,
            "clip_value": clip.CLIP_VALUE,
            "norm_type": clip.NORM_TYPE,
        }
        return lambda: clip_gradients(
            (p for group in optimizer.param_groups for p in group["params"]), **limits
        )

    def training_batches(
        self, train_sets: Sequence[DetectionDataset], start_iteration: int
    ) -> Batches:
        """See ``Engine.training_batches``."""
        return self._batches(train_sets, self.cfg.SEED, start_iteration)

    def statistics_batches(self, train_sets: Sequence[DetectionDataset], iteration: int) -> Batches:
        """See ``Engine.statistics_batches``."""
        seed_everything(self.cfg.SEED, "precise_bn", iteration, get_rank())
        return self._batches(
            train_sets, derive_seed(self.cfg.SEED, "precise_bn", iteration) % 2**31, 0
        )

    def _batches(
        self, train_sets: Sequence[DetectionDataset], seed: int, start_iteration: int
    ) -> Batches:
        records, mapper = self._training_data(train_sets)
        return train_loader(
            records,
            mapper,
            batch_size_per_rank=self.cfg.SOLVER.IMS_PER_BATCH // get_world_size(),
            seed=seed,
            rank=get_rank(),
            world_size=get_world_size(),
            aspect_ratio_grouping=self.cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            start_iteration=start_iteration,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )

    def _training_data(self, train_sets: Sequence[DetectionDataset]) -> tuple[list[dict], Any]:
        if not hasattr(
            self, "_data"
        ):  # a run has one training set; reading it says how large it is
            self._data = training_data(self.cfg, train_sets)
        return self._data

    @cached_property
    def _test_mapper(self) -> Any:
        return inference_mapper(self.cfg)

    def test_batches(self, dataset: DetectionDataset) -> Batches:
        """See ``Engine.test_batches``."""
        return test_loader(
            dataset.records,
            self._test_mapper,
            batch_size=1,
            rank=get_rank(),
            world_size=get_world_size(),
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )

    def detector(self, model: nn.Module) -> Callable[[list[dict]], list[dict[str, Tensor]]]:
        """See ``Engine.detector``: the embedded model speaks in the evaluators' terms itself."""
        return model
