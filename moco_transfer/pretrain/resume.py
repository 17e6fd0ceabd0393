"""``--resume``: put a checkpoint's whole state back into a run, or say why it does not fit."""

from __future__ import annotations

import logging
from typing import Any

from ..runtime.distributed import get_world_size
from ..runtime.errors import InputError
from .trainer import CHECKPOINT_FORMAT, Pretraining

logger = logging.getLogger(__name__)


def restore(run: Pretraining, state: dict[str, Any], path: str) -> None:
    """Put a checkpoint's state into a run that was built from the same config.

    Args:
        run: Changed in place.
        state: From ``load_checkpoint``.
        path: The checkpoint's path, for messages.

    Raises:
        InputError: If the checkpoint is not one of this mechanism, architecture, data and sizes.
    """
    if state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a checkpoint of tools/pretrain.py (format {state.get('format')!r}, expected {CHECKPOINT_FORMAT!r}).")
    same = {
        "mechanism": "MECHANISM",
        "arch": "MODEL.ARCH",
        "num_images": "number of pictures in DATA.ROOT",
        "batch_size_total": "DATA.BATCH_SIZE_TOTAL",
        "pixels": "DATA.PIXEL_MEAN and PIXEL_STD",
    }
    for key, name in same.items():
        if key in state and state[key] != run.header[key]:
            raise InputError(
                f"{path} was made with {name} {state[key]}, the run to resume has {run.header[key]}. Resume with the config it was started with."
            )
    if state["iterations_per_epoch"] != run.iterations_per_epoch:
        raise InputError(
            f"{path} was made with {state['iterations_per_epoch']} iterations per epoch, this run has {run.iterations_per_epoch}: "
            f"DATA.BATCH_SIZE_TOTAL must stay as it was. Resume with the config it was started with."
        )
    expected = {name: tuple(t.shape) for name, t in run.model.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in state["state_dict"].items()}
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} does not fit this config: {len(differing)} tensors differ, the first is {name} "
            f"({got.get(name, 'absent')} in the file, {expected.get(name, 'absent')} here). Resume with the config it was started with."
        )
    run.model.load_state_dict(state["state_dict"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.iteration = state["iteration"]
    run.unreadable = set(state["unreadable"])
    logger.info("resumed from %s: iteration %d of %d", path, run.iteration, run.max_iterations)
    if state["world_size"] != get_world_size():
        logger.warning(
            "The run was saved with %d processes and goes on with %d: %slearning rate and schedule stay the same, the groups of "
            "images that share BN statistics differ from here on.",
            state["world_size"],
            get_world_size(),
            "" if run.header.get("order") else "pictures, order, ",
        )
