"""What a run decides and refuses before its first iteration, alike on both engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..config import reference_batch_and_lr
from ..runtime.distributed import broadcast_object, get_world_size, start_processes
from ..runtime.errors import InputError
from .handover import DETECTOR, InitialWeights, coverage_gap
from .lint import Finding, lint, settle

logger = logging.getLogger(__name__)


def choose_device(cfg: CfgNode) -> torch.device:
    """Join the processes, if there are several, and return this one's device.

    Raises:
        InputError: If MODEL.DEVICE is neither 'cuda' nor 'cpu'.
    """
    if cfg.MODEL.DEVICE not in ("cuda", "cpu"):
        raise InputError(f"MODEL.DEVICE must be 'cuda' or 'cpu', got {cfg.MODEL.DEVICE!r}.")
    # Configs say cuda, Detectron2's default; a laptop runs them unchanged on its CPU.
    return start_processes("cpu" if cfg.MODEL.DEVICE == "cpu" else "auto")


def fix_seed(cfg: CfgNode) -> CfgNode:
    """Replace a negative seed, which asks for a different one in each run, by the one that is used, so that it is recorded."""
    if cfg.SEED >= 0:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = broadcast_object(time.time_ns() % 2**31)
    cfg.freeze()
    logger.info("SEED %d (the config asks for a different one in each run)", cfg.SEED)
    return cfg


def refuse_no_detector(initial: InitialWeights) -> None:
    """Refuse to evaluate what is no detector.

    Raises:
        InputError: If the weights are none, or a backbone's.
    """
    if initial.content is None:
        raise InputError("--eval-only needs a detector: give MODEL.WEIGHTS a checkpoint_*.pth, or --resume to take the one in OUTPUT_DIR.")
    if initial.kind != DETECTOR:
        raise InputError(
            f"MODEL.WEIGHTS {initial.path} is a backbone without a detector. --eval-only needs a checkpoint that tools/train_net.py wrote."
        )


def settle_config(
    written: CfgNode, model: torch.nn.Module, initial: InitialWeights, *, config_file: str, force: bool, allow_partial: bool, eval_only: bool
) -> list[Finding]:
    """Refuse the run for all that its config and weights have against each other, at once, or return what was overruled.

    Raises:
        InputError: With every finding of the linter, and the gap in the coverage, that was not overruled.
    """
    reference = reference_batch_and_lr(config_file) if config_file else None
    findings = lint(written, initial, world_size=get_world_size(), reference=reference, eval_only=eval_only)
    gap = None if allow_partial else coverage_gap(model, initial, f"resnet{written.MODEL.RESNETS.DEPTH}")
    if gap is not None:
        findings.append(Finding("coverage", gap, "--allow-partial"))
    return settle(findings, initial, force=force)


def announce(schedule: str | None, class_names: Sequence[str], *, from_data: bool, surprises: Sequence[str], overruled: Sequence[Finding]) -> None:
    """Log what the run is, what may surprise, and what was overruled."""
    some = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
    said = [] if schedule is None else [schedule]
    said.append(f"{len(class_names)} classes{', from the data' if from_data else ''}: {some}")
    for sentence in [*said, *(f"note: {sentence}" for sentence in surprises)]:
        logger.info("%s", sentence)
    for finding in overruled:
        logger.warning("--force overrules %s: %s", finding.name, finding.sentence)


def check_resumed(state: dict[str, Any], path: str, header: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another kind, config or engine.

    Args:
        state: The checkpoint.
        path: Its path.
        header: What the run's own checkpoints will say of themselves.

    Raises:
        InputError: Naming what differs.
    """
    if state.get("format") != header["format"]:
        raise InputError(f"{path} is not a checkpoint of tools/train_net.py (format {state.get('format')!r}, expected {header['format']!r}).")
    engine = state.get("engine", "torchvision")  # checkpoints of 0.1 do not name it: there was one
    if engine != header["engine"]:
        raise InputError(f"{path} was made by the engine {engine!r}, this run's is {header['engine']!r}. Resume with --engine {engine}.")
    if state["config_hash"] != header["config_hash"]:
        raise InputError(
            f"{path} was made with another config (hash {state['config_hash']}, now {header['config_hash']}). Resume with the config.yaml beside it."
        )
