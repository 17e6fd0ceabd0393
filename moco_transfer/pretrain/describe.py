"""A pre-training plan in words: what ``--dry-run`` prints and a run logs before it starts."""

from __future__ import annotations

from ..data.views import native
from ..data.views.order import ShardBatches
from ..runtime.distributed import get_world_size
from ..runtime.trackers.record import written_by
from .plan import PretrainPlan
from .resume import changes
from .shuffle import num_groups
from .watch import WARNINGS

_UNEVEN = 0.01  # share of an epoch's images seen twice beyond which it is worth a warning

_OF_CHANNELS = {3: "", 1: "; grey images: of colours brightness and contrast alone have an effect"}
_OF_BANDS = "; {} bands: brightness and contrast alone, no saturation, hue or grey"


def describe(plan: PretrainPlan) -> list[str]:
    """Return what the run will do, one line a subject."""
    per_epoch, end = plan.iterations_per_epoch, plan.max_iterations
    length = f"{plan.epochs} epochs of {per_epoch} iterations"
    if end % per_epoch:
        length = f"{end} iterations, {per_epoch} an epoch"
    batch, world_size, views = plan.batch_size_total, get_world_size(), plan.view_maker
    parts = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    lr = f"lr {plan.lr_at.lr:g} = SOLVER.BASE_LR {plan.base_lr:g} x {batch}"
    weights = "random"
    if (init := plan.init) is not None:
        origin = f"{init.mechanism or 'mechanism unknown'} {init.arch}, epoch {init.epoch}"
        weights = f"from {init.path} ({origin}); queue, optimiser and schedule are fresh"
    if plan.resume is not None:
        weights = f"resumed from {plan.resume.path}: iteration {plan.resume.iteration} of {end}"
    norm = "BN over the images of a process"
    if plan.mechanism in ("moco", "end_to_end"):
        images, groups = _groups(plan)
        norm = f"BN statistics over {groups} groups of about {images * world_size // groups} images"
        norm += f", keys {'shuffled among them' if plan.shuffle else 'not shuffled'}"
    files = f"config.yaml, log.txt, metrics.json{written_by(plan.loggers)},"
    files += f" checkpoint_*.pth every {' and '.join(map(str, plan.checkpoint_periods))} iterations"
    lines = {
        "data": plan.source.describe(),
        "views": f"{views.num_views} view(s) of {views.size} px, {views.recipe}, {views.pipeline}"
        f" pipeline{_OF_CHANNELS.get(views.channels, _OF_BANDS).format(views.channels)}",
        "model": f"{plan.mechanism} {plan.arch}, {plan.num_negatives} negatives",
        "weights": weights,
        "batch": f"{batch} = {batch // world_size} per process x {world_size} on"
        f" {plan.device}{parts}",
        "schedule": f"{length}; {lr} / {plan.reference_batch_size}, {plan.lr_at.describe()}",
        "precision": plan.compute.precision.describe(),
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
    images, others = len(plan.source), len(plan.source) - plan.batch_size_total
    per_pass, groups = _groups(plan)
    in_groups = plan.mechanism in ("moco", "end_to_end")
    uneven, shards = 0.0, 0
    if isinstance(plan.batches, ShardBatches):
        uneven, shards = plan.batches.uneven(), len(plan.batches.shards.urls)
    fast_on_cpu = plan.view_maker.is_fast and plan.device.type == "cpu"
    found = {
        "not_shuffled": in_groups and not plan.shuffle,
        "one_group": in_groups and plan.shuffle and groups == 1,
        "queue_too_large": plan.mechanism == "moco" and images < plan.queue_size,
        "bank_too_large": plan.mechanism == "memory_bank" and others < plan.queue_size,
        "no_compiled_loops": fast_on_cpu and not native.available(),
        "uneven_shards": uneven > _UNEVEN,
    }
    facts = {"groups": groups, "images_of_a_pass": per_pass, "half": max(1, per_pass // 2)}
    facts |= {"images": images, "others": others, "quarter": max(1, images // 4)}
    facts |= {"queue_size": plan.queue_size, "shards": shards}
    texts = [
        WARNINGS[name].format(**facts, off=native.OFF, uneven=100 * uneven)
        for name, holds in found.items()
        if holds
    ]
    return texts if plan.resume is None else [*texts, *changes(plan.resume, plan.header)]


def _groups(plan: PretrainPlan) -> tuple[int, int]:
    """Return the images of a forward pass on one process, and the BN groups of all processes."""
    images = plan.batch_size_total // get_world_size() // plan.accumulate
    return images, num_groups(images, plan.bn_group_size) * get_world_size()
