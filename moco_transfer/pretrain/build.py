"""From a config to a finished pre-training run: the only file of this step that reads a config."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.images.image_source import ImageSource
from ..data.images.labelled import LabelledBatches, find_labelled
from ..data.images.shard_stream import ShardStream
from ..data.views.loading import Batches, describe_batches, warn_of_another_order
from ..models import build_encoder
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import (
    broadcast_module_state,
    broadcast_object,
    get_world_size,
    is_main_process,
    start_processes,
)
from ..runtime.errors import InputError
from ..runtime.memory import keep_freed_memory
from ..runtime.metrics import MetricsFile, read_metrics
from ..runtime.run_folder import open_run_folder, record_settings
from ..runtime.seed import seed_everything
from .announce import (
    announce_bank,
    announce_groups,
    announce_pipeline,
    announce_queue,
    announce_run,
)
from .build_data import build_loader, evaluation_view, open_images, plan_run, with_packed_pixels
from .end_to_end import EndToEnd
from .init_from import start_from
from .knn import KnnMonitor
from .measures import Watch
from .memory_bank import MemoryBank
from .moco import MoCo
from .resume import read_last, restore
from .schedule import LearningRate, cosine_factor, effective_lr, exponential_factor, step_factor
from .split_batch_norm import SplitBatchNorm2d
from .supervised import Supervised
from .trainer import CHECKPOINT_FORMAT, Pretraining, check_micro_batches, save, train

logger = logging.getLogger(__name__)

PATIENCE = 5000
"""Iterations after which a run is judged even in the midst of its first epoch: about ImageNet's
epoch at a batch of 256. Of a billion images an epoch has 918 thousand, which would be most of the
run."""

_AMP_DTYPE = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretrain(
    cfg: CfgNode, *, resume: bool = False, init_from: str | None = None, on_start=None
) -> Pretraining | None:
    """Run pre-training as the config says.

    Args:
        cfg: From ``load_pretrain_config``.
        resume: Continue the run in OUTPUT_DIR from its last checkpoint; starts afresh where there
            is none.
        init_from: Checkpoint whose weights the encoders start from; everything else starts fresh.
            Not used when a run is resumed.
        on_start: Called with OUTPUT_DIR once the folder may be written to (the command line starts
            its log file there).

    Returns:
        The finished run, or None when it was told to stop and has saved.

    Raises:
        InputError: If the data, the config or the checkpoint cannot be used.
    """
    device = start_processes(cfg.TRAIN.DEVICE)
    if device.type == "cpu":
        keep_freed_memory()
    folder = open_images(cfg)
    cfg = with_packed_pixels(cfg, folder)
    batches = plan_run(
        cfg, folder, start_iteration=0
    )  # refuses sizes that do not fit, before anything is written
    check_micro_batches(batches.batch_size_per_rank, cfg.SOLVER.ACCUMULATE)
    if cfg.MECHANISM == "supervised" and len(folder.class_names) < 2:
        uncounted = (
            " Set DATA.NUM_IMAGES to 0, so that labels are looked for."
            if cfg.DATA.NUM_IMAGES
            else ""
        )
        raise InputError(
            "MECHANISM supervised needs images of at least two classes, found"
            f" {len(folder.class_names)}: {folder.describe()}.{uncounted}"
        )
    if cfg.MECHANISM == "memory_bank" and isinstance(folder, ShardStream):
        raise InputError(
            "MECHANISM memory_bank keeps a feature of each image by its number, which a stream"
            f" of shards ({cfg.DATA.ROOT}) does not have. Copy the shards to a local folder, or"
            " use MECHANISM moco."
        )
    monitor = _monitor(cfg, folder)
    checkpoints = CheckpointFolder(cfg.OUTPUT_DIR, keep=cfg.TRAIN.KEEP_CHECKPOINTS)
    last, state = (read_last(checkpoints) if resume else None) or (None, None)
    output_dir = open_run_folder(cfg.OUTPUT_DIR, resume=resume, config_text=None)
    if on_start is not None:
        on_start(output_dir)

    run = build_run(cfg, folder, batches, device, init_from=init_from if state is None else None)
    run.monitor = monitor
    run.header["order"] = batches.order
    describe_batches(folder, batches)
    _announce(cfg, folder, run)
    if state is not None:
        restore(run, state, str(last))
        warn_of_another_order(state.get("order", {}), batches.order)
        run.monitored = _monitored_before(output_dir / "metrics.json", run)
    record_settings(
        output_dir, cfg.dump()
    )  # not before it is sure that the checkpoint is one of these settings
    loader = build_loader(cfg, folder, plan_run(cfg, folder, start_iteration=run.iteration), device)
    metrics = (
        MetricsFile(
            output_dir / "metrics.json",
            start_iteration=run.iteration,
            tensorboard=cfg.TRAIN.TENSORBOARD,
        )
        if is_main_process()
        else None
    )
    # All batches have one size: the fastest convolutions are looked for once, as in the official
    # script. Detectors' images differ.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        complete = train(
            run,
            loader,
            checkpoints=checkpoints,
            metrics=metrics,
            log_period=cfg.TRAIN.LOG_PERIOD,
            checkpoint_period_epochs=cfg.TRAIN.CHECKPOINT_PERIOD_EPOCHS,
            checkpoint_period_iters=cfg.TRAIN.CHECKPOINT_PERIOD_ITERS,
        )
    finally:
        torch.backends.cudnn.benchmark = False
        if metrics is not None:
            metrics.close()
        # DistributedDataParallel would keep the process group alive beyond its end, and gloo's
        # destructor, run by Python's, may hang.
        run.wrapped = run.model
    return run if complete else None


def _monitored_before(metrics: Path, run: Pretraining) -> int:
    """Return ``run.iteration`` if its measurement was written before the run was interrupted,
    otherwise -1. Collective.

    metrics.json is asked, not the checkpoint: that is saved before the monitor looks, which may
        take minutes.
    """
    rows = read_metrics(metrics) if is_main_process() and metrics.exists() else []
    written = any(row["iteration"] == run.iteration and "knn_top1" in row for row in rows)
    return run.iteration if broadcast_object(written) or not run.iteration else -1


def _announce(cfg: CfgNode, folder: ImageSource, run: Pretraining) -> None:
    announce_run(
        run,
        base_lr=cfg.SOLVER.BASE_LR,
        reference_batch_size=cfg.SOLVER.REFERENCE_BATCH_SIZE,
        precision=cfg.TRAIN.PRECISION,
    )
    announce_pipeline(run)
    if cfg.MECHANISM in ("moco", "end_to_end"):
        announce_groups(run, group_size=cfg.MOCO.BN_GROUP_SIZE, shuffle=cfg.MOCO.SHUFFLE)
    if cfg.MECHANISM == "moco":
        announce_queue(run, num_images=len(folder))
    if cfg.MECHANISM == "memory_bank":
        announce_bank(run, num_images=len(folder), negatives=cfg.MOCO.QUEUE_SIZE)


def build_model(cfg: CfgNode, *, num_classes: int = 0, num_images: int = 0) -> nn.Module:
    """Build the mechanism that the config names, on the CPU.

    Args:
        cfg: A pre-training config.
        num_classes: Class folders, for ``supervised``.
        num_images: Images in the data, for ``memory_bank``.
    """
    moco = cfg.MOCO
    plain = functools.partial(_encoder, cfg.MODEL.ARCH, nn.BatchNorm2d)
    grouped = functools.partial(
        _encoder, cfg.MODEL.ARCH, functools.partial(SplitBatchNorm2d, group_size=moco.BN_GROUP_SIZE)
    )
    head = {"dim": moco.DIM, "temperature": moco.TEMPERATURE, "mlp": moco.MLP}
    if cfg.MECHANISM == "supervised":
        return Supervised(plain, num_classes=num_classes)
    if (
        cfg.MECHANISM == "memory_bank"
    ):  # keys come from other iterations: no statistics to share (Sec. 4.1: ShuffleBN is not needed)
        return MemoryBank(
            plain,
            num_images=num_images,
            num_negatives=moco.QUEUE_SIZE,
            momentum=moco.BANK_MOMENTUM,
            **head,
        )
    if cfg.MECHANISM == "end_to_end":
        return EndToEnd(grouped, shuffle=moco.SHUFFLE, **head)
    return MoCo(
        grouped,
        queue_size=moco.QUEUE_SIZE,
        momentum=moco.MOMENTUM,
        symmetric=moco.SYMMETRIC,
        shuffle=moco.SHUFFLE,
        **head,
    )


def _encoder(arch: str, norm_layer, outputs: int) -> nn.Module:
    return build_encoder(arch, num_classes=outputs, norm_layer=norm_layer)


def build_run(
    cfg: CfgNode,
    folder: ImageSource,
    batches: Batches,
    device: torch.device,
    *,
    init_from: str | None = None,
) -> Pretraining:
    """Build model, optimiser and schedule, at iteration 0.

    Args:
        cfg: A pre-training config.
        folder: The images; their number and class names are asked for, none is read.
        batches: Their order.
        device: Where to train.
        init_from: Checkpoint whose weights the encoders start from.
    """
    seed_everything(cfg.SEED, "weights")
    model = build_model(cfg, num_classes=len(folder.class_names), num_images=len(folder))
    if init_from is not None:
        start_from(model, init_from)
    model = model.to(device)
    channels_last = cfg.TRAIN.CHANNELS_LAST
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    broadcast_module_state([*model.parameters(), *model.buffers()])
    if cfg.TRAIN.COMPILE:
        for part in model.children():
            part.compile()  # in place: state-dict keys stay as they are
    wrapped: nn.Module = model
    if get_world_size() > 1:
        # Buffers are kept equal by construction (queue) or averaged when saved (BN): no broadcast
        # of 32 MB in each step.
        ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(
            model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    solver = cfg.SOLVER
    lr = effective_lr(
        solver.BASE_LR,
        batch_size_total=cfg.DATA.BATCH_SIZE_TOTAL,
        reference_batch_size=solver.REFERENCE_BATCH_SIZE,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    return Pretraining(
        model=model,
        wrapped=wrapped,
        optimizer=_sgd(cfg, trained, device, lr),
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.TRAIN.PRECISION == "fp16"),
        device=device,
        amp_dtype=_AMP_DTYPE[cfg.TRAIN.PRECISION],
        channels_last=channels_last,
        lr_at=_learning_rate(cfg, lr, batches),
        iterations_per_epoch=batches.iterations_per_epoch,
        max_iterations=_max_iterations(cfg, batches),
        accumulate=solver.ACCUMULATE,
        batch_size_total=cfg.DATA.BATCH_SIZE_TOTAL,
        pixel_mean=tuple(cfg.DATA.PIXEL_MEAN),
        pixel_std=tuple(cfg.DATA.PIXEL_STD),
        seed=cfg.SEED,
        header=_header(cfg, folder),
        num_images=len(folder),
        max_unreadable=cfg.DATA.MAX_UNREADABLE,
        num_workers=cfg.DATA.NUM_WORKERS,
        pipeline=cfg.DATA.PIPELINE,
        decoded=folder.is_raw,
        watch=_watch(cfg, model, batches),
    )


def _sgd(
    cfg: CfgNode, trained: list[nn.Parameter], device: torch.device, lr: float
) -> torch.optim.SGD:
    # fused: one pass over the parameters on a CPU. Not under loss scaling (fp16): when the scaler
    # leaves the first step out, torch 2.11's fused SGD takes the momentum, which nothing has
    # written yet, for a momentum. On a GPU torch's default is foreach, one kernel for many tensors.
    fused = True if device.type == "cpu" and cfg.TRAIN.PRECISION != "fp16" else None
    return torch.optim.SGD(
        trained,
        lr=lr,
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=fused,
    )


def _max_iterations(cfg: CfgNode, batches: Batches) -> int:
    return cfg.SOLVER.MAX_ITER or batches.max_iterations


def _learning_rate(cfg: CfgNode, lr: float, batches: Batches) -> LearningRate:
    solver = cfg.SOLVER
    factors = {
        "step": step_factor(steps=tuple(solver.STEPS), gamma=solver.GAMMA),
        "cosine": cosine_factor,
        "exponential": exponential_factor(gamma=solver.GAMMA, period=solver.DECAY_PERIOD),
    }
    return LearningRate(
        lr,
        factor=factors[solver.SCHEDULE],
        max_iterations=_max_iterations(cfg, batches),
        iterations_per_epoch=batches.iterations_per_epoch,
        first_epoch=solver.FIRST_EPOCH,
        by_iteration=solver.SCHEDULE_BY == "iteration",
        warmup_iterations=solver.WARMUP_ITERS + solver.WARMUP_EPOCHS * batches.iterations_per_epoch,
    )


def _watch(cfg: CfgNode, model: nn.Module, batches: Batches) -> Watch | None:
    if cfg.MECHANISM == "supervised":
        return None
    negatives = (
        cfg.DATA.BATCH_SIZE_TOTAL - 1 if cfg.MECHANISM == "end_to_end" else model.num_negatives
    )
    filling = negatives // cfg.DATA.BATCH_SIZE_TOTAL if cfg.MECHANISM == "moco" else 0
    patience = max(min(batches.iterations_per_epoch, PATIENCE), filling)
    return Watch(negatives=negatives, patience_iterations=patience, loss_scale=model.loss_scale)


def _monitor(cfg: CfgNode, folder: ImageSource) -> KnnMonitor | None:
    if not cfg.KNN.TEST:
        return None
    if (cfg.DATA.LIST_FILE or isinstance(folder, ShardStream)) and not cfg.KNN.TRAIN:
        source = "DATA.LIST_FILE is" if cfg.DATA.LIST_FILE else "DATA.ROOT names shards"
        raise InputError(
            f"KNN.TRAIN must be given where {source}: class folders, a list file with labels, or"
            " CIFAR-10."
        )
    sets = find_labelled(cfg.KNN.TRAIN or cfg.DATA.ROOT, cfg.KNN.TEST)
    train, test = (
        LabelledBatches(images, evaluation_view(cfg), num_workers=cfg.DATA.NUM_WORKERS)
        for images in sets
    )
    features = cfg.KNN.FEATURES
    if features == "auto":
        features = "trunk" if cfg.MECHANISM == "supervised" else "head"
    return KnnMonitor(
        train,
        test,
        period_epochs=cfg.KNN.PERIOD_EPOCHS,
        k=cfg.KNN.K,
        temperature=cfg.KNN.TEMPERATURE,
        features=features,
    )


def _header(cfg: CfgNode, folder: ImageSource) -> dict[str, Any]:
    return {
        "format": CHECKPOINT_FORMAT,
        "mechanism": cfg.MECHANISM,
        "arch": cfg.MODEL.ARCH,
        "pixels": {
            "format": "RGB",
            "mean": [float(v) for v in cfg.DATA.PIXEL_MEAN],
            "std": [float(v) for v in cfg.DATA.PIXEL_STD],
        },
        "classes": list(folder.class_names) if cfg.MECHANISM == "supervised" else [],
        "config": cfg.dump(),
        "num_images": len(folder),
        "batch_size_total": cfg.DATA.BATCH_SIZE_TOTAL,
    }


__all__ = ["build_model", "build_run", "pretrain", "restore", "save"]
