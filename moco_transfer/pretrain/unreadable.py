"""The images of a run that cannot be read: each process finds its own, the run counts them all.

Distributed:
    ``note_unreadable`` is local, ``share_unreadable`` collective.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..runtime.distributed import all_gather_object, get_world_size, is_main_process
from ..runtime.errors import InputError

if TYPE_CHECKING:  # trainer imports this module
    from .trainer import Pretraining

logger = logging.getLogger(__name__)


def note_unreadable(run: Pretraining, batch: dict[str, Any]) -> None:
    """Note, and log, what of a batch could not be read.

    Args:
        run: Its ``unreadable`` and ``unreadable_unshared`` grow.
        batch: As ``data.view_batch.ViewBatch.finished`` returns it.

    Raises:
        InputError: If no readable image was found for a place in the batch, or, in one process,
            more are unreadable than allowed.
    """
    for path in dict.fromkeys(batch["unreadable"]):
        if path not in run.unreadable:
            _add(run, path)
            run.unreadable_unshared.append(path)
    if batch["given_up"]:
        raise too_many(run)
    if get_world_size() == 1:
        share_unreadable(run)


def share_unreadable(run: Pretraining) -> None:
    """Let every process know what all have found, and process 0 log what the others found.
    Collective.

    Raises:
        InputError: If more images are unreadable than allowed; on all processes alike.
    """
    for found in all_gather_object(run.unreadable_unshared):
        for path in found:
            if path not in run.unreadable:
                _add(run, path, log=is_main_process())
    run.unreadable_unshared = []
    if len(run.unreadable) > run.max_unreadable * run.num_images:
        raise too_many(run)


def too_many(run: Pretraining) -> InputError:
    """Return the refusal to go on with so many unreadable images."""
    return InputError(
        f"{len(run.unreadable)} of {run.num_images} images cannot be read, more than"
        f" DATA.MAX_UNREADABLE {run.max_unreadable:g} allows; the first is {min(run.unreadable)}."
        " Repair or remove them, or raise DATA.MAX_UNREADABLE."
    )


def _add(run: Pretraining, path: str, *, log: bool = True) -> None:
    run.unreadable.add(path)
    if log:
        logger.warning("skipped unreadable image %s (%d so far)", path, len(run.unreadable))
