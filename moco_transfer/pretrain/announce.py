"""What a run says of itself before its first iteration."""

from __future__ import annotations

import logging

from ..data.views import native
from ..runtime.distributed import get_world_size
from .split_batch_norm import num_groups
from .trainer import Pretraining

logger = logging.getLogger(__name__)


def announce_run(
    run: Pretraining, *, base_lr: float, reference_batch_size: int, precision: str
) -> None:
    """Log batch, length and learning rate, as configured and as they come out.

    Args:
        run: The run.
        base_lr: Learning rate for ``reference_batch_size`` images.
        reference_batch_size: Images.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    per_rank = run.batch_size_total // get_world_size()
    parts = f" in {run.accumulate} micro-batches" if run.accumulate > 1 else ""
    length = f"{run.epochs} epochs of {run.iterations_per_epoch} iterations"
    if run.max_iterations % run.iterations_per_epoch:
        length = f"{run.max_iterations} iterations, {run.iterations_per_epoch} an epoch"
    split = f"{per_rank} per process x {get_world_size()} on {run.device}{parts}"
    logger.info("batch %d = %s, %s; %s", run.batch_size_total, split, precision, length)
    lr = run.optimizer.param_groups[0]["lr"]
    logger.info(
        "lr %g = SOLVER.BASE_LR %g x %d / %d",
        lr,
        base_lr,
        run.batch_size_total,
        reference_batch_size,
    )


def announce_groups(run: Pretraining, *, group_size: int, shuffle: bool) -> None:
    """Log how many groups of images have BN statistics of their own, or warn that queries share
    them with their keys.
    """
    per_pass = -(-run.batch_size_total // get_world_size() // run.accumulate)
    groups = num_groups(per_pass, group_size)
    if not shuffle:
        logger.warning(
            "MOCO.SHUFFLE is False: a key is encoded among the same images as its query, in each of"
            " %d groups that share BN statistics, so keys can be told by them and the pretext task"
            " leaks (Sec. 3.3 and Fig. A.1 of the paper). For an ablation; else set MOCO.SHUFFLE"
            " True.",
            groups * get_world_size(),
        )
        return
    if groups * get_world_size() > 1:
        logger.info(
            "BN statistics over %d groups of about %d images, keys shuffled among them",
            groups * get_world_size(),
            per_pass // groups,
        )
        return
    logger.warning(
        "All %d images share their BN statistics, so keys can be told by them and the pretext task"
        " leaks (Sec. 3.3 of the paper). Set MOCO.BN_GROUP_SIZE to at most %d.",
        per_pass,
        max(1, per_pass // 2),
    )


def announce_queue(run: Pretraining, *, num_images: int) -> None:
    """Log how long the queue takes to fill, and warn when it is larger than the data."""
    filling = -(-run.negatives // int(run.batch_size_total * run.model.loss_scale))
    logger.info(
        "the queue starts with random columns: for the first %d iterations, until keys fill it, the"
        " loss may rise",
        filling,
    )
    if num_images < run.negatives:
        logger.warning(
            "MOCO.QUEUE_SIZE %d is larger than the number of images, %d: a queue then holds other"
            " views of the query's own image as negatives. At most a quarter of the images, %d,"
            " is advisable.",
            run.negatives,
            num_images,
            max(1, num_images // 4),
        )


def announce_bank(run: Pretraining, *, num_images: int, negatives: int) -> None:
    """Warn when the data hold fewer images outside a batch than the config asks for as negatives.

    Args:
        run: The run.
        num_images: Images in the data.
        negatives: K as configured.
    """
    others = num_images - run.batch_size_total
    if others < negatives:
        logger.warning(
            "MOCO.QUEUE_SIZE %d is larger than the number of images outside a batch, %d of %d:"
            " the features of all of those are the negatives instead of a draw of %d, so that K is"
            " %d. Set MOCO.QUEUE_SIZE to at most that, or use more images.",
            negatives,
            others,
            num_images,
            negatives,
            others,
        )


def announce_pipeline(run: Pretraining) -> None:
    """Warn when a CPU has to do without the compiled loops of the fast pipeline."""
    if run.pipeline == "fast" and run.device.type == "cpu" and not native.available():
        logger.warning(
            "The compiled loops of DATA.PIPELINE fast are missing (no C compiler when moco-transfer"
            " was installed, or %s is set): views take about four times as long on this CPU."
            " Install a compiler and then moco-transfer again.",
            native.OFF,
        )
