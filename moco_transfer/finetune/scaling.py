"""Schedules know the number of GPUs: batch, learning rate, steps and length move together, as Detectron2 scales them."""

from __future__ import annotations

import logging

from fvcore.common.config import CfgNode

from ..runtime.errors import InputError

logger = logging.getLogger(__name__)


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Return the config for this number of processes.

    With SOLVER.REFERENCE_WORLD_SIZE 0 the schedule is taken as it is, and IMS_PER_BATCH is divided among the processes.

    Args:
        cfg: A merged detection config; left as it is.
        world_size: Number of processes.

    Returns:
        A frozen config whose REFERENCE_WORLD_SIZE is ``world_size`` where it was set.

    Raises:
        InputError: If the batch does not divide among the processes.

    Source:
        Same numbers as detectron2@02b5c4e engine/defaults.py DefaultTrainer.auto_scale_workers.
    """
    old = cfg.SOLVER.REFERENCE_WORLD_SIZE
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
        logger.info(
            "%d -> %d processes: batch %d -> %d, lr %g -> %g, iterations %d -> %d, steps %s -> %s, warm-up %d -> %d",
            old, world_size, before.IMS_PER_BATCH, solver.IMS_PER_BATCH, before.BASE_LR, solver.BASE_LR, before.MAX_ITER, solver.MAX_ITER,
            tuple(before.STEPS), solver.STEPS, before.WARMUP_ITERS, solver.WARMUP_ITERS,
        )  # fmt: skip
    if cfg.SOLVER.IMS_PER_BATCH % world_size or world_size > cfg.SOLVER.IMS_PER_BATCH:
        batch = cfg.SOLVER.IMS_PER_BATCH
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} does not divide among {world_size} processes. "
            f"Use a multiple of {world_size}, or set SOLVER.REFERENCE_WORLD_SIZE to the number of GPUs the schedule was written for."
        )
    return cfg
