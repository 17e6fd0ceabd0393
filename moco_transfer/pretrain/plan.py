"""From a config to the plan of a pre-training run: everything is read and checked, nothing written.

The only file of this step that takes a config. ``run.py`` takes the plan.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from fvcore.common.config import CfgNode

from ..config import flatten_config
from ..data.images.bands import held_channels
from ..data.images.image_source import ImageSource, IndexedSource
from ..data.images.sources import open_source
from ..data.views.labelled import EvaluationView, LabelledBatches, find_labelled, protocol_resize
from ..data.views.loading import PREFETCHED, plan_batches
from ..data.views.order import Batches, ShardBatches
from ..data.views.pixel_statistics import measure_pixels
from ..data.views.view_batch import ViewMaker
from ..models import BANDS, CHANNEL_ORDERS, build_encoder
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.device import Compute, choose_precision
from ..runtime.distributed import get_world_size, start_processes
from ..runtime.errors import Faults, InputError
from ..runtime.machine import check_shared_memory
from ..runtime.run_folder import open_run_folder
from ..runtime.trackers.record import check_loggers
from .encoder_file import TrainedEncoder, read_encoder
from .end_to_end import EndToEnd
from .knn import KnnPlan
from .memory_bank import MemoryBank
from .moco import MoCo
from .resume import CHECKPOINT_FORMAT, ResumePoint, check_resume, read_last
from .schedule import LearningRate
from .shuffle import SplitBatchNorm2d
from .supervised import Supervised

Mechanism: TypeAlias = MoCo | MemoryBank | EndToEnd | Supervised

PATIENCE = 5000  # iterations after which a run is judged in its first epoch: one of ImageNet


@dataclass(frozen=True)
class PretrainPlan:
    """What a run will do; fields without a comment are named after their config keys."""

    config_text: str  # the whole config, for config.yaml and the checkpoints
    config: dict[str, Any]  # the same by full key, for trackers
    output_dir: Path
    seed: int
    device: torch.device
    compute: Compute
    channels_last: bool
    compile: bool
    deterministic: bool

    source: ImageSource
    batches: Batches  # the order of the images, from the first iteration to run on
    batch_size_total: int
    num_workers: int
    view_maker: ViewMaker
    pixels: tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel, 0-255
    max_unreadable: float

    mechanism: str
    arch: str
    dim: int
    queue_size: int
    momentum: float
    bank_momentum: float
    temperature: float
    mlp: bool
    symmetric: bool
    shuffle: bool
    bn_group_size: int

    lr_at: LearningRate  # iteration, 0-based -> effective learning rate
    base_lr: float
    reference_batch_size: int
    sgd_momentum: float  # SOLVER.MOMENTUM
    weight_decay: float
    accumulate: int

    log_period: int
    checkpoint_periods: list[int]  # iterations between checkpoints
    keep_checkpoints: int
    loggers: tuple[str, ...]
    knn: KnnPlan | None = None
    init: TrainedEncoder | None = None  # what the encoders start from, None for random weights
    resume: ResumePoint | None = None  # the checkpoint to continue from

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations in an epoch; the last, partial batch is left out."""
        return self.batches.iterations_per_epoch

    @property
    def max_iterations(self) -> int:
        """Length of the run."""
        return self.lr_at.max_iterations

    @property
    def epochs(self) -> int:
        """Epochs begun by the end of the run."""
        return math.ceil(self.max_iterations / self.iterations_per_epoch)

    @property
    def num_negatives(self) -> int:
        """Negatives K of a step."""
        others = len(self.source) - self.batch_size_total
        return {
            "moco": self.queue_size,
            "memory_bank": min(self.queue_size, others),
            "end_to_end": self.batch_size_total - 1,
            "supervised": 0,
        }[self.mechanism]

    @property
    def patience_iterations(self) -> int:
        """Iterations before the contrast is judged: an epoch or PATIENCE, and a filled queue."""
        filling = self.queue_size // self.batch_size_total if self.mechanism == "moco" else 0
        return max(min(self.iterations_per_epoch, PATIENCE), filling)

    @property
    def header(self) -> dict[str, Any]:
        """What every checkpoint of the run holds about itself."""
        mean, std = ([float(v) for v in values] for values in self.pixels)
        supervised = self.mechanism == "supervised"
        return {
            "format": CHECKPOINT_FORMAT,
            "mechanism": self.mechanism,
            "arch": self.arch,
            "pixels": {"format": CHANNEL_ORDERS.get(len(mean), BANDS), "mean": mean, "std": std},
            "pixel_change": self.source.pixel_change,
            "classes": list(self.source.class_names) if supervised else [],
            "config": self.config_text,
            "precision": self.compute.precision.name,
            "num_images": len(self.source),
            "batch_size_total": self.batch_size_total,
            "order": self.batches.order,
        }

    def build_mechanism(self) -> Mechanism:
        """Build the mechanism on the default device, initialised at random.

        It has ``encoder_q``, ``loss_scale``, and for a step: ``begin_step(index
        of all images)``, ``loss(views, labels, index)`` of each micro-batch, ``end_step()``.
        """
        plain = functools.partial(build_encoder, self.arch, in_channels=len(self.pixels[0]))
        norm = functools.partial(SplitBatchNorm2d, group_size=self.bn_group_size)
        grouped = functools.partial(plain, norm_layer=norm)
        head: dict[str, Any] = {"dim": self.dim, "temperature": self.temperature, "mlp": self.mlp}
        if self.mechanism == "supervised":
            return Supervised(plain, num_classes=len(self.source.class_names))
        if self.mechanism == "memory_bank":  # its keys share no statistics with the queries
            head |= {"num_images": len(self.source), "num_negatives": self.queue_size}
            return MemoryBank(plain, momentum=self.bank_momentum, **head)
        if self.mechanism == "end_to_end":
            return EndToEnd(grouped, shuffle=self.shuffle, **head)
        head |= {"queue_size": self.queue_size, "momentum": self.momentum}
        return MoCo(grouped, symmetric=self.symmetric, shuffle=self.shuffle, **head)


def plan_pretrain(
    cfg: CfgNode,
    *,
    resume: bool = False,
    init_from: str | None = None,
    source: ImageSource | None = None,
) -> PretrainPlan:
    """Read what a config names and check it. Collective: joins torchrun's processes first.

    ``resume``: continue the run in OUTPUT_DIR from its last checkpoint, where there is one; the
    weights of ``init_from`` are then not used. ``source``: images in place of DATA.ROOT's.

    Raises:
        InputError: Names every fault of data, config, weights and checkpoint.
    """
    device, faults = start_processes(cfg.TRAIN.DEVICE), Faults()
    faults.check(lambda: open_run_folder(cfg.OUTPUT_DIR, resume=resume))
    last = faults.check(lambda: read_last(CheckpointFolder(cfg.OUTPUT_DIR))) if resume else None
    asked, init, data = cfg.TRAIN.PRECISION, None, cfg.DATA
    if asked == "auto" and last is not None:  # the run stays what it was
        asked = last.state.get("precision", asked)
    precision = faults.check(lambda: choose_precision(asked, device))
    if init_from is not None and last is None:
        asked_of_init: dict[str, Any] = {"arch": cfg.MODEL.ARCH, "channels": data.CHANNELS}
        init = faults.check(lambda: read_encoder(init_from, **asked_of_init))
    found = {"layout": data.LAYOUT, "list_file": data.LIST_FILE, "num_images": data.NUM_IMAGES}
    found["arrays"] = data.CHANNELS != 3
    if source is None:
        source = faults.check(lambda: open_source(data.ROOT, **found))
    start = last.iteration if last is not None else 0
    batches = faults.check(lambda: _batches(cfg, source, start)) if source is not None else None
    stream = isinstance(batches, ShardBatches)
    if source is not None:
        for fault in _mechanism_faults(cfg, source, stream):
            faults.add(fault)
    pixels = faults.check(lambda: _pixels(cfg, source))
    knn = faults.check(lambda: _knn(cfg, stream, pixels)) if pixels is not None else None
    faults.check(lambda: _check_workers(cfg))
    faults.raise_all()
    assert precision is not None and batches is not None

    fields = {field.name for field in dataclasses.fields(PretrainPlan)}
    settings: dict[str, Any] = {
        key.lower(): value
        for section in ("DATA", "MODEL", "SOLVER", "TRAIN", "MOCO")  # ``momentum`` is MOCO's
        for key, value in cfg[section].items()
        if key.lower() in fields
    }
    per_epoch = batches.iterations_per_epoch
    periods = cfg.TRAIN.CHECKPOINT_PERIOD_EPOCHS * per_epoch, cfg.TRAIN.CHECKPOINT_PERIOD_ITERS
    views = 1 if cfg.MECHANISM in ("supervised", "memory_bank") else 2
    crops = data.IMAGE_SIZE, tuple(data.CROP_SCALE)
    how = data.PIPELINE, data.EXIF, data.CHANNELS
    settings |= {
        "config_text": cfg.dump(),
        "output_dir": Path(cfg.OUTPUT_DIR),
        "seed": cfg.SEED,
        "loggers": check_loggers(cfg.LOGGERS),
        "device": device,
        "compute": Compute(device, precision),
        "source": source,
        "batches": batches,
        "view_maker": ViewMaker(data.AUGMENTATION, *crops, views, *how),
        "pixels": pixels,
        "mechanism": cfg.MECHANISM,
        "lr_at": learning_rate(cfg, per_epoch, batches.max_iterations),
        "checkpoint_periods": [period for period in periods if period],
        "sgd_momentum": cfg.SOLVER.MOMENTUM,
    }
    plan = PretrainPlan(knn=knn, init=init, resume=last, config=flatten_config(cfg), **settings)
    if last is not None:
        for fault in check_resume(last, plan.header, plan.max_iterations):
            faults.add(fault)
    faults.raise_all()
    return plan


def learning_rate(cfg: CfgNode, iterations_per_epoch: int, max_iterations: int) -> LearningRate:
    """Return the schedule of a config; SOLVER.MAX_ITER wins over ``max_iterations``."""
    solver = cfg.SOLVER
    return LearningRate(
        solver.BASE_LR * cfg.DATA.BATCH_SIZE_TOTAL / solver.REFERENCE_BATCH_SIZE,
        solver.SCHEDULE,
        max_iterations=solver.MAX_ITER or max_iterations,
        iterations_per_epoch=iterations_per_epoch,
        steps=tuple(solver.STEPS),
        gamma=solver.GAMMA,
        decay_period=solver.DECAY_PERIOD,
        by_iteration=solver.SCHEDULE_BY == "iteration",
        first_epoch=solver.FIRST_EPOCH,
        warmup_iterations=solver.WARMUP_ITERS + solver.WARMUP_EPOCHS * iterations_per_epoch,
    )


def _batches(cfg: CfgNode, source: ImageSource, start_iteration: int) -> Batches:
    # A run measured in iterations ends within its last epoch.
    per_epoch = max(1, len(source) // cfg.DATA.BATCH_SIZE_TOTAL)
    return plan_batches(
        source,
        batch_size_total=cfg.DATA.BATCH_SIZE_TOTAL,
        epochs=-(-cfg.SOLVER.MAX_ITER // per_epoch) or cfg.SOLVER.EPOCHS,
        seed=cfg.SEED,
        num_workers=cfg.DATA.NUM_WORKERS,
        shuffle_buffer=cfg.DATA.SHUFFLE_BUFFER,
        start_iteration=start_iteration,
    )


def _check_workers(cfg: CfgNode) -> None:
    data, views = cfg.DATA, 1 if cfg.MECHANISM in ("supervised", "memory_bank") else 2
    images = data.BATCH_SIZE_TOTAL / get_world_size()
    batch_bytes = views * images * held_channels(data.CHANNELS) * data.IMAGE_SIZE**2
    key, workers = "DATA.NUM_WORKERS", data.NUM_WORKERS
    check_shared_memory(batch_bytes, batches=PREFETCHED, key=key, num_workers=workers)


def _mechanism_faults(cfg: CfgNode, source: ImageSource, stream: bool) -> Iterator[str]:
    classes, data = len(source.class_names), cfg.DATA
    images, accumulate = data.BATCH_SIZE_TOTAL // get_world_size(), cfg.SOLVER.ACCUMULATE
    if images % accumulate:  # BN would see groups of another size, down to one image
        fitting = ", ".join(str(n) for n in range(1, images + 1) if images % n == 0)
        yield (
            f"SOLVER.ACCUMULATE {accumulate} does not divide the {images} images of a step on one"
            f" process. Use one of {fitting}, or another DATA.BATCH_SIZE_TOTAL."
        )
    elif images == accumulate:
        yield (
            f"One image a process and micro-batch (DATA.BATCH_SIZE_TOTAL {data.BATCH_SIZE_TOTAL},"
            f" {get_world_size()} processes, SOLVER.ACCUMULATE {accumulate}) leaves batch"
            " normalisation nothing to average. Give at least two."
        )
    if cfg.MECHANISM == "supervised" and classes < 2:
        hint = " Set DATA.NUM_IMAGES to 0, so that labels are read." if data.NUM_IMAGES else ""
        yield (
            f"MECHANISM supervised needs images of at least two classes, found {classes}:"
            f" {source.describe()}.{hint}"
        )
    if cfg.MECHANISM == "memory_bank" and stream:
        yield (
            "MECHANISM memory_bank stores a feature of each image by its number, which a stream of"
            f" shards ({data.ROOT}) does not have. Use local files, or MECHANISM moco."
        )
    if cfg.MECHANISM == "memory_bank" and len(source) <= data.BATCH_SIZE_TOTAL:
        yield (
            f"MECHANISM memory_bank: all {len(source)} images are in one batch, so no negatives are"
            " left. Set DATA.BATCH_SIZE_TOTAL lower."
        )


def _pixels(
    cfg: CfgNode, source: ImageSource | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation, given or measured; None without images to measure."""
    data = cfg.DATA
    if len(data.PIXEL_MEAN):
        return tuple(data.PIXEL_MEAN), tuple(data.PIXEL_STD)
    if source is not None and not isinstance(source, IndexedSource):
        raise InputError(
            f"DATA.PIXEL_MEAN () cannot be measured on a stream of shards ({data.ROOT}). Give one"
            " number for each channel."
        )
    how = {"channels": data.CHANNELS, "upright": data.EXIF}
    return measure_pixels(source, **how) if source is not None else None


def _knn(
    cfg: CfgNode, stream: bool, pixels: tuple[tuple[float, ...], tuple[float, ...]]
) -> KnnPlan | None:
    data, knn, features = cfg.DATA, cfg.KNN, cfg.KNN.FEATURES
    if not knn.TEST:
        return None
    if (data.LIST_FILE or stream) and not knn.TRAIN:
        reason = "DATA.LIST_FILE is set" if data.LIST_FILE else "DATA.ROOT names shards"
        raise InputError(f"KNN.TRAIN must be given where {reason}: labelled images.")
    if features == "auto":
        features = "trunk" if cfg.MECHANISM == "supervised" else "head"
    resize = data.TEST_RESIZE or protocol_resize(data.IMAGE_SIZE)
    train, test = find_labelled(knn.TRAIN or data.ROOT, knn.TEST, channels=data.CHANNELS)
    view = EvaluationView(data.IMAGE_SIZE, resize, *pixels, upright=data.EXIF)
    bank, asked = (
        LabelledBatches(images, view, num_workers=data.NUM_WORKERS) for images in (train, test)
    )
    return KnnPlan(bank, asked, knn.PERIOD_EPOCHS, knn.K, knn.TEMPERATURE, features)
