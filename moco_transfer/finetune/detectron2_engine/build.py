"""From a config, which nothing else here reads, to Detectron2's detector, solver and batches.

They are made in the order of Detectron2's own trainer: with the same config, seed and number of
processes an uninterrupted run has the losses of its DefaultTrainer, digit for digit.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode as Detectron2Config
from detectron2.config import get_cfg
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
from torch.utils.data import Dataset, Sampler, get_worker_info

from moco_transfer.config import flatten_config, without_schema
from moco_transfer.config.schema_file import PROGRAM_SCHEMAS, SEGMENTOR
from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.annotations.records import is_trainable
from moco_transfer.data.annotations.semantic.labels import IGNORED
from moco_transfer.runtime.distributed import (
    all_gather_object,
    gather_object,
    get_rank,
    get_world_size,
)
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.seed import derive_seed
from moco_transfer.runtime.stop import prepare_worker

from ..datasets import has_objects
from ..engine import Batches, Engine
from ..pixel_logits import check_window
from ..sync_norm import sync_on_cpu
from . import dense_pose, segmentation
from .datasets import add_datasets, detections
from .resumed_sampler import ResumedSampler

logger = logging.getLogger(__name__)

_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


def build_model(cfg: CfgNode) -> nn.Module:
    """Return Detectron2's detector on the CPU, in training mode, with freshly drawn weights; input
    and output are Detectron2's (``instances``).
    """
    return detectron2_model(to_detectron2(cfg, "cpu")).train()


def to_detectron2(cfg: CfgNode, device: str) -> Detectron2Config:
    """Return Detectron2's own config with our values and this MODEL.DEVICE, frozen.

    Raises:
        InputError: If this version of Detectron2 does not know a key, or wants another type.
    """
    theirs = get_cfg()
    if cfg.MODEL.get("DENSEPOSE_ON"):
        dense_pose.add_keys(theirs)
    if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
        segmentation.add_segmentation_keys(theirs)
    try:
        theirs.merge_from_other_cfg(without_schema(cfg, *PROGRAM_SCHEMAS))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"Detectron2 does not take this config: {error}. moco-transfer doctor names the tested"
            " version."
        ) from error
    theirs.MODEL.DEVICE = device
    theirs.freeze()
    return theirs


def _join_local_group() -> None:
    """Tell Detectron2 which processes share this host: its launcher would, torchrun does not."""
    if not dist.is_initialized():
        return
    try:
        known = comm._LOCAL_PROCESS_GROUP is not None
        dist.get_process_group_ranks(comm._LOCAL_PROCESS_GROUP)
    except KeyError:  # of an earlier run in this Python
        known, comm._LOCAL_PROCESS_GROUP = False, None
        comm._get_global_gloo_group.cache_clear()
    if not known:
        hosts = all_gather_object(socket.gethostname())
        given = os.environ.get("LOCAL_WORLD_SIZE")  # by torchrun alone
        comm.create_local_process_group(int(given or hosts.count(socket.gethostname())))


def random_state() -> dict[str, Any]:
    """Return where Python's, NumPy's and torch's generators stand, as a checkpoint may hold it."""
    name, keys, *rest = cast(Any, np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where :func:`random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class _Images(DatasetFromList):
    """Images packed as Detectron2 packs them; its workers outlive a SIGTERM, as ours do."""

    def __getitem__(self, index: int) -> dict:
        if get_worker_info() is not None:
            prepare_worker(0)
        return super().__getitem__(index)


def _segmentor_keys(cfg: CfgNode) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return keys of semantic segmentation, their values, and those that are implemented."""
    head, crop = cfg.MODEL.SEM_SEG_HEAD, cfg.INPUT.CROP
    return {
        "MODEL.SEM_SEG_HEAD.NAME": (head.NAME, ("FCNHead",)),
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": (head.IGNORE_VALUE, (IGNORED,)),
        "INPUT.CROP.TYPE": (crop.TYPE, ("absolute",) if crop.ENABLED else (crop.TYPE,)),
        "DATALOADER.SAMPLER_TRAIN": (cfg.DATALOADER.SAMPLER_TRAIN, ("TrainingSampler",)),
        "TEST.AUG.ENABLED": (cfg.TEST.AUG.ENABLED, (False,)),
    }


class Detectron2Engine(Engine):
    """Detectron2 itself; ``Engine`` documents the methods."""

    name = "detectron2"
    repeats = False  # augmentation draws from the workers' generators
    bytes_per_pixel = 3  # uint8

    def images_per_item(self, world_size: int) -> int:
        grouped = self.cfg.DATALOADER.ASPECT_RATIO_GROUPING  # in the training process
        return 1 if grouped else super().images_per_item(world_size)

    @staticmethod
    def check(cfg: CfgNode) -> None:
        # Detectron2 itself rejects what its model does not implement.
        only = {
            "DATALOADER.SAMPLER_TRAIN": (cfg.DATALOADER.SAMPLER_TRAIN, _SAMPLERS),
            "VIS_PERIOD": (cfg.VIS_PERIOD, (0,)),
            "TEST.EXPECTED_RESULTS": (list(cfg.TEST.EXPECTED_RESULTS), ([],)),
        }
        if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
            only |= _segmentor_keys(cfg)
            check_window(cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE)
            for is_train in (True, False):  # rejects illegal sizes
                segmentation.segmentation_mapper(cfg, is_train)
        for key, (value, implemented) in only.items():
            if value not in implemented:
                raise InputError(
                    f"moco-transfer does not implement {key} {value!r} (only"
                    f" {' or '.join(map(repr, implemented))}); Detectron2's own train_net.py does."
                )
        if cfg.MODEL.get("DENSEPOSE_ON"):
            settings = flatten_config(cfg)
            for key, possible in dense_pose.POSSIBLE.items():
                if settings[key] not in possible:
                    expected = " or ".join(map(repr, possible))
                    raise InputError(f"Dense pose needs {key} {expected}, got {settings[key]!r}.")

    def __init__(self, cfg: CfgNode, device: torch.device) -> None:
        super().__init__(cfg, device)
        _join_local_group()
        self.theirs = to_detectron2(cfg, device.type)
        solver = self.theirs.SOLVER
        anything = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=solver.BASE_LR)
        try:  # Detectron2 would fail later, when the run's folder has been made
            build_lr_scheduler(self.theirs, anything)
        except (ValueError, AssertionError) as error:
            raise InputError(
                f"Detectron2 does not take SOLVER.MAX_ITER {solver.MAX_ITER}, STEPS"
                f" {tuple(solver.STEPS)} and WARMUP_ITERS {solver.WARMUP_ITERS}: {error}."
            ) from error
        name = cfg.MODEL.ROI_HEADS.NAME
        if cfg.MODEL.KEYPOINT_ON and name.startswith("Res5"):  # an assertion in Detectron2
            raise InputError(
                f"MODEL.ROI_HEADS.NAME {name!r} has no keypoint head; MODEL.KEYPOINT_ON True needs"
                " 'StandardROIHeads'."
            )
        add_datasets(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
        self._segmentor = cfg.MODEL.META_ARCHITECTURE == SEGMENTOR
        if self._segmentor:
            self.bytes_per_pixel = 20  # float32, and the class as int64
        self._dense_pose = bool(cfg.MODEL.get("DENSEPOSE_ON"))
        if self._dense_pose:
            dense_pose.prepare(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        self._storage: EventStorage | None = None

    def build_model(self) -> nn.Module:
        torch.backends.cudnn.benchmark = self.theirs.CUDNN_BENCHMARK
        if self.theirs.FLOAT32_PRECISION:
            torch.set_float32_matmul_precision(self.theirs.FLOAT32_PRECISION)
            torch.backends.cudnn.allow_tf32 = self.theirs.FLOAT32_PRECISION != "highest"
        seed_all_rng(self.theirs.SEED + get_rank())
        return self._synchronised(detectron2_model(self.theirs))

    def skeleton(self) -> nn.Module:
        # Detectron2 moves its models to MODEL.DEVICE.
        with torch.device("meta"):
            return self._synchronised(detectron2_model(to_detectron2(self.cfg, "meta")))

    def _synchronised(self, model: nn.Module) -> nn.Module:
        return sync_on_cpu(model) if self.device.type == "cpu" else model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(self.theirs, model)

    def iteration_starter(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
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
        # Detectron2's modules log numbers into a storage.
        with EventStorage() as self._storage:
            yield
        self._storage = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        state = random_state()
        try:
            yield
        finally:
            set_random_state(state)

    def state(self) -> dict[str, Any]:
        return {"random_states": gather_object(random_state())}

    def restore(self, state: dict[str, Any]) -> None:
        states = state["random_states"]  # of all ranks
        if len(states) == get_world_size():  # else resume_notes says that the numbers are others
            set_random_state(states[get_rank()])

    def training_batches(
        self, train_sets: Sequence[DetectionDataset], start_iteration: int
    ) -> Batches:
        return self._train_loader(train_sets, self.theirs.DATALOADER.NUM_WORKERS, start_iteration)

    def statistics_batches(self, train_sets: Sequence[DetectionDataset], iteration: int) -> Batches:
        # As in Detectron2's trainer the stream of training from its beginning, without workers.
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
            # Its own generator: drawing the workers' seeds must not move the global one.
            more["seed"] = derive_seed(cfg.SEED, "resumed", start_iteration, get_rank()) % 2**31
        return build_detection_train_loader(
            cfg,
            dataset=images,
            sampler=sampler,
            num_workers=num_workers,
            **more,
            **self._mapper(is_train=True),
        )

    def _mapper(self, *, is_train: bool) -> dict[str, Any]:
        """Return the loader's argument ``mapper`` where Detectron2's own does not do."""
        if self._segmentor:
            return {"mapper": segmentation.segmentation_mapper(self.theirs, is_train)}
        return {"mapper": dense_pose.mapper(self.theirs, is_train)} if self._dense_pose else {}

    @functools.cache  # noqa: B019 - an engine lives as long as its run
    def _training_data(
        self, train_sets: tuple[DetectionDataset, ...]
    ) -> tuple[Dataset, Sampler, list[bool]]:
        """Return Detectron2's training images, their endless order, and which of them are wide."""
        cfg, loader = self.theirs, self.theirs.DATALOADER
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=loader.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=proposals if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        if any(dataset.image_ids is not None for dataset in train_sets):
            # Detectron2's catalogue holds whole sets.
            files = (record["file_name"] for dataset in train_sets for record in dataset.records)
            used = set(map(os.path.realpath, files))
            records = [r for r in records if os.path.realpath(r["file_name"]) in used]
        if loader.FILTER_EMPTY_ANNOTATIONS and cfg.MODEL.MASK_ON:
            # Its mapper leaves objects without a mask out of their images.
            records = [record for record in records if is_trainable(record, masks=True)]
        if self._dense_pose:
            records = [record for record in records if dense_pose.is_annotated(record)]
        sampler: Sampler = TrainingSampler(len(records), seed=cfg.SEED)
        if loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
            shares = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT
            )
            sampler = RepeatFactorTrainingSampler(shares, seed=cfg.SEED)
        is_wide = [record["width"] > record["height"] for record in records]
        return _Images(records, copy=False), sampler, is_wide

    def test_batches(self, dataset: DetectionDataset) -> Batches:
        mapper = self._mapper(is_train=False)
        return build_detection_test_loader(self.theirs, dataset.name, **mapper)

    def detector(self, model: nn.Module) -> Callable[[list[dict]], list[dict[str, Tensor]]]:
        if self._segmentor:
            window = self.theirs.TEST.SLIDING_WINDOW
            places = {"window": window.SIZE, "step": window.STRIDE}
            return functools.partial(segmentation.segment, model, **places)
        augmented = self.theirs.TEST.AUG.ENABLED
        detect = GeneralizedRCNNWithTTA(self.theirs, model) if augmented else model
        return lambda batch: [detections(output["instances"]) for output in detect(batch)]

    def evaluator(self, ours: Any, dataset: DetectionDataset) -> Any:
        if self._dense_pose and has_objects(dataset):
            return dense_pose.DensePoseEvaluator(ours, dataset)
        return ours
