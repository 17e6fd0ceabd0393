"""``--resume``: find the checkpoint to continue from, and compare it with the run's plan.

Settings without which the checkpoint's state or numbers mean nothing must be the same. Any other
may change: it applies from here on and is named in a warning, because the run is no longer one of a
single config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import nn

from ..config import flatten_config
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import (
    all_gather_object,
    broadcast_object,
    get_world_size,
    is_main_process,
)
from ..runtime.errors import InputError

CHECKPOINT_FORMAT = "moco_transfer.pretrain/1"

# SEED: of the order and the crops; an epoch would be resumed in the middle of another one.
# MOCO.SYMMETRIC: the loss is a sum of two; its curve would jump.
_SAME = """MECHANISM MODEL.ARCH SEED DATA.BATCH_SIZE_TOTAL DATA.PIXEL_MEAN DATA.PIXEL_STD
    MOCO.DIM MOCO.MLP MOCO.QUEUE_SIZE MOCO.SYMMETRIC""".split()
# These change nothing that is computed. The order of shards has a warning of its own.
_ANY = """OUTPUT_DIR DATA.LAYOUT DATA.MAX_UNREADABLE DATA.NUM_WORKERS DATA.SHUFFLE_BUFFER
    DATA.NUM_IMAGES TRAIN.LOG_PERIOD TRAIN.CHECKPOINT_PERIOD_EPOCHS TRAIN.CHECKPOINT_PERIOD_ITERS
    TRAIN.KEEP_CHECKPOINTS TRAIN.TENSORBOARD""".split()

T = TypeVar("T")


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

    Process 0 decides for all: on a slow or unshared file system another may see an older one, and
    processes that continue from different iterations wait for one another forever.

    Raises:
        InputError: If it cannot be read, or differs between processes; on all processes.
    """
    path, problem = _tried(checkpoints.last) if is_main_process() else (None, None)
    path, problem = broadcast_object((path, problem))
    if problem is not None:
        raise InputError(problem)
    if path is None:
        return None
    state, problem = _tried(lambda: load_checkpoint(path))
    if state is not None and state.get("format") != CHECKPOINT_FORMAT:
        problem = f"{path} is not a checkpoint of moco-transfer pretrain."
    found = all_gather_object((problem, state["iteration"] if state and not problem else None))
    if found[0][0] is not None:
        raise InputError(found[0][0])
    for rank, (theirs, iteration) in enumerate(found):
        if theirs is not None or iteration != found[0][1]:
            raise InputError(
                f"Process {rank} cannot resume from {path} as process 0 does, after iteration"
                f" {found[0][1]}: {theirs or f'its copy is after iteration {iteration}.'}"
                " OUTPUT_DIR must be one folder that all processes share; put it on a file system"
                " that every machine of the run sees."
            )
    assert state is not None
    return ResumePoint(path, state)


def _tried(read: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what a function returns, or the message of its InputError."""
    try:
        return read(), None
    except InputError as error:
        return None, str(error)


def check_resume(
    point: ResumePoint, header: dict[str, Any], iterations_per_epoch: int, max_iterations: int
) -> Iterator[str]:
    """Yield each reason why a run with this ``PretrainPlan.header`` cannot continue."""
    state, path = point.state, point.path

    def differs(name: str, theirs: Any, mine: Any) -> str:
        return (
            f"{path} was made with {name} {theirs}, the run to resume has {mine}. Resume with the"
            " config it was started with."
        )

    yield from (differs(*change) for change in _changed(point, header) if change[0] in _SAME)
    if state["num_images"] != header["num_images"]:
        yield differs("number of images in DATA.ROOT", state["num_images"], header["num_images"])
    elif state["iterations_per_epoch"] != iterations_per_epoch:
        yield differs("iterations per epoch", state["iterations_per_epoch"], iterations_per_epoch)
    theirs, mine = state["classes"], header["classes"]
    if len(theirs) != len(mine):
        yield differs("number of classes in DATA.ROOT", len(theirs), len(mine))
    elif theirs != mine:
        number = next(i for i in range(len(mine)) if theirs[i] != mine[i])
        name = f"class number {number} in DATA.ROOT"
        yield differs(name, repr(theirs[number]), repr(mine[number]))
    if point.iteration > max_iterations:
        yield (
            f"{path} is after iteration {point.iteration}, beyond the end of this run after"
            f" {max_iterations}. Raise SOLVER.EPOCHS or SOLVER.MAX_ITER."
        )


def changes(point: ResumePoint, header: dict[str, Any]) -> Iterator[str]:
    """Yield what differs, and may, between a checkpoint and the run that continues from it."""
    for key, before, now in _changed(point, header):
        effect = "the run equals none that had either throughout"
        if key.startswith("KNN."):
            effect = "figures from before and after may not be comparable"
        yield f"{key} was {before!r} and is {now!r} from here on: {effect}."
    if point.state["world_size"] != get_world_size():
        stay = "" if header["order"] else "images, order, "
        yield (
            f"The run was saved with {point.state['world_size']} processes and continues with"
            f" {get_world_size()}: {stay}learning rate and schedule stay the same, the groups of"
            " images that share BN statistics differ from here on."
        )
    saved, order = point.state["order"], header["order"]
    if saved != order:
        yield (
            f"The order of images in shards differs from here on ({saved} -> {order}): in the epoch"
            " that is resumed some images may come again and others not at all, and the run does"
            " not equal an uninterrupted one."
        )


def restore(
    point: ResumePoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Load a checkpoint's state; the optimiser's settings stay those of the config."""
    state = point.state
    model.load_state_dict(state["state_dict"])
    # One group, whose parameters are numbered equally.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    # torch refuses to load the empty state of a run without loss scaling.
    if state["scaler"] or not scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])


def _changed(point: ResumePoint, header: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, value in the checkpoint, value now) of the settings that differ and count."""
    before, now = (
        flatten_config(yaml.safe_load(text)) for text in (point.state["config"], header["config"])
    )
    ignored = ("MOCO.",) if header["mechanism"] == "supervised" else ()
    return [
        (key, before[key], now[key])
        for key in now  # a key that only one has came or went with a version of the program
        if before.get(key, now[key]) != now[key] and key not in _ANY and not key.startswith(ignored)
    ]
