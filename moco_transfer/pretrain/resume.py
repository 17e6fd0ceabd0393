"""``--resume``: find the checkpoint to continue from, and compare it with the run's plan.

Settings without which the checkpoint's state or numbers mean nothing must be the same. Any other
may change; a warning names it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import flatten_config
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import (
    all_gather_object,
    broadcast_object,
    get_world_size,
    is_main_process,
)
from ..runtime.errors import Faults, InputError
from ..runtime.text import carried_config

CHECKPOINT_FORMAT = "moco_transfer.pretrain/1"

# SEED: of the order and the crops; an epoch would be resumed in the middle of another one.
# MOCO.SYMMETRIC: the loss is a sum of two; its curve would jump.
_SAME = """MECHANISM MODEL.ARCH SEED DATA.BATCH_SIZE_TOTAL DATA.PIXEL_MEAN DATA.PIXEL_STD
    MOCO.DIM MOCO.MLP MOCO.QUEUE_SIZE MOCO.SYMMETRIC""".split()
# These change nothing that is computed. The order of shards has a warning of its own.
_ANY = """OUTPUT_DIR DATA.LAYOUT DATA.MAX_UNREADABLE DATA.NUM_WORKERS DATA.SHUFFLE_BUFFER
    DATA.NUM_IMAGES TRAIN.LOG_PERIOD TRAIN.CHECKPOINT_PERIOD_EPOCHS TRAIN.CHECKPOINT_PERIOD_ITERS
    TRAIN.KEEP_CHECKPOINTS LOGGERS""".split()


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to continue from; ``state`` as ``run.Pretraining.state`` made it."""

    path: Path
    state: dict[str, Any] = field(repr=False)

    @property
    def iteration(self) -> int:
        """Iterations finished."""
        return self.state["iteration"]


def read_last(checkpoints: CheckpointFolder) -> ResumePoint | None:
    """Return the checkpoint that process 0 finds newest, None without one. Collective.

    Raises:
        InputError: If it cannot be read or, on an unshared file system, differs between processes,
            which would wait for one another forever; on all processes.
    """
    faults = Faults()
    found = faults.check(checkpoints.newest) if is_main_process() else None
    path, state = broadcast_object(found and found[0]), found and found[1]
    if path is not None and not is_main_process():
        state = faults.check(lambda: load_checkpoint(path))
    if state is not None and state.get("format") != CHECKPOINT_FORMAT:
        faults.add(f"{path} is not a checkpoint of moco-transfer pretrain.")
    problem = str(faults.errors[0]) if faults.errors else None
    facts = all_gather_object((problem, None if problem or not state else state["iteration"]))
    first_problem, expected = facts[0]
    if first_problem is not None:
        raise InputError(first_problem)
    for rank, (theirs, iteration) in enumerate(facts):
        if theirs is not None or iteration != expected:
            raise InputError(
                f"Process {rank} cannot resume from {path} as process 0 does, after iteration"
                f" {expected}: {theirs or f'its copy is after iteration {iteration}.'} Put"
                " OUTPUT_DIR on a file system that every machine of the run sees."
            )
    return ResumePoint(path, state) if path is not None and state is not None else None


def check_resume(point: ResumePoint, header: dict[str, Any], max_iterations: int) -> Iterator[str]:
    """Yield each reason why a run with this ``PretrainPlan.header`` cannot continue."""
    state, path = point.state, point.path
    differing = [change for change in _changed(point, header) if change[0] in _SAME]
    if (before := state["num_images"]) != (now := header["num_images"]):
        differing.append(("number of images in DATA.ROOT", before, now))
    classes = itertools.zip_longest(state["classes"], header["classes"])
    for number, (before, now) in enumerate(classes):
        if before != now:
            differing.append((f"class number {number} in DATA.ROOT", repr(before), repr(now)))
            break
    for name, before, now in differing:
        yield (
            f"{path} was made with {name} {before}, the run to resume has {now}. Resume with the"
            " config it was started with."
        )
    if point.iteration > max_iterations:
        yield (
            f"{path} is after iteration {point.iteration}, beyond the end of this run after"
            f" {max_iterations}. Raise SOLVER.EPOCHS or SOLVER.MAX_ITER."
        )


def changes(point: ResumePoint, header: dict[str, Any]) -> Iterator[str]:
    """Yield what differs, and may, between a checkpoint and the run that continues from it."""
    differing = _changed(point, header)
    processes = "number of processes", point.state["world_size"], get_world_size()
    order = "order of images in shards", point.state["order"], header["order"]
    differing += [fact for fact in (processes, order) if fact[1] != fact[2]]
    effects = {
        "KNN": "figures from before and after may not be comparable",
        processes[0]: "other groups of images share BN statistics, lr and schedule stay the same",
        order[0]: "in the resumed epoch some images may come again and others not at all",
    }
    for key, before, now in differing:
        effect = effects.get(key.split(".")[0], "the run equals none that had either throughout")
        yield f"{key} was {before!r} and is {now!r} from here on: {effect}."


def restore(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Load a checkpoint's state; the optimiser's settings stay those of the config."""
    model.load_state_dict(state["state_dict"])
    # One group, whose parameters are numbered equally.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    # torch refuses to load the empty state of a run without loss scaling.
    if state["scaler"] or not scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])


def _changed(point: ResumePoint, header: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    texts = point.state["config"], header["config"]
    before, now = (flatten_config(carried_config(text, point.path)) for text in texts)
    ignored = ("MOCO.",) if header["mechanism"] == "supervised" else ()
    return [
        (key, before[key], now[key])
        for key in now  # a key that only one has came or went with a version of the program
        if before.get(key, now[key]) != now[key] and key not in _ANY and not key.startswith(ignored)
    ]
