"""From a detection config to results.json: the only file of this step, beside the engines' own ``build.py``, that reads a config."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.nn.parallel import DistributedDataParallel

from ..data.catalog import DetectionDataset, check_class_count, check_same_classes, get_dataset
from ..data.detection_loader import test_loader, train_loader
from ..data.detection_records import leave_out_empty
from ..data.detection_transforms import TestMapper, TrainMapper
from ..evaluate.coco_eval import CocoEvaluator
from ..evaluate.voc_eval import VocEvaluator
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import broadcast_module_state, broadcast_object, get_rank, get_world_size, is_main_process, start_processes
from ..runtime.errors import InputError
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import open_run_folder
from ..runtime.seed import derive_seed, seed_everything
from .handover import load_weights
from .results import config_hash, write_results
from .scaling import scale_to_world_size
from .torchvision_engine import trainer
from .torchvision_engine.build import build_learning_rate, build_model, build_optimizer
from .torchvision_engine.norm import describe_norm
from .torchvision_engine.precise_bn import recompute_bn_statistics

logger = logging.getLogger(__name__)


def finetune(
    cfg: CfgNode,
    *,
    task: str,
    config_file: str = "",
    resume: bool = False,
    eval_only: bool = False,
    allow_partial: bool = False,
    init: str | None = None,
    class_count_from_data: bool = False,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any] | None:
    """Fine-tune a detector on the embedded engine and evaluate it, or only evaluate.

    Args:
        cfg: From ``load_detection_config``.
        task: Name of the task in tables, usually the config file's stem.
        config_file: Recorded in results.json.
        resume: Continue the run in OUTPUT_DIR from its last checkpoint; starts afresh where there is none.
        eval_only: Evaluate MODEL.WEIGHTS (a detector's checkpoint; with ``resume`` the run's last one) and train nothing.
        allow_partial: Start although the trunk is only partly covered by MODEL.WEIGHTS.
        init: Name of the table's row; by default from the weights' stamp, or ``random`` without weights.
        class_count_from_data: Set MODEL.ROI_HEADS.NUM_CLASSES from the data instead of refusing another number.
        on_start: Called with OUTPUT_DIR once it may be written to.

    Returns:
        The record that results.json holds (metrics only on rank 0), or None when the run was told to stop and has saved.

    Raises:
        InputError: If config, data or weights cannot be used; nothing has been written then.
    """
    _refuse_unimplemented(cfg)
    device = _device(cfg)
    cfg = scale_to_world_size(cfg, get_world_size())
    train_sets, test_sets = _datasets(cfg, eval_only)
    cfg = _fit_class_count(cfg, [*train_sets, *test_sets], class_count_from_data)
    cfg = _fix_seed(cfg)
    checkpoints = CheckpointFolder(cfg.OUTPUT_DIR, keep=1)
    last = checkpoints.last() if resume else None
    state = load_checkpoint(last) if last else None

    seed_everything(cfg.SEED, "weights")
    model = build_model(cfg)
    if eval_only and not cfg.MODEL.WEIGHTS and state is None:
        raise InputError("--eval-only needs a detector: give MODEL.WEIGHTS a checkpoint_*.pth, or --resume to take the one in OUTPUT_DIR.")
    weights = _initial_weights(cfg, model, allow_partial)
    if eval_only and state is None and weights["coverage"]["expected"] != len(_named_shapes(model)):
        raise InputError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is a backbone without a detector. --eval-only needs a checkpoint that tools/train_net.py wrote."
        )
    output_dir = open_run_folder(cfg.OUTPUT_DIR, resume=resume or eval_only, config_text=cfg.dump())
    if on_start is not None:
        on_start(output_dir)
    if class_count_from_data:
        logger.info("%d classes, from the data: %s", cfg.MODEL.ROI_HEADS.NUM_CLASSES, ", ".join([*train_sets, *test_sets][0].class_names[:20]))

    run = _build_run(cfg, model, device, task)
    if state is not None:
        _restore(run, state, str(last))
    started = time.time()
    if not eval_only and not _train(cfg, run, train_sets, test_sets, checkpoints, output_dir):
        return None
    record = {
        "task": task,
        "config": config_file,
        "config_hash": config_hash(cfg),
        "engine": "torchvision",
        "init": init or init_name(weights),
        "seed": cfg.SEED,
        "weights": weights,
        "metrics": _evaluate(cfg, run, test_sets, output_dir),
        "norm": describe_norm(model),
        "iterations": run.iteration,
        "wall_sec": round(time.time() - started, 1),
        "world_size": get_world_size(),
        "device": device.type,
        "flags": {"allow_partial": allow_partial, "forced": [], "eval_only": eval_only},
        "dataset": {"train": [d.name for d in train_sets], "test": [d.name for d in test_sets]},
        "last_losses": run.last_losses,
    }
    if is_main_process():
        write_results(output_dir, record)
    return record


def init_name(weights: dict[str, Any]) -> str:
    """Return a row's name from what results.json says of the weights: the stamp's mechanism, else the file's name."""
    if not weights["path"]:
        return "random"
    mechanism = (weights["stamp"] or {}).get("mechanism")
    return mechanism or Path(weights["path"]).stem


def _refuse_unimplemented(cfg: CfgNode) -> None:
    """Refuse what the embedded engine's run, as opposed to its model, does not implement; an option is never ignored."""
    only = {
        "INPUT.CROP.ENABLED": (cfg.INPUT.CROP.ENABLED, False),
        "INPUT.MASK_FORMAT": (cfg.INPUT.MASK_FORMAT, "polygon"),
        "TEST.AUG.ENABLED": (cfg.TEST.AUG.ENABLED, False),
        "DATALOADER.SAMPLER_TRAIN": (cfg.DATALOADER.SAMPLER_TRAIN, "TrainingSampler"),
    }
    for key, (value, implemented) in only.items():
        if value != implemented:
            raise InputError(f"The 'torchvision' engine does not implement {key} {value!r} (only {implemented!r}). Use --engine detectron2.")


def _device(cfg: CfgNode) -> torch.device:
    if cfg.MODEL.DEVICE not in ("cuda", "cpu"):
        raise InputError(f"MODEL.DEVICE must be 'cuda' or 'cpu', got {cfg.MODEL.DEVICE!r}.")
    # Configs say cuda, Detectron2's default; a laptop runs them unchanged on its CPU.
    return start_processes("cpu" if cfg.MODEL.DEVICE == "cpu" else "auto")


def _datasets(cfg: CfgNode, eval_only: bool) -> tuple[list[DetectionDataset], list[DetectionDataset]]:
    for key in ("TRAIN", "TEST"):
        if not cfg.DATASETS[key] and not (key == "TRAIN" and eval_only):
            raise InputError(f"DATASETS.{key} names no data set. Give e.g. DATASETS.{key} voc_2007_trainval, or your own with --dataset.")
    train_sets = [] if eval_only else [get_dataset(name) for name in cfg.DATASETS.TRAIN]
    test_sets = [get_dataset(name) for name in cfg.DATASETS.TEST]
    check_same_classes([*train_sets, *test_sets])
    return train_sets, test_sets


def _fit_class_count(cfg: CfgNode, datasets: list[DetectionDataset], from_data: bool) -> CfgNode:
    count = len(datasets[0].class_names)
    if from_data and count != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = count
        cfg.freeze()
    for dataset in datasets:
        check_class_count(dataset, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return cfg


def _fix_seed(cfg: CfgNode) -> CfgNode:
    """Replace a negative seed, which asks for a different one in each run, by the one that is used, so that it is recorded."""
    if cfg.SEED >= 0:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = broadcast_object(time.time_ns() % 2**31)
    cfg.freeze()
    logger.info("SEED %d (the config asks for a different one in each run)", cfg.SEED)
    return cfg


def _initial_weights(cfg: CfgNode, model: torch.nn.Module, allow_partial: bool) -> dict[str, Any]:
    pixels = {
        "format": cfg.INPUT.FORMAT,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    }
    return load_weights(model, cfg.MODEL.WEIGHTS, arch=f"resnet{cfg.MODEL.RESNETS.DEPTH}", pixels=pixels, allow_partial=allow_partial)


def _named_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def _build_run(cfg: CfgNode, model: torch.nn.Module, device: torch.device, task: str) -> trainer.FineTuning:
    model = model.to(device)
    broadcast_module_state([*model.parameters(), *model.buffers()])
    wrapped: torch.nn.Module = model
    if get_world_size() > 1:
        wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    on_cuda = device.type == "cuda"
    # Detectron2's AMP is fp16 with loss scaling on CUDA; a CPU computes in bf16, which needs no scaling.
    amp_dtype = (torch.float16 if on_cuda else torch.bfloat16) if cfg.SOLVER.AMP.ENABLED else None
    return trainer.FineTuning(
        model=model,
        wrapped=wrapped,
        optimizer=build_optimizer(cfg, model),
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP.ENABLED and on_cuda),
        lr_at=build_learning_rate(cfg),
        device=device,
        amp_dtype=amp_dtype,
        clip={"clip_type": clip.CLIP_TYPE, "clip_value": clip.CLIP_VALUE, "norm_type": clip.NORM_TYPE} if clip.ENABLED else None,
        max_iter=cfg.SOLVER.MAX_ITER,
        seed=cfg.SEED,
        header={"format": trainer.CHECKPOINT_FORMAT, "task": task, "config_hash": config_hash(cfg), "config": cfg.dump()},
    )


def _restore(run: trainer.FineTuning, state: dict[str, Any], path: str) -> None:
    if state.get("format") != trainer.CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of tools/train_net.py (format {state.get('format')!r}, expected {trainer.CHECKPOINT_FORMAT!r})."
        )
    if state["config_hash"] != run.header["config_hash"]:
        raise InputError(
            f"{path} was made with another config (hash {state['config_hash']}, now {run.header['config_hash']}). "
            f"Resume with the config.yaml beside it."
        )
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.iteration, run.last_losses = state["iteration"], state["last_losses"]
    logger.info("resumed from %s: iteration %d of %d", path, run.iteration, run.max_iter)


def _train(
    cfg: CfgNode,
    run: trainer.FineTuning,
    train_sets: list[DetectionDataset],
    test_sets: list[DetectionDataset],
    checkpoints: CheckpointFolder,
    output_dir: Path,
) -> bool:
    records, mapper = _training_data(cfg, train_sets)

    def batches(seed: int, start_iteration: int):
        return train_loader(
            records,
            mapper,
            batch_size_per_rank=cfg.SOLVER.IMS_PER_BATCH // get_world_size(),
            seed=seed,
            rank=get_rank(),
            world_size=get_world_size(),
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            start_iteration=start_iteration,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    def precise_bn() -> None:
        precise = cfg.TEST.PRECISE_BN
        if precise.ENABLED:
            # Pictures of their own, so that the training stream stays where it is.
            seed_everything(cfg.SEED, "precise_bn", run.iteration, get_rank())
            loader = batches(derive_seed(cfg.SEED, "precise_bn", run.iteration) % 2**31, 0)
            if recompute_bn_statistics(run.model, loader, num_iterations=precise.NUM_ITER):
                logger.info("PreciseBN: statistics over %d batches, equal on all processes", precise.NUM_ITER)

    period = cfg.TEST.EVAL_PERIOD
    metrics = MetricsFile(output_dir / "metrics.json", start_iteration=run.iteration, tensorboard=True) if is_main_process() else None
    try:
        return trainer.train(
            run,
            batches(cfg.SEED, run.iteration),
            checkpoints=checkpoints,
            metrics=metrics,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            evaluate_at=lambda iteration: period > 0 and iteration % period == 0,
            evaluation=lambda: _evaluate(cfg, run, test_sets, output_dir),
            before_evaluation=precise_bn,
        )
    finally:
        if metrics is not None:
            metrics.close()


def _training_data(cfg: CfgNode, train_sets: list[DetectionDataset]) -> tuple[list[dict], TrainMapper]:
    records = [record for dataset in train_sets for record in dataset.records]
    total = len(records)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records, left_out = leave_out_empty(records)
        if left_out:
            logger.info("%d of %d training pictures have no box and are left out", left_out, total)
    objects = sum(len(record["annotations"]) for record in records)
    logger.info("training on %d pictures with %d objects from %s", len(records), objects, ", ".join(d.name for d in train_sets))
    mapper = TrainMapper(
        tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        cfg.INPUT.RANDOM_FLIP,
        cfg.INPUT.FORMAT,
        with_masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
        with_keypoints=cfg.MODEL.KEYPOINT_ON,
        keypoint_mirror=train_sets[0].keypoint_mirror if cfg.MODEL.KEYPOINT_ON else (),
    )
    return records, mapper


def _evaluate(cfg: CfgNode, run: trainer.FineTuning, test_sets: list[DetectionDataset], output_dir: Path) -> dict[str, dict[str, float]]:
    """Evaluate on every test set; with several, metrics are nested once more, below the set's name, as Detectron2 does."""
    mapper = TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT)
    results = {}
    for dataset in test_sets:
        loader = test_loader(
            dataset.records,
            mapper,
            batch_size=1,
            rank=get_rank(),
            world_size=get_world_size(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        results[dataset.name] = trainer.evaluate(
            run.model,
            loader,
            evaluator=_evaluator(cfg, dataset, output_dir),
            amp_dtype=run.amp_dtype,
            device=run.device,
            description=f"evaluating {dataset.name}",
            total=-(-len(dataset.records) // get_world_size()),
        )
        for task, metrics in results[dataset.name].items():
            logger.info("%s %s: %s", dataset.name, task, ", ".join(f"{k} {v:.2f}" for k, v in metrics.items() if not k.startswith("AP-")))
    return results[test_sets[0].name] if len(test_sets) == 1 else results


def _evaluator(cfg: CfgNode, dataset: DetectionDataset, output_dir: Path) -> VocEvaluator | CocoEvaluator:
    """Choose by what the data set says of itself, never by its name."""
    predictions = output_dir / f"predictions_{dataset.name}.json"
    if dataset.evaluator == "voc":
        return VocEvaluator(dataset, predictions)
    tasks = ("bbox", *(("segm",) if cfg.MODEL.MASK_ON else ()), *(("keypoints",) if cfg.MODEL.KEYPOINT_ON else ()))
    return CocoEvaluator(dataset, tasks, output_file=predictions)
