"""Schedules know the number of GPUs: batch, learning rate, steps and length move together, as
Detectron2 scales them.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode

from ..runtime.errors import InputError


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Return the config for this number of processes: as many images per process as the schedule
    was written with.

    With SOLVER.REFERENCE_WORLD_SIZE 0 the schedule is taken as it is, and IMS_PER_BATCH is divided
    among the processes.

    Args:
        cfg: A merged detection config; left as it is.
        world_size: Number of processes.

    Returns:
        A frozen config whose REFERENCE_WORLD_SIZE is ``world_size`` where it was set.

    Raises:
        InputError: If the batch does not divide among the processes, those of the reference or
            those of this run.

    Source:
        Same numbers as detectron2@02b5c4e engine/defaults.py DefaultTrainer.auto_scale_workers.
    """
    old = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if old < 0:
        raise InputError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {old}, expected a number of processes, or 0 to take"
            " the schedule as it is."
        )
    if old and cfg.SOLVER.IMS_PER_BATCH % old:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is the batch of"
            f" SOLVER.REFERENCE_WORLD_SIZE {old} processes together and does not divide among them;"
            f" this run has {world_size} and scales batch, learning rate and length by itself."
            " Leave the batch as the config has it, or set SOLVER.REFERENCE_WORLD_SIZE 0 to take"
            " your numbers as they are."
        )
    if old and old != world_size:
        before = cfg.SOLVER
        cfg = cfg.clone()
        cfg.defrost()
        scale = world_size / old
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = round(before.IMS_PER_BATCH * scale)
        solver.BASE_LR = before.BASE_LR * scale
        solver.MAX_ITER = round(before.MAX_ITER / scale)
        solver.WARMUP_ITERS = round(before.WARMUP_ITERS / scale)
        solver.STEPS = tuple(round(step / scale) for step in before.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.CHECKPOINT_PERIOD = round(before.CHECKPOINT_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = world_size
        cfg.freeze()
    if cfg.SOLVER.IMS_PER_BATCH % world_size or world_size > cfg.SOLVER.IMS_PER_BATCH:
        batch = cfg.SOLVER.IMS_PER_BATCH
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} does not divide among {world_size} processes. Use a"
            f" multiple of {world_size}, or set SOLVER.REFERENCE_WORLD_SIZE to the number of GPUs"
            " the schedule was written for."
        )
    return cfg


def schedule_sentence(written: CfgNode, scaled: CfgNode, world_size: int) -> str:
    """Return the schedule of this run, and beside each number the one it was scaled from.

    Args:
        written: The config as the user wrote it.
        scaled: What :func:`scale_to_world_size` made of it.
        world_size: Number of processes.
    """
    old, new = written.SOLVER, scaled.SOLVER
    numbers = {
        "batch": (old.IMS_PER_BATCH, new.IMS_PER_BATCH),
        "lr": (f"{old.BASE_LR:g}", f"{new.BASE_LR:g}"),
        "iterations": (old.MAX_ITER, new.MAX_ITER),
        "steps": (tuple(old.STEPS), tuple(new.STEPS)),
        "warm-up": (old.WARMUP_ITERS, new.WARMUP_ITERS),
        "checkpoint every": (old.CHECKPOINT_PERIOD, new.CHECKPOINT_PERIOD),
        "evaluation every": (written.TEST.EVAL_PERIOD, scaled.TEST.EVAL_PERIOD),
    }
    parts = [
        f"{name} {before} -> {after}" if before != after else f"{name} {after}"
        for name, (before, after) in numbers.items()
        if after
    ]
    reference = old.REFERENCE_WORLD_SIZE
    processes = (
        f"{world_size} process{'' if world_size == 1 else 'es'} with"
        f" {new.IMS_PER_BATCH // world_size} images each"
    )
    if reference and reference != world_size:
        return f"schedule scaled from {reference} processes to {processes}: {', '.join(parts)}"
    why = "as written for so many" if reference else "as written, for any number of processes"
    return f"schedule for {processes}, {why}: {', '.join(parts)}"
