"""The Detectron2 engine's part of a fine-tuning run, from a config.

Model, optimizer, schedule, loaders, mappers and random numbers are Detectron2's, in the order of
its own trainer: with the same config, seed and number of processes an uninterrupted run has the
    losses that its DefaultTrainer has, digit for digit.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling import build_model as detectron2_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.finetune.detectron2_engine.build import to_detectron2
from moco_transfer.finetune.detectron2_engine.datasets import add_datasets
from moco_transfer.finetune.detectron2_engine.random_state import (
    kept_random_state,
    random_state,
    set_random_state,
)
from moco_transfer.finetune.detectron2_engine.resumed_sampler import ResumedSampler
from moco_transfer.finetune.engine import Batches, Engine
from moco_transfer.finetune.sync_norm import sync_on_cpu
from moco_transfer.runtime.distributed import gather_object, get_rank, get_world_size
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.seed import derive_seed

logger = logging.getLogger(__name__)

_RANDOM_STATES = "random_states"  # of all ranks, in a checkpoint
_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


@functools.cache
def _join_local_group() -> None:
    """Tell Detectron2 which processes share this host: its launcher would, torchrun does not.
    Collective.
    """
    if dist.is_initialized():
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


class Detectron2Engine(Engine):
    """Detectron2 itself; what it leaves to its caller is done by the loop that both engines share."""

    name = "detectron2"

    @staticmethod
    def check(cfg: CfgNode) -> None:
        """See ``Engine.check``; what the model does not implement, Detectron2 says itself."""
        only = {
            "DATALOADER.SAMPLER_TRAIN": (cfg.DATALOADER.SAMPLER_TRAIN, _SAMPLERS),
            "VIS_PERIOD": (cfg.VIS_PERIOD, (0,)),
            "TEST.EXPECTED_RESULTS": (list(cfg.TEST.EXPECTED_RESULTS), ([],)),
            # The evaluators here are shared with the embedded engine, and know COCO's sigmas alone.
            "TEST.KEYPOINT_OKS_SIGMAS": (list(cfg.TEST.KEYPOINT_OKS_SIGMAS), ([],)),
        }
        for key, (value, implemented) in only.items():
            if value not in implemented:
                expected = " or ".join(map(repr, implemented))
                raise InputError(
                    f"moco-transfer does not implement {key} {value!r} (only {expected});"
                    " Detectron2's own train_net.py does."
                )

    def __init__(self, cfg: CfgNode, device: torch.device) -> None:
        super().__init__(cfg, device)
        _join_local_group()
        self.theirs = to_detectron2(cfg, device.type)
        self._check_schedule()
        add_datasets(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
        self._storage: EventStorage | None = None

    def _check_schedule(self) -> None:
        """Refuse a schedule that Detectron2 would stumble over later, when the run's folder has
        been made.
        """
        solver = self.theirs.SOLVER
        anything = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=solver.BASE_LR)
        try:
            build_lr_scheduler(self.theirs, anything)
        except (ValueError, AssertionError) as error:
            raise InputError(
                f"Detectron2 does not take SOLVER.{solver.LR_SCHEDULER_NAME} with MAX_ITER"
                f" {solver.MAX_ITER}, STEPS {tuple(solver.STEPS)} and WARMUP_ITERS"
                f" {solver.WARMUP_ITERS}: {error}."
            ) from error

    def build_model(self) -> nn.Module:
        """See ``Engine.build_model``."""
        torch.backends.cudnn.benchmark = self.theirs.CUDNN_BENCHMARK
        if self.theirs.FLOAT32_PRECISION:
            torch.set_float32_matmul_precision(self.theirs.FLOAT32_PRECISION)
            torch.backends.cudnn.allow_tf32 = self.theirs.FLOAT32_PRECISION != "highest"
        seed_all_rng(self.theirs.SEED + get_rank())
        model = detectron2_model(self.theirs)
        return sync_on_cpu(model) if self.device.type == "cpu" else model

    def skeleton(self) -> nn.Module:
        """See ``Engine.skeleton``: Detectron2 moves its models to MODEL.DEVICE."""
        with torch.device("meta"):
            model = detectron2_model(to_detectron2(self.cfg, "meta"))
        return sync_on_cpu(model) if self.device.type == "cpu" else model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See ``Engine.build_optimizer``; Detectron2's clips gradients itself."""
        return build_optimizer(self.theirs, model)

    def iteration_starter(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        """See ``Engine.iteration_starter``."""
        schedule = build_lr_scheduler(self.theirs, optimizer)

        def begin(iteration: int) -> None:
            schedule.last_epoch = iteration
            for group, lr in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
                group["lr"] = lr
            if self._storage is not None:
                self._storage.iter = iteration

        return begin

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """See ``Engine.training``:

        Detectron2's modules note numbers in a storage that has to be there.
        """
        with EventStorage() as self._storage:
            yield
        self._storage = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """See ``Engine.aside``."""
        with kept_random_state():
            yield

    def state(self) -> dict[str, Any]:
        """See ``Engine.state``."""
        return {_RANDOM_STATES: gather_object(random_state())}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Engine.restore``."""
        states = state[_RANDOM_STATES]
        if len(states) == get_world_size():
            set_random_state(states[get_rank()])
        else:
            logger.warning(
                "resumed on %d processes, begun on %d: random numbers and images are others.",
                get_world_size(),
                len(states),
            )

    def training_batches(
        self, train_sets: Sequence[DetectionDataset], start_iteration: int
    ) -> Batches:
        """See ``Engine.training_batches``."""
        return self._train_loader(train_sets, self.theirs.DATALOADER.NUM_WORKERS, start_iteration)

    def statistics_batches(self, train_sets: Sequence[DetectionDataset], iteration: int) -> Batches:
        """See ``Engine.statistics_batches``; as in Detectron2's trainer the stream of training from
        its beginning, without workers.
        """
        return self._train_loader(train_sets, 0, 0)

    def _train_loader(
        self, train_sets: Sequence[DetectionDataset], num_workers: int, start_iteration: int
    ) -> Batches:
        cfg, (images, sampler, is_wide) = self.theirs, self._training_data(tuple(train_sets))
        more: dict[str, Any] = {}
        if start_iteration:
            sampler = ResumedSampler(
                sampler,
                is_wide if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
                batch_size=cfg.SOLVER.IMS_PER_BATCH // get_world_size(),
                num_workers=num_workers,
                batches_used=start_iteration,
            )
            # A generator of the loader's own: drawing the workers' seeds must not move the one that
            # has just been put in place.
            more["seed"] = derive_seed(cfg.SEED, "resumed", start_iteration, get_rank()) % 2**31
        return build_detection_train_loader(
            cfg, dataset=images, sampler=sampler, num_workers=num_workers, **more
        )

    @functools.cache  # noqa: B019 - an engine lives as long as its run
    def _training_data(
        self, train_sets: tuple[DetectionDataset, ...]
    ) -> tuple[torch.utils.data.Dataset, torch.utils.data.Sampler, list[bool]]:
        """Detectron2's training images packed as it packs them, their endless order, and which of
        them are wider than high.
        """
        cfg = self.theirs
        model, loader = cfg.MODEL, cfg.DATALOADER
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=loader.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=(
                model.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0
            ),
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if model.LOAD_PROPOSALS else None,
        )
        if any(
            dataset.image_ids is not None for dataset in train_sets
        ):  # its catalogue holds whole sets
            used = {
                os.path.realpath(record["file_name"])
                for dataset in train_sets
                for record in dataset.records
            }
            records = [
                record for record in records if os.path.realpath(record["file_name"]) in used
            ]
        objects = sum(len(record["annotations"]) for record in records)
        logger.info(
            "training on %d images with %d objects from %s",
            len(records),
            objects,
            ", ".join(cfg.DATASETS.TRAIN),
        )
        if loader.SAMPLER_TRAIN == "TrainingSampler":
            sampler: torch.utils.data.Sampler = TrainingSampler(len(records), seed=cfg.SEED)
        else:
            shares = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT
            )
            sampler = RepeatFactorTrainingSampler(shares, seed=cfg.SEED)
        return (
            DatasetFromList(records, copy=False),
            sampler,
            [record["width"] > record["height"] for record in records],
        )

    def test_batches(self, dataset: DetectionDataset) -> Batches:
        """See ``Engine.test_batches``."""
        return build_detection_test_loader(self.theirs, dataset.name)

    def detector(self, model: nn.Module) -> Callable[[list[dict]], list[dict[str, Tensor]]]:
        """See ``Engine.detector``."""
        detect = (
            GeneralizedRCNNWithTTA(self.theirs, model) if self.theirs.TEST.AUG.ENABLED else model
        )
        return lambda batch: [_detections(output["instances"]) for output in detect(batch)]


def _detections(instances: Any) -> dict[str, Tensor]:
    found = {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }
    if instances.has("pred_masks"):
        found["masks"] = instances.pred_masks
    if instances.has("pred_keypoints"):
        found["keypoints"] = instances.pred_keypoints
    return found
