"""A plan in words: what ``train --dry-run`` prints and what a run logs before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.annotations.keypoints import labelled_keypoints, mirrored_pairs
from ..data.annotations.records import LEFT_OUT, count_left_out, is_trainable
from ..runtime.trackers.record import DEFAULT, written_by
from .datasets import has_objects
from .plan import FinetunePlan

CLASSES_SHOWN = 20


def describe_plan(plan: FinetunePlan) -> list[str]:
    """Return the plan, a line for each part of it."""
    return [f"{name + ':':11} {text}" for name, text in _parts(plan)]


def _parts(plan: FinetunePlan) -> Iterator[tuple[str, str]]:
    header, data, device = plan.header, plan.data, plan.engine.device
    processes = f"{plan.world_size} process{'' if plan.world_size == 1 else 'es'}"
    yield "task", f"{header['task']}, row {header['init']}, seed {header['seed']}"
    yield "engine", f"{plan.engine.name} on {device.type}, {processes}"
    for role, sets in (("train on", data.train_sets), ("test on", data.test_sets)):
        for dataset in sets:
            records = dataset.records
            text = f"{dataset.name}: {len(records)} images"
            if dataset.kind == "semantic":
                yield role, f"{text} and label images"
                continue
            objects = sum(len(record["annotations"]) for record in records)
            masks = "segm" in data.tasks
            empty = sum(not is_trainable(record, masks=masks) for record in records)
            text += f" ({empty} empty), {objects} objects"
            if data.keypoints is not None and role == "train on":
                least = data.keypoints.least
                few = sum(is_trainable(r) and labelled_keypoints(r) < least for r in records)
                text += f"; {few} images with fewer than {least} labelled keypoints are left out"
            yield role, text
            for key, number in count_left_out(records).items():
                if number and not key.startswith("images"):
                    yield "of them", f"{number} {LEFT_OUT[key]}"
    names = data.class_names
    shown = ", ".join(names[:CLASSES_SHOWN]) + (", ..." if len(names) > CLASSES_SHOWN else "")
    yield "classes", f"{len(names)}{', from the data' if data.count_from_data else ''}: {shown}"
    if data.keypoints is not None:
        points = data.any_set.keypoint_names
        pairs = ", ".join(map("/".join, mirrored_pairs(points))) or "none"
        count = f"{len(points)}{', from the data' if data.keypoints.count is None else ''}"
        yield "keypoints", f"{count}: {', '.join(points)}; mirrored pairs: {pairs}"
    if plan.checkpoint is not None:
        yield "resumes", f"{plan.checkpoint_path}, after iteration {plan.checkpoint['iteration']}"
    yield from _of_weights(plan)
    files = "config.yaml, env.txt, log.txt" + ", results.json" * bool(data.test_sets)
    if not data.test_sets:
        yield "test on", "nothing: the run ends with its last checkpoint"
    if not plan.request.eval_only:
        yield "schedule", plan.schedule.describe(plan.written_schedule, plan.world_size)
        yield "precision", plan.precision.describe()
        yield "PreciseBN", f"over {plan.precise_bn} batches" if plan.precise_bn else "off"
        loggers = plan.settings.get("LOGGERS", DEFAULT)
        files += f", metrics.json{written_by(loggers)}, checkpoint_*.pth"
    yield "norm", plan.norm
    for dataset in plan.data.test_sets:
        files += f", predictions_{dataset.name}.json"
        if has_objects(dataset):
            files += f", matches_{dataset.name}.npz"
    yield "writes", f"{plan.output_dir}: {files}"
    for remark in plan.remarks:
        yield "note", remark
    for finding in plan.overruled:
        yield "overruled", f"{finding.option} overrules {finding.name}: {finding.sentence}"


def _of_weights(plan: FinetunePlan) -> Iterator[tuple[str, str]]:
    weights, found = plan.weights, plan.coverage
    if found is None:
        yield "weights", "random initialisation"
    else:
        covered = f"{len(found.matched)} of {found.num_expected} tensors"
        yield "weights", f"{weights.path} ({weights.kind}): {covered}, sha256 {weights.sha256}"
        for part, why in weights.parts.items():
            yield "new part", f"{part}: {why.removeprefix('new: ')}"
        stamp = {key: value for key, value in (weights.stamp or {}).items() if value is not None}
        missing = "none: its colour order and pixel statistics cannot be checked"
        yield "stamp", ", ".join(f"{key} {value}" for key, value in stamp.items()) or missing
