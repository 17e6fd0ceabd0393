"""``--resume``: find the checkpoint to go on from, put its whole state back into a run, or say why
it does not fit.

Of the settings that a checkpoint was made with, those that its state or its numbers mean nothing
without must be the same; any other may be changed, is then applied from here on, and is named in a
warning, because the run is no longer one of a single config.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import (
    all_gather_object,
    broadcast_object,
    get_world_size,
    is_main_process,
)
from ..runtime.errors import InputError
from .trainer import CHECKPOINT_FORMAT, Pretraining

logger = logging.getLogger(__name__)

_SAME = (
    "MECHANISM",
    "MODEL.ARCH",
    "SEED",  # of the order and the crops: an epoch would be resumed in the middle of another one
    "DATA.BATCH_SIZE_TOTAL",
    "DATA.PIXEL_MEAN",
    "DATA.PIXEL_STD",
    "MOCO.DIM",
    "MOCO.MLP",
    "MOCO.QUEUE_SIZE",
    (  # the loss is the sum of two: its curve would jump, and the queue fill twice as fast
        "MOCO.SYMMETRIC"
    ),
)
# Change nothing that is computed; DATA's three change the order of shards alone, of which
# warn_of_another_order tells.
_ANY = (
    "OUTPUT_DIR",
    "DATA.LAYOUT",
    "DATA.MAX_UNREADABLE",
    "DATA.NUM_WORKERS",
    "DATA.SHUFFLE_BUFFER",
    "DATA.NUM_IMAGES",
)
_ANY += (
    "TRAIN.LOG_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD_EPOCHS",
    "TRAIN.CHECKPOINT_PERIOD_ITERS",
    "TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.TENSORBOARD",
)

_TRAINED = "the run equals none that had either throughout"
_MEASURED = "figures from before and after may not be comparable"


def read_last(checkpoints: CheckpointFolder) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and the state of the checkpoint that process 0 finds newest, or None when it
    finds none. Collective.

    Process 0 decides for all: on a file system that is slow to tell, or that is not shared, another
        one may see an older checkpoint or none,
    and processes that go on from different iterations wait for one another for ever.

    Raises:
        InputError: If it cannot be read, or is not the same on every process; on all processes
            alike.
    """
    path, problem = _tried(checkpoints.last) if is_main_process() else (None, None)
    path, problem = broadcast_object((path, problem))
    if problem is None and path is None:
        return None
    state = None
    if problem is None:
        state, problem = _tried(lambda: load_checkpoint(path))
    found = all_gather_object(
        (problem, state["iteration"] if state is not None and "iteration" in state else None)
    )
    if found[0][0] is not None:
        raise InputError(found[0][0])
    for rank, (theirs, iteration) in enumerate(found):
        shared = (
            "OUTPUT_DIR must be one folder that all processes share; put it on a file system that"
            " every machine of the run sees."
        )
        if theirs is not None:
            raise InputError(
                f"Process {rank} cannot resume from {path}, which process 0 found: {theirs}"
                f" {shared}"
            )
        if iteration != found[0][1]:
            raise InputError(
                f"{path} is after iteration {found[0][1]} on process 0 and after {iteration} on"
                f" process {rank}. {shared}"
            )
    return path, state


def _tried(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what a function returns, or the sentence with which it refuses."""
    try:
        return read(), None
    except InputError as error:
        return None, str(error)


def restore(run: Pretraining, state: dict[str, Any], path: str) -> None:
    """Put a checkpoint's state into a run.

    Args:
        run: Changed in place.
        state: From ``load_checkpoint``.
        path: The checkpoint's path, for messages.

    Raises:
        InputError: If the checkpoint is not one of this mechanism, architecture, data and sizes, or
            lies beyond the end of the run.
    """
    if state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of tools/pretrain.py (format {state.get('format')!r},"
            f" expected {CHECKPOINT_FORMAT!r})."
        )
    _check_header(run, state, path)
    changed = _check_settings(run, state, path)
    _check_shapes(run, state, path)
    if state["iteration"] > run.max_iterations:
        raise InputError(
            f"{path} is after iteration {state['iteration']}, beyond the end of this run after"
            f" {run.max_iterations}. Raise SOLVER.EPOCHS or SOLVER.MAX_ITER, or resume with the"
            " config it was started with."
        )
    run.model.load_state_dict(state["state_dict"])
    _restore_optimizer(run.optimizer, state["optimizer"])
    if (
        state["scaler"] or not run.scaler.is_enabled()
    ):  # that of a run without loss scaling is empty, and torch refuses to load it
        run.scaler.load_state_dict(state["scaler"])
    run.iteration = state["iteration"]
    run.unreadable = set(state["unreadable"])
    run.period = state.get("period", {})
    logger.info("resumed from %s: iteration %d of %d", path, run.iteration, run.max_iterations)
    for key, before, now in changed:
        logger.warning(
            "%s was %r and is %r from here on: %s.",
            key,
            before,
            now,
            _MEASURED if key.startswith("KNN.") else _TRAINED,
        )
    if state["world_size"] != get_world_size():
        logger.warning(
            "The run was saved with %d processes and goes on with %d: %slearning rate and schedule"
            " stay the same, the groups of images that share BN statistics differ from here on.",
            state["world_size"],
            get_world_size(),
            "" if run.header.get("order") else "images, order, ",
        )


def _check_header(run: Pretraining, state: dict[str, Any], path: str) -> None:
    same = {
        "mechanism": "MECHANISM",
        "arch": "MODEL.ARCH",
        "num_images": "number of images in DATA.ROOT",
        "batch_size_total": "DATA.BATCH_SIZE_TOTAL",
        "pixels": "DATA.PIXEL_MEAN and PIXEL_STD",
    }
    for key, name in same.items():
        if key in state and state[key] != run.header[key]:
            raise _differs(path, name, state[key], run.header[key])
    if state.get("classes", run.header["classes"]) != run.header["classes"]:
        theirs, mine = state["classes"], run.header["classes"]
        first = next(((a, b) for a, b in zip(theirs, mine, strict=False) if a != b), None)
        if first is None:
            raise _differs(path, "number of classes in DATA.ROOT", len(theirs), len(mine))
        raise _differs(
            path,
            f"class number {theirs.index(first[0])} in DATA.ROOT",
            repr(first[0]),
            repr(first[1]),
        )
    if state["iterations_per_epoch"] != run.iterations_per_epoch:
        raise InputError(
            f"{path} was made with {state['iterations_per_epoch']} iterations per epoch, this run"
            f" has {run.iterations_per_epoch}: DATA.BATCH_SIZE_TOTAL must stay as it was. Resume"
            " with the config it was started with."
        )


def _check_settings(
    run: Pretraining, state: dict[str, Any], path: str
) -> list[tuple[str, Any, Any]]:
    """Return (key, value in the checkpoint, value now) of the settings that differ and may.

    Raises:
        InputError: If one differs that may not.
    """
    before, now = (
        dict(_leaves(yaml.safe_load(text) or {}))
        for text in (state.get("config", ""), run.header["config"])
    )
    # A key that only one of them has came or went with a version of the program.
    changed = [
        (key, before[key], now[key])
        for key in now
        if key in before and before[key] != now[key] and key not in _ANY
    ]
    if run.header["mechanism"] == "supervised":
        changed = [change for change in changed if not change[0].startswith("MOCO.")]
    for key, theirs, mine in changed:
        if key in _SAME:
            raise _differs(path, key, theirs, mine)
    return changed


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_shapes(run: Pretraining, state: dict[str, Any], path: str) -> None:
    expected = {name: tuple(t.shape) for name, t in run.model.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in state["state_dict"].items()}
    differing = sorted(
        name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)
    )
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} does not fit this config: {len(differing)} tensors differ, the first is {name}"
            f" ({got.get(name, 'absent')} in the file, {expected.get(name, 'absent')} here). Resume"
            " with the config it was started with."
        )


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load what the optimiser has gathered; its settings stay those of the config."""
    groups = [
        mine | {"params": theirs["params"]}
        for mine, theirs in zip(
            optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True
        )
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _differs(path: str, name: str, theirs: Any, mine: Any) -> InputError:
    return InputError(
        f"{path} was made with {name} {theirs}, the run to resume has {mine}. Resume with the"
        " config it was started with."
    )
