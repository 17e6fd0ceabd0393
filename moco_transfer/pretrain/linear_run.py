"""From a trained encoder and two sets of labelled images to the linear protocol's results.json."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.images.image_source import IndexedSource
from ..data.images.labelled import LabelledBatches
from ..data.views.loading import as_it_is, end_quietly_when_told
from ..data.views.view_batch import ViewMaker, Views
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import get_world_size, is_main_process
from ..runtime.environment import git_commit, package_versions
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import record_settings
from .encoder_file import TrainedEncoder
from .features import FeatureSet, Precision, encode, extract_features, trunk_of
from .linear import LinearProtocol, LinearRun, ShuffledBatches, new_run, restore, train_classifier

logger = logging.getLogger(__name__)

SCHEMA = "moco_transfer.linear/1"

_CROP_SCALE = (
    0.08,
    1.0,
)  # torchvision's default, which main_lincls.py uses; pre-training's is (0.2, 1)


@dataclasses.dataclass(frozen=True)
class LinearTask:
    """What is measured on what.

    Attributes:
        encoder: The frozen encoder.
        train, test: Images, labels numbered alike.
        origin: Where the encoder comes from, for results.json and to refuse a resume with another.
        cache_features: Compute the training features once, without augmentation, instead of on new
            crops in each epoch.
        num_workers: Data workers.
    """

    encoder: TrainedEncoder
    train: IndexedSource
    test: IndexedSource
    origin: dict[str, Any]
    cache_features: bool = False
    num_workers: int = 0


def evaluate_linear(
    task: LinearTask,
    protocol: LinearProtocol,
    *,
    output: Path,
    precision: Precision,
    resume: bool = False,
) -> dict[str, Any] | None:
    """Train the classifier as the protocol says and write ``results.json``. Collective.

    Args:
        task: Encoder and images.
        protocol: Settings of the training.
        output: Folder, open for writing, for config.yaml, env.txt, checkpoints, metrics.json and
            results.json.
        precision: Where and how the trunk computes; the classifier is float32.
        resume: Continue from ``output``'s last checkpoint, where there is one.

    Returns:
        What results.json holds, or None when the run was told to stop and has saved.

    Raises:
        InputError: If the checkpoint to resume from is of other features or settings, or images
            cannot be read.
    """
    since = time.perf_counter()
    trunk = trunk_of(task.encoder.network).to(precision.device).eval()
    test = extract_features(
        trunk, _batches(task, task.test), precision, description="test features"
    )
    if not len(test.labels):
        raise InputError(
            f"None of the {len(task.test)} test images can be read; the first is"
            f" {task.test.name(0)}."
        )
    cached = (
        extract_features(
            trunk, _batches(task, task.train), precision, description="training features"
        )
        if task.cache_features
        else None
    )
    origin = task.origin | {
        "cache_features": task.cache_features,
        "protocol": dataclasses.asdict(protocol),
    }
    run = new_run(
        test.features.shape[1],
        len(test.class_names),
        protocol,
        device=precision.device,
        origin=origin,
    )
    checkpoints = CheckpointFolder(output, keep=2)
    last = checkpoints.last() if resume else None
    if last is not None:
        restore(run, load_checkpoint(last), str(last))
    record_settings(
        output, yaml.safe_dump(origin)
    )  # not before it is sure that the checkpoint is one of these settings
    num_train = len(cached.labels) if cached is not None else len(task.train)
    order = ShuffledBatches(num_train, protocol, start_epoch=run.epoch, start_step=run.step)
    if cached is not None:
        batches = _from_cache(cached, order)
    else:
        read = _read_images(
            task, order, precision
        )  # held here, not in the generator, for the reason that data.loading.Loader gives
        batches = _from_images(task, trunk, read, precision, dim=test.features.shape[1])
    start = run.epoch * order.iterations_per_epoch + run.step
    metrics = (
        MetricsFile(output / "metrics.json", start_iteration=start) if is_main_process() else None
    )
    try:
        row = train_classifier(
            run, batches, test, order=order, checkpoints=checkpoints, metrics=metrics
        )
    finally:
        if metrics is not None:
            metrics.close()
    if row is None:
        return None
    record = _record(task, run, row, test) | {
        "num_train": num_train,
        "wall_sec": time.perf_counter() - since,
    }
    if is_main_process():
        atomic_write_text(output / "results.json", json.dumps(record, indent=2) + "\n")
    return record


def _batches(task: LinearTask, images: IndexedSource) -> LabelledBatches:
    return LabelledBatches(images, task.encoder.view, num_workers=task.num_workers)


def _from_cache(cached: FeatureSet, order: ShuffledBatches) -> Iterator[tuple[Tensor, Tensor]]:
    for places in order:
        index = torch.tensor([i for _, i in places], dtype=torch.int64, device=cached.labels.device)
        yield cached.features[index], cached.labels[index]


def _read_images(
    task: LinearTask, order: ShuffledBatches, precision: Precision
) -> Iterator[dict[str, Any]]:
    make_views = ViewMaker("supervised", task.encoder.view.size, _CROP_SCALE, 1)
    loader = DataLoader(
        Views(task.train, make_views, seed=order.protocol.seed),
        sampler=order,
        batch_size=None,
        num_workers=task.num_workers,
        worker_init_fn=end_quietly_when_told if task.num_workers else None,
        collate_fn=as_it_is,
        pin_memory=precision.device.type == "cuda",
        generator=torch.Generator(),
    )
    return iter(loader)


def _from_images(
    task: LinearTask,
    trunk: nn.Module,
    read: Iterator[dict[str, Any]],
    precision: Precision,
    *,
    dim: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    view = task.encoder.view
    for batch in read:
        for path in batch["unreadable"]:
            logger.warning("replaced unreadable image %s by another", path)
        if batch["given_up"]:
            raise InputError(
                "20 training images in a row cannot be read, the last is"
                f" {batch['unreadable'][-1]}. Repair or remove them."
            )
        labels = batch["label"].to(precision.device)
        if not len(labels):  # fewer images left than processes
            yield torch.zeros(0, dim, device=precision.device), labels
            continue
        yield (
            encode(trunk, batch["views"][0], mean=view.mean, std=view.std, precision=precision),
            labels,
        )


def _record(
    task: LinearTask, run: LinearRun, row: dict[str, float], test: FeatureSet
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **task.origin,
        "top1": row["top1"],
        "top5": row["top5"],
        "train_loss": row.get("loss"),
        "protocol": dataclasses.asdict(run.protocol) | {"steps": list(run.protocol.steps)},
        "cache_features": task.cache_features,
        "feature_dim": run.classifier.in_features,
        "num_classes": run.classifier.out_features,
        "num_test": len(test.labels),
        "num_test_unreadable": test.num_unreadable,
        "world_size": get_world_size(),
        "versions": package_versions(),
        "git": git_commit(),
    }
