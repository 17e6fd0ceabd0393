"""From a detection config to results.json, on either engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.nn.parallel import DistributedDataParallel

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.label_subset import (
    read_label_subset,
    subset_suffix,
    take_label_subset,
    title_of,
)
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import broadcast_module_state, get_world_size, is_main_process
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import open_run_folder
from . import trainer
from .build_data import find_datasets, fit_class_count, identify, make_evaluator
from .build_start import (
    announce,
    check_resumed,
    choose_device,
    evaluation_folder,
    fix_seed,
    refuse_no_detector,
    run_header,
    settle_config,
)
from .engine import Engine
from .engines import engine_class
from .handover import load_weights, read_weights
from .lint import remarks
from .precise_bn import recompute_bn_statistics
from .results import config_hash, init_name, plain, write_results
from .scaling import scale_to_world_size, schedule_sentence
from .sync_norm import describe_norm

logger = logging.getLogger(__name__)


def finetune(
    cfg: CfgNode,
    *,
    task: str,
    engine: str = "torchvision",
    config_file: str = "",
    resume: bool = False,
    eval_only: bool = False,
    allow_partial: bool = False,
    force: bool = False,
    init: str | None = None,
    class_count_from_data: bool = False,
    coco_style: bool = False,
    command: str | None = None,
    label_subset: str | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any] | None:
    """Fine-tune a detector and evaluate it, or only evaluate.

    Args:
        cfg: From ``load_detection_config``.
        task: Name of the task in tables, usually the config file's stem.
        engine: ``torchvision`` or ``detectron2``.
        config_file: Recorded in results.json; its batch and learning rate are what the run's are
            held to.
        resume: Continue the run in OUTPUT_DIR from its last checkpoint; starts afresh where there
            is none.
        eval_only: Evaluate MODEL.WEIGHTS (a detector's checkpoint; with ``resume`` the run's last
            one) and train nothing. Where OUTPUT_DIR holds a run, or another evaluation, what is
            written goes into a folder of its own in it, ``eval_<test set>``.
        allow_partial: Start although the trunk is only partly covered by MODEL.WEIGHTS.
        force: Go on in spite of what the linter finds; results.json and the table say so.
        init: Name of the table's row; by default from the weights' stamp, or ``random`` without
            weights.
        class_count_from_data: Set MODEL.ROI_HEADS.NUM_CLASSES from the data instead of refusing
            another number.
        coco_style: Evaluate a test set of VOC's kind by COCO's twelve numbers too, after the last
            iteration.
        command: The command line, recorded in results.json.
        label_subset: File that lists the training images to use; see ``data.label_subset``. The
            task's name then ends with their share.
        on_start: Called with the folder that the run writes into, once it may.

    Returns:
        The record that results.json holds (metrics only on rank 0), or None when the run was told
        to stop and has saved.

    Raises:
        InputError: If engine, config, data or weights cannot be used; nothing has been written
            then.
    """
    kind = engine_class(engine)
    kind.check(cfg)
    device = choose_device(cfg)
    written, cfg = cfg, scale_to_world_size(cfg, get_world_size())
    train_sets, test_sets = find_datasets(cfg, eval_only=eval_only)
    for dataset in test_sets:
        make_evaluator(
            cfg, dataset, Path(cfg.OUTPUT_DIR), coco_style=coco_style
        )  # refuses now what it would refuse after the training
    datasets = {} if eval_only else {"train": identify(train_sets), "test": identify(test_sets)}
    subset = read_label_subset(label_subset) if label_subset else None
    if subset is not None:
        task += subset_suffix(subset.fraction)
        train_sets = take_label_subset(train_sets, subset, label_subset) if train_sets else []
    checkpoints = CheckpointFolder(cfg.OUTPUT_DIR, keep=1)
    last = checkpoints.last() if resume else None
    state = load_checkpoint(last) if last else None
    cfg = fix_seed(
        fit_class_count(cfg, [*train_sets, *test_sets], from_data=class_count_from_data),
        begun_with=(state or {}).get("seed"),
    )

    made = kind(cfg, device)
    initial = read_weights(cfg.MODEL.WEIGHTS, init=init)
    model = made.build_model()
    if eval_only and state is None:
        refuse_no_detector(initial)
    overruled = settle_config(
        written,
        model,
        initial,
        config_file=config_file,
        force=force,
        allow_partial=allow_partial,
        eval_only=eval_only,
    )
    weights = load_weights(
        model, initial, arch=f"resnet{cfg.MODEL.RESNETS.DEPTH}", allow_partial=allow_partial
    )
    del initial  # the tensors are in the model now
    class_names = [*train_sets, *test_sets][0].class_names
    header = run_header(
        cfg,
        engine=made.name,
        task=task,
        class_names=class_names,
        init=init or init_name(weights),
        weights=plain(weights),
        label_subset_sha256=None if subset is None else subset.sha256,
        datasets=datasets,
    )
    notes = []
    if state is not None:
        notes = header["resume_notes"] = check_resumed(
            state, str(last), header, eval_only=eval_only
        )
        weights = state.get("weights", weights)
    config_text = cfg.dump()
    folder = (
        evaluation_folder(cfg.OUTPUT_DIR, [d.name for d in test_sets], config_text)
        if eval_only
        else Path(cfg.OUTPUT_DIR)
    )
    output_dir = open_run_folder(folder, resume=resume or eval_only, config_text=config_text)
    if on_start is not None:
        on_start(output_dir)
    if output_dir != Path(cfg.OUTPUT_DIR):
        logger.info(
            "OUTPUT_DIR %s holds a run already, which stays as it is: this evaluation is written"
            " to %s",
            cfg.OUTPUT_DIR,
            output_dir,
        )
    for note in notes:
        logger.warning("%s", note)
    surprises = [] if eval_only else remarks(cfg, world_size=get_world_size())
    schedule = None if eval_only else schedule_sentence(written, cfg, get_world_size())
    logger.info("engine: %s", made.name)
    announce(
        schedule,
        class_names,
        from_data=class_count_from_data,
        surprises=surprises,
        overruled=overruled,
    )

    run = build_run(cfg, made, model, header)
    if state is not None:
        _restore(run, made, state, str(last))
    started = time.time()
    if not eval_only and not _train(cfg, made, run, train_sets, test_sets, checkpoints, output_dir):
        return None
    record = {
        "task": task,
        "config": config_file,
        "command": command,
        "config_hash": config_hash(cfg),
        "engine": made.name,
        "init": init or init_name(weights),
        "seed": cfg.SEED,
        "weights": weights,
        "metrics": _evaluate(cfg, made, run, test_sets, output_dir, coco_style=coco_style),
        "norm": describe_norm(run.model),
        "iterations": run.iteration,
        "wall_sec": round(time.time() - started, 1),
        "world_size": get_world_size(),
        "device": device.type,
        "flags": {
            "allow_partial": allow_partial,
            "forced": [finding.name for finding in overruled],
            "eval_only": eval_only,
        },
        "dataset": (
            {
                "train": [title_of(d.name, subset) for d in train_sets],
                "test": [d.name for d in test_sets],
                "classes": list(class_names),
            }
            | ({} if subset is None else {"label_subset": subset.describe()})
        ),
        "remarks": [*surprises, *notes],
        "last_losses": run.last_losses,
    }
    if is_main_process():
        write_results(output_dir, record)
    return record


def build_run(
    cfg: CfgNode, engine: Engine, model: torch.nn.Module, header: dict[str, Any]
) -> trainer.FineTuning:
    """Return a run at its start: the model on its device, equal on all processes, with the engine's
    optimiser and schedule.

    Args:
        cfg: As the engine's.
        engine: Of the run.
        model: With its initial weights.
        header: What every checkpoint says of itself, from ``run_header``.
    """
    device = engine.device
    model = model.to(device)
    broadcast_module_state([*model.parameters(), *model.buffers()])
    wrapped: torch.nn.Module = model
    if get_world_size() > 1:
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
        )
    on_cuda = device.type == "cuda"
    # Detectron2's AMP is fp16 with loss scaling on CUDA; a CPU computes in bf16, which needs no
    # scaling.
    amp_dtype = (torch.float16 if on_cuda else torch.bfloat16) if cfg.SOLVER.AMP.ENABLED else None
    optimizer = engine.build_optimizer(model)
    return trainer.FineTuning(
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP.ENABLED and on_cuda),
        device=device,
        amp_dtype=amp_dtype,
        max_iter=cfg.SOLVER.MAX_ITER,
        header=header,
        begin_iteration=engine.iteration_starter(optimizer),
        clip=engine.gradient_clipping(optimizer),
        engine_state=engine.state,
    )


def _restore(run: trainer.FineTuning, engine: Engine, state: dict[str, Any], path: str) -> None:
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.iteration, run.last_losses = state["iteration"], state["last_losses"]
    engine.restore(state)
    logger.info("resumed from %s: iteration %d of %d", path, run.iteration, run.max_iter)


def _train(
    cfg: CfgNode,
    engine: Engine,
    run: trainer.FineTuning,
    train_sets: list[DetectionDataset],
    test_sets: list[DetectionDataset],
    checkpoints: CheckpointFolder,
    output_dir: Path,
) -> bool:
    def precise_bn() -> None:
        precise = cfg.TEST.PRECISE_BN
        if precise.ENABLED:
            with engine.aside():
                batches = engine.statistics_batches(train_sets, run.iteration)
                if recompute_bn_statistics(run.model, batches, num_iterations=precise.NUM_ITER):
                    logger.info(
                        "PreciseBN: statistics over %d batches, equal on all processes",
                        precise.NUM_ITER,
                    )

    period = cfg.TEST.EVAL_PERIOD
    metrics = (
        MetricsFile(output_dir / "metrics.json", start_iteration=run.iteration, tensorboard=True)
        if is_main_process()
        else None
    )
    try:
        with engine.training():
            return trainer.train(
                run,
                engine.training_batches(train_sets, run.iteration),
                checkpoints=checkpoints,
                metrics=metrics,
                checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
                evaluate_at=lambda iteration: period > 0 and iteration % period == 0,
                evaluation=lambda: _evaluate(cfg, engine, run, test_sets, output_dir),
                before_evaluation=precise_bn,
            )
    finally:
        if metrics is not None:
            metrics.close()


def _evaluate(
    cfg: CfgNode,
    engine: Engine,
    run: trainer.FineTuning,
    test_sets: list[DetectionDataset],
    output_dir: Path,
    *,
    coco_style: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluate on every test set; with several, metrics are nested once more, below the set's name,
    as Detectron2 does.

    A set without ground truth, which ``eval_only`` alone admits, has predictions and no metrics.
    """
    results = {}
    for dataset in test_sets:
        with engine.aside():
            results[dataset.name] = trainer.evaluate(
                run.model,
                engine.test_batches(dataset),
                detect=engine.detector(run.model),
                evaluator=make_evaluator(cfg, dataset, output_dir, coco_style=coco_style),
                description=f"evaluating {dataset.name}",
                total=-(-len(dataset.records) // get_world_size()),
            )
        for task, metrics in results[dataset.name].items():
            logger.info(
                "%s %s: %s",
                dataset.name,
                task,
                ", ".join(f"{k} {v:.2f}" for k, v in metrics.items() if not k.startswith("AP-")),
            )
    return (
        results[test_sets[0].name]
        if len(test_sets) == 1
        else {name: metrics for name, metrics in results.items() if metrics}
    )
