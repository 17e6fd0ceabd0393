"""From a detection config to results.json: the only file of this step, beside the engines' own ``build.py``, that reads a config."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.nn.parallel import DistributedDataParallel

from ..config import reference_batch_and_lr
from ..data.catalog import DetectionDataset
from ..data.detection_loader import test_loader, train_loader
from ..data.label_subset import read_label_subset, subset_suffix, take_label_subset, title_of
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import broadcast_module_state, broadcast_object, get_rank, get_world_size, is_main_process, start_processes
from ..runtime.errors import InputError
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import open_run_folder
from ..runtime.seed import derive_seed, seed_everything
from .build_data import find_datasets, fit_class_count, inference_mapper, make_evaluator, training_data
from .handover import DETECTOR, SUPERVISED, InitialWeights, coverage_gap, load_weights, read_weights
from .lint import Finding, lint, remarks, settle
from .results import config_hash, write_results
from .scaling import scale_to_world_size, schedule_sentence
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
    force: bool = False,
    init: str | None = None,
    class_count_from_data: bool = False,
    coco_style: bool = False,
    label_subset: str | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any] | None:
    """Fine-tune a detector on the embedded engine and evaluate it, or only evaluate.

    Args:
        cfg: From ``load_detection_config``.
        task: Name of the task in tables, usually the config file's stem.
        config_file: Recorded in results.json; its batch and learning rate are what the run's are held to.
        resume: Continue the run in OUTPUT_DIR from its last checkpoint; starts afresh where there is none.
        eval_only: Evaluate MODEL.WEIGHTS (a detector's checkpoint; with ``resume`` the run's last one) and train nothing.
        allow_partial: Start although the trunk is only partly covered by MODEL.WEIGHTS.
        force: Go on in spite of what the linter finds; results.json and the table say so.
        init: Name of the table's row; by default from the weights' stamp, or ``random`` without weights.
        class_count_from_data: Set MODEL.ROI_HEADS.NUM_CLASSES from the data instead of refusing another number.
        coco_style: Evaluate a test set of VOC's kind by COCO's twelve numbers too, after the last iteration.
        label_subset: File that lists the training pictures to use; see ``data.label_subset``. The task's name then ends with their share.
        on_start: Called with OUTPUT_DIR once it may be written to.

    Returns:
        The record that results.json holds (metrics only on rank 0), or None when the run was told to stop and has saved.

    Raises:
        InputError: If config, data or weights cannot be used; nothing has been written then.
    """
    _refuse_unimplemented(cfg)
    device = _device(cfg)
    written, cfg = cfg, scale_to_world_size(cfg, get_world_size())
    train_sets, test_sets = find_datasets(cfg, eval_only=eval_only)
    subset = read_label_subset(label_subset) if label_subset else None
    if subset is not None:
        task += subset_suffix(subset.fraction)
        train_sets = take_label_subset(train_sets, subset, label_subset) if train_sets else []
    cfg = _fix_seed(fit_class_count(cfg, [*train_sets, *test_sets], from_data=class_count_from_data))
    checkpoints = CheckpointFolder(cfg.OUTPUT_DIR, keep=1)
    last = checkpoints.last() if resume else None
    state = load_checkpoint(last) if last else None

    seed_everything(cfg.SEED, "weights")
    model = build_model(cfg)
    initial = read_weights(cfg.MODEL.WEIGHTS, init=init)
    if eval_only and state is None:
        _refuse_no_detector(initial)
    overruled = _settle(written, model, initial, config_file=config_file, force=force, allow_partial=allow_partial, eval_only=eval_only)
    weights = load_weights(model, initial, arch=_arch(cfg), allow_partial=allow_partial)
    del initial  # the tensors are in the model now
    output_dir = open_run_folder(cfg.OUTPUT_DIR, resume=resume or eval_only, config_text=cfg.dump())
    if on_start is not None:
        on_start(output_dir)
    class_names = [*train_sets, *test_sets][0].class_names
    said = [] if eval_only else [schedule_sentence(written, cfg, get_world_size())]
    said.append(f"{len(class_names)} classes{', from the data' if class_count_from_data else ''}: {_some(class_names)}")
    surprises = [] if eval_only else remarks(cfg, world_size=get_world_size())
    _announce([*said, *(f"note: {sentence}" for sentence in surprises)], [f"--force overrules {f.name}: {f.sentence}" for f in overruled])

    run = build_run(cfg, model, device, {"task": task, "class_names": list(class_names)})
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
        "metrics": _evaluate(cfg, run, test_sets, output_dir, coco_style=coco_style),
        "norm": describe_norm(model),
        "iterations": run.iteration,
        "wall_sec": round(time.time() - started, 1),
        "world_size": get_world_size(),
        "device": device.type,
        "flags": {"allow_partial": allow_partial, "forced": [finding.name for finding in overruled], "eval_only": eval_only},
        "dataset": {"train": [title_of(d.name, subset) for d in train_sets], "test": [d.name for d in test_sets], "classes": list(class_names)}
        | ({} if subset is None else {"label_subset": subset.describe()}),
        "remarks": surprises,
        "last_losses": run.last_losses,
    }
    if is_main_process():
        write_results(output_dir, record)
    return record


def init_name(weights: dict[str, Any]) -> str:
    """Return a row's name from what results.json says of the weights: the stamp's mechanism, the kind, else the file's name."""
    if not weights["path"]:
        return "random"
    mechanism = (weights["stamp"] or {}).get("mechanism")
    return mechanism or (SUPERVISED if weights.get("kind") == SUPERVISED else Path(weights["path"]).stem)


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


def _refuse_no_detector(initial: InitialWeights) -> None:
    if initial.content is None:
        raise InputError("--eval-only needs a detector: give MODEL.WEIGHTS a checkpoint_*.pth, or --resume to take the one in OUTPUT_DIR.")
    if initial.kind != DETECTOR:
        raise InputError(
            f"MODEL.WEIGHTS {initial.path} is a backbone without a detector. --eval-only needs a checkpoint that tools/train_net.py wrote."
        )


def _arch(cfg: CfgNode) -> str:
    return f"resnet{cfg.MODEL.RESNETS.DEPTH}"


def _settle(
    written: CfgNode, model: torch.nn.Module, initial: InitialWeights, *, config_file: str, force: bool, allow_partial: bool, eval_only: bool
) -> list[Finding]:
    """Refuse the run for all that its config and weights have against each other, at once, or return what was overruled."""
    reference = reference_batch_and_lr(config_file) if config_file else None
    findings = lint(written, initial, world_size=get_world_size(), reference=reference, eval_only=eval_only)
    gap = None if allow_partial else coverage_gap(model, initial, _arch(written))
    if gap is not None:
        findings.append(Finding("coverage", gap, "--allow-partial"))
    return settle(findings, initial, force=force)


def _announce(said: list[str], warnings: list[str]) -> None:
    for sentence in said:
        logger.info("%s", sentence)
    for sentence in warnings:
        logger.warning("%s", sentence)


def _some(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


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


def build_run(cfg: CfgNode, model: torch.nn.Module, device: torch.device, says: dict[str, Any]) -> trainer.FineTuning:
    """Return a run at its start: the model on its device, equal on all processes, with optimiser and schedule from the config."""
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
        header={"format": trainer.CHECKPOINT_FORMAT, **says, "config_hash": config_hash(cfg), "config": cfg.dump()},
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
    records, mapper = training_data(cfg, train_sets)

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


def _evaluate(
    cfg: CfgNode, run: trainer.FineTuning, test_sets: list[DetectionDataset], output_dir: Path, *, coco_style: bool = False
) -> dict[str, dict[str, float]]:
    """Evaluate on every test set; with several, metrics are nested once more, below the set's name, as Detectron2 does."""
    mapper = inference_mapper(cfg)
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
            evaluator=make_evaluator(cfg, dataset, output_dir, coco_style=coco_style),
            amp_dtype=run.amp_dtype,
            device=run.device,
            description=f"evaluating {dataset.name}",
            total=-(-len(dataset.records) // get_world_size()),
        )
        for task, metrics in results[dataset.name].items():
            logger.info("%s %s: %s", dataset.name, task, ", ".join(f"{k} {v:.2f}" for k, v in metrics.items() if not k.startswith("AP-")))
    return results[test_sets[0].name] if len(test_sets) == 1 else results
