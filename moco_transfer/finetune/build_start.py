"""What a run decides and refuses before its first iteration, alike on both engines."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..config import reference_batch_and_lr
from ..runtime.checkpoint import LAST
from ..runtime.distributed import broadcast_object, get_world_size, is_main_process, start_processes
from ..runtime.errors import InputError
from .handover import DETECTOR, InitialWeights, coverage_gap
from .lint import Finding, lint, settle
from .results import config_hash
from .trainer import CHECKPOINT_FORMAT

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


def fix_seed(cfg: CfgNode, *, begun_with: int | None = None) -> CfgNode:
    """Replace a negative seed, which asks for a different one in each run, by the one that is used,
    so that it is recorded.

    Args:
        cfg: A merged config.
        begun_with: Seed of the run that goes on; None for a new one.
    """
    if cfg.SEED >= 0:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = broadcast_object(time.time_ns() % 2**31) if begun_with is None else begun_with
    cfg.freeze()
    logger.info("SEED %d (the config asks for a different one in each run)", cfg.SEED)
    return cfg


def refuse_no_detector(initial: InitialWeights) -> None:
    """Refuse to evaluate what is no detector.

    Raises:
        InputError: If the weights are none, or a backbone's.
    """
    if initial.content is None:
        raise InputError(
            "--eval-only needs a detector: give MODEL.WEIGHTS a checkpoint_*.pth, or --resume to"
            " take the one in OUTPUT_DIR."
        )
    if initial.kind != DETECTOR:
        raise InputError(
            f"MODEL.WEIGHTS {initial.path} is a backbone without a detector. --eval-only needs a"
            " checkpoint that tools/train_net.py wrote."
        )


def settle_config(
    written: CfgNode,
    model: torch.nn.Module,
    initial: InitialWeights,
    *,
    config_file: str,
    force: bool,
    allow_partial: bool,
    eval_only: bool,
) -> list[Finding]:
    """Refuse the run for all that its config and weights have against each other, at once, or
    return what was overruled.

    Raises:
        InputError: With every finding of the linter, and the gap in the coverage, that was not
            overruled.
    """
    reference = reference_batch_and_lr(config_file) if config_file else None
    findings = lint(
        written, initial, world_size=get_world_size(), reference=reference, eval_only=eval_only
    )
    gap = (
        None
        if allow_partial
        else coverage_gap(model, initial, f"resnet{written.MODEL.RESNETS.DEPTH}")
    )
    if gap is not None:
        findings.append(Finding("coverage", gap, "--allow-partial"))
    return settle(findings, initial, force=force)


def announce(
    schedule: str | None,
    class_names: Sequence[str],
    *,
    from_data: bool,
    surprises: Sequence[str],
    overruled: Sequence[Finding],
) -> None:
    """Log what the run is, what may surprise, and what was overruled."""
    some = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
    said = [] if schedule is None else [schedule]
    said.append(f"{len(class_names)} classes{', from the data' if from_data else ''}: {some}")
    for sentence in [*said, *(f"note: {sentence}" for sentence in surprises)]:
        logger.info("%s", sentence)
    for finding in overruled:
        logger.warning("--force overrules %s: %s", finding.name, finding.sentence)


def run_header(
    cfg: CfgNode,
    *,
    engine: str,
    task: str,
    class_names: Sequence[str],
    init: str,
    weights: dict[str, Any],
    label_subset_sha256: str | None,
    datasets: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Return what every checkpoint of a run says of itself: plain numbers and strings, all that
    decides what the run is.

    Args:
        cfg: The config of the run.
        engine: Its name.
        task: Of the table.
        class_names: In the order of the class indices.
        init: Row of the table.
        weights: What results.json says of MODEL.WEIGHTS.
        label_subset_sha256: Of the file of ``--label-subset``, None for all images.
        datasets: Digests of the annotations by name, below ``train`` and ``test``.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "engine": engine,
        "task": task,
        "class_names": list(class_names),
        "init": init,
        "weights": weights,
        "weights_sha256": weights["sha256"],
        "label_subset_sha256": label_subset_sha256,
        "datasets": datasets,
        "world_size": get_world_size(),
        "seed": cfg.SEED,
        "resume_notes": [],
        "config_hash": config_hash(cfg),
        "config": cfg.dump(),
    }


def check_resumed(
    state: dict[str, Any], path: str, header: dict[str, Any], *, eval_only: bool = False
) -> list[str]:
    """Refuse to go on from a checkpoint of another kind, config or engine, or of a run from other
    weights, images or seed.

    Args:
        state: The checkpoint.
        path: Its path.
        header: What the run's own checkpoints will say of themselves.
        eval_only: The checkpoint is evaluated; what it would be trained on does not matter.

    Returns:
        What differs and does not forbid to go on, a sentence each, those of earlier resumptions
        first.

    Raises:
        InputError: Naming what differs.
    """
    if state.get("format") != header["format"]:
        raise InputError(
            f"{path} is not a checkpoint of tools/train_net.py (format {state.get('format')!r},"
            f" expected {header['format']!r})."
        )
    engine = state.get("engine", "torchvision")  # checkpoints of 0.1 do not name it: there was one
    if engine != header["engine"]:
        raise InputError(
            f"{path} was made by the engine {engine!r}, this run's is {header['engine']!r}. Resume"
            f" with --engine {engine}."
        )
    if state["config_hash"] != header["config_hash"]:
        raise InputError(
            f"{path} was made with another config (hash {state['config_hash']}, now"
            f" {header['config_hash']}). Resume with the config.yaml beside it."
        )
    notes = list(state.get("resume_notes", []))
    if eval_only:
        return notes
    if "weights_sha256" not in state:
        notes.append(
            f"resumed from {path}, which does not say which weights, images, seed and number of"
            " processes the run began with (an earlier version wrote it): those of the resumption"
            " are recorded."
        )
        return notes
    _refuse_other_start(state, path, header)
    if state["world_size"] != header["world_size"]:
        notes.append(
            f"resumed after iteration {state['iteration']} on a world size of"
            f" {header['world_size']}, before it {state['world_size']}: the iterations see other"
            " images and random numbers than those of a run on one number of processes."
        )
    return notes


def _refuse_other_start(state: dict[str, Any], path: str, header: dict[str, Any]) -> None:
    """Refuse to continue a run with other weights, labels, data or seed than it began with: it
    would be recorded as what it is not.
    """
    again = "or choose another OUTPUT_DIR to train again"
    if state["weights_sha256"] != header["weights_sha256"]:
        then, now = (
            (
                f"{h['weights']['path']!r} with sha256 {h['weights_sha256']}"
                if h["weights_sha256"]
                else "none"
            )
            for h in (state, header)
        )
        raise InputError(
            f"{path} is of a run that began with other weights ({then}), MODEL.WEIGHTS is now"
            f" {now}. Give it those, {again}."
        )
    if state["label_subset_sha256"] != header["label_subset_sha256"]:
        then, now = (
            (
                f"the subset with sha256 {h['label_subset_sha256']}"
                if h["label_subset_sha256"]
                else "all images"
            )
            for h in (state, header)
        )
        raise InputError(
            f"{path} is of a run on other labels ({then}), --label-subset now says {now}. Give it"
            f" the same, {again}."
        )
    for role, digests in header["datasets"].items():
        changed = [
            name for name, digest in digests.items() if state["datasets"][role].get(name) != digest
        ]
        if changed:
            raise InputError(
                f"{path} is of a run on other data: the annotations of {changed[0]!r} in"
                f" DATASETS.{role.upper()} have changed since it began. Put them back, {again}."
            )
    if state["seed"] != header["seed"]:
        raise InputError(
            f"{path} is of a run with SEED {state['seed']}, now it is {header['seed']}. Resume with"
            f" SEED {state['seed']}, {again}."
        )


def evaluation_folder(output_dir: str | Path, test_names: Sequence[str], config_text: str) -> Path:
    """Return where an evaluation may write without replacing anything that was saved. Collective.

    Args:
        output_dir: The folder that was asked for; it is taken where it holds no run and no other
            evaluation.
        test_names: Data sets that are evaluated on; a folder in ``output_dir`` is named after them.
        config_text: What will be written as config.yaml.
    """
    output_dir = Path(output_dir)
    inside = "eval_" + re.sub(r"[^\w.+-]", "_", "+".join(test_names))
    names = itertools.chain([inside], (f"{inside}_{number}" for number in itertools.count(2)))
    candidates = itertools.chain([output_dir], (output_dir / name for name in names))
    # Decided on one process: another may come when the first has begun to write.
    return broadcast_object(
        next(f for f in candidates if _is_free(f, config_text)) if is_main_process() else None
    )


def _is_free(folder: Path, config_text: str) -> bool:
    if any((folder / name).exists() for name in (LAST, "metrics.json", "results.json")) or any(
        folder.glob("predictions_*.json")
    ):
        return False
    config = folder / "config.yaml"
    return not config.exists() or config.read_text(encoding="utf-8") == config_text
