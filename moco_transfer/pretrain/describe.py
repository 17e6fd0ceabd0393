"""A pre-training plan in words: what ``--dry-run`` prints and a run logs before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.views import native
from ..data.views.order import ShardBatches
from ..runtime.distributed import get_world_size
from .plan import PretrainPlan
from .resume import changes
from .shuffle import num_groups

_UNEVEN = 0.01  # share of an epoch's images seen twice beyond which it is worth a warning


def describe(plan: PretrainPlan) -> list[str]:
    """Return what the run will do, one line a subject."""
    per_epoch, end = plan.iterations_per_epoch, plan.max_iterations
    length = f"{plan.epochs} epochs of {per_epoch} iterations"
    if end % per_epoch:
        length = f"{end} iterations, {per_epoch} an epoch"
    batch, world_size, views = plan.batch_size_total, get_world_size(), plan.view_maker
    parts = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    lr = f"lr {plan.lr_at.lr:g} = SOLVER.BASE_LR {plan.base_lr:g} x {batch}"
    weights = plan.init.description if plan.init is not None else "random"
    if plan.resume is not None:
        weights = f"resumed from {plan.resume.path}: iteration {plan.resume.iteration} of {end}"
    norm = "BN over the images of a process"
    if plan.mechanism in ("moco", "end_to_end"):
        images, groups = _groups(plan)
        norm = f"BN statistics over {groups} groups of about {images * world_size // groups} images"
        norm += f", keys {'shuffled among them' if plan.shuffle else 'not shuffled'}"
    files = f"config.yaml, log.txt, metrics.json{', tensorboard/' if plan.tensorboard else ''},"
    files += f" checkpoint_*.pth every {' and '.join(map(str, plan.checkpoint_periods))} iterations"
    lines = {
        "data": plan.source.describe(),
        "views": f"{views.num_views} view(s) of {views.size} px, {views.recipe}, {views.pipeline}"
        " pipeline",
        "model": f"{plan.mechanism} {plan.arch}, {plan.num_negatives} negatives",
        "weights": weights,
        "batch": f"{batch} = {batch // world_size} per process x {world_size} on"
        f" {plan.device}{parts}",
        "schedule": f"{length}; {lr} / {plan.reference_batch_size}, {plan.lr_at.describe()}",
        "precision": plan.precision.describe(),
        "norm": norm,
        "output": f"{plan.output_dir}: {files}, {plan.keep_checkpoints or 'all'} kept",
    }
    if isinstance(plan.batches, ShardBatches):
        lines["order"] = plan.batches.describe()
    if plan.mechanism == "moco":
        filling = -(-plan.queue_size // (batch * (2 if plan.symmetric else 1)))
        lines["queue"] = f"filled by keys after {filling} iterations; until then the loss may rise"
    if plan.knn is not None:
        lines["kNN"] = plan.knn.describe()
    return [f"{subject}: {text}" for subject, text in lines.items()]


def warnings(plan: PretrainPlan) -> list[str]:
    """Return what is legal but seldom wanted."""
    found = [*_contrast_warnings(plan), *_machine_warnings(plan)]
    return found if plan.resume is None else [*found, *changes(plan.resume, plan.header)]


def _groups(plan: PretrainPlan) -> tuple[int, int]:
    """Return the images of a forward pass on one process, and the BN groups of all processes."""
    images = plan.batch_size_total // get_world_size() // plan.accumulate
    return images, num_groups(images, plan.bn_group_size) * get_world_size()


def _contrast_warnings(plan: PretrainPlan) -> Iterator[str]:
    images, others = len(plan.source), len(plan.source) - plan.batch_size_total
    if plan.mechanism in ("moco", "end_to_end"):
        per_pass, groups = _groups(plan)
        if not plan.shuffle:
            yield (
                "MOCO.SHUFFLE is False: a key is encoded among the same images as its query, in"
                f" each of {groups} groups that share BN statistics, so the pretext task leaks"
                " (Sec. 3.3 and Fig. A.1 of the paper). Set it to True, except for an ablation."
            )
        elif groups == 1:
            yield (
                f"All {per_pass} images share their BN statistics, so the pretext task leaks (Sec."
                f" 3.3 of the paper). Set MOCO.BN_GROUP_SIZE to at most {max(1, per_pass // 2)}."
            )
    if plan.mechanism == "moco" and images < plan.queue_size:
        yield (
            f"MOCO.QUEUE_SIZE {plan.queue_size} is larger than the number of images, {images}: the"
            " queue then holds other views of the query's own image as negatives. At most a"
            f" quarter of the images, {max(1, images // 4)}, is advisable."
        )
    if plan.mechanism == "memory_bank" and others < plan.queue_size:
        yield (
            f"MOCO.QUEUE_SIZE {plan.queue_size} is larger than the number of images outside a"
            f" batch, {others} of {images}: K is {others}."
        )


def _machine_warnings(plan: PretrainPlan) -> Iterator[str]:
    if plan.view_maker.is_fast and plan.device.type == "cpu" and not native.available():
        yield (
            "The compiled loops of DATA.PIPELINE fast are missing (no C compiler at installation,"
            f" or {native.OFF} is set): views take about four times as long. Install a compiler"
            " and then moco-transfer again."
        )
    if isinstance(plan.batches, ShardBatches) and plan.batches.uneven() > _UNEVEN:
        yield (
            f"{100 * plan.batches.uneven():.0f}% of an epoch's images are seen twice in it, and as"
            " many not at all. Choose DATA.NUM_WORKERS so that processes x workers divides the"
            f" number of shards, {len(plan.batches.shards.urls)}."
        )
