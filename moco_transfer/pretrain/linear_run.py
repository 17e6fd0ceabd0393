"""From a trained encoder and two sets of labelled images to the linear protocol's results.json."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.images.image_source import IndexedSource
from ..data.images.labelled import LabelledBatches
from ..data.views.loading import as_it_is
from ..data.views.view_batch import ViewMaker, Views
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.distributed import get_world_size, is_main_process
from ..runtime.environment import git_commit, package_versions
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import record_settings
from ..runtime.stop import ignore_sigterm
from .encoder_file import TrainedEncoder
from .features import Compute, FeatureSet, encode, extract_features, trunk_of
from .linear import LinearProtocol, ShuffledBatches, new_run, restore, train_classifier

logger = logging.getLogger(__name__)

SCHEMA = "moco_transfer.linear/1"
_CROP_SCALE = (0.08, 1.0)  # torchvision's default, as in main_lincls.py; pre-training's is (0.2, 1)


@dataclass(frozen=True)
class LinearPlan:
    """What is measured on what; labels of ``train`` and ``test`` are numbered equally.

    Attributes:
        origin: Where the encoder comes from, for results.json; a resume needs the same.
        compute: Where and how the trunk computes; the classifier is float32.
        cache_features: Compute the training features once, without augmentation, instead of on new
            crops in each epoch.
        resume: Continue from the last checkpoint in ``output``, where there is one.
    """

    encoder: TrainedEncoder
    train: IndexedSource
    test: IndexedSource
    origin: dict[str, Any]
    compute: Compute
    output: Path
    protocol: LinearProtocol = LinearProtocol()
    cache_features: bool = False
    num_workers: int = 0
    resume: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must share with the checkpoint."""
        protocol = dataclasses.asdict(self.protocol)
        return self.origin | {"cache_features": self.cache_features, "protocol": protocol}


def evaluate_linear(plan: LinearPlan) -> dict[str, Any] | None:
    """Train the classifier and write ``results.json``. Collective.

    Returns:
        What results.json holds, or None when the run was told to stop and has saved.

    Raises:
        InputError: If the checkpoint to resume from is of other features or settings, or images
            cannot be read.
    """
    since, compute, protocol = time.perf_counter(), plan.compute, plan.protocol
    trunk = trunk_of(plan.encoder.network).to(compute.device).eval()

    def features_of(images: IndexedSource, description: str) -> FeatureSet:
        batches = LabelledBatches(images, plan.encoder.view, num_workers=plan.num_workers)
        return extract_features(trunk, batches, compute, description=description)

    test = features_of(plan.test, "test features")
    cached = features_of(plan.train, "training features") if plan.cache_features else None
    dim, num_classes = test.features.shape[1], len(test.class_names)
    run = new_run(dim, num_classes, protocol, device=compute.device, settings=plan.settings)
    checkpoints = CheckpointFolder(plan.output, keep=2)
    last = checkpoints.last() if plan.resume else None
    if last is not None:
        restore(run, load_checkpoint(last), str(last))
    record_settings(plan.output, yaml.safe_dump(plan.settings))
    num_train = len(plan.train) if cached is None else len(cached.labels)
    order = ShuffledBatches(num_train, protocol, start_epoch=run.epoch, start_step=run.step)
    if cached is not None:
        batches = _cached_batches(cached, order)
    else:
        batches = _encoded_batches(plan, trunk, order, dim)
    start = run.epoch * order.iterations_per_epoch + run.step
    file = plan.output / "metrics.json"
    metrics = MetricsFile(file, start_iteration=start) if is_main_process() else None
    with contextlib.closing(metrics) if metrics else contextlib.nullcontext():
        row = train_classifier(
            run, batches, test, order=order, checkpoints=checkpoints, metrics=metrics
        )
    if row is None:
        return None
    record = {
        "schema": SCHEMA,
        **plan.origin,
        "top1": row["top1"],
        "top5": row["top5"],
        "train_loss": row.get("loss"),
        "protocol": dataclasses.asdict(protocol) | {"steps": list(protocol.steps)},
        "cache_features": plan.cache_features,
        "feature_dim": dim,
        "num_classes": num_classes,
        "num_test": len(test.labels),
        "num_test_unreadable": test.num_unreadable,
        "world_size": get_world_size(),
        "versions": package_versions(),
        "git": git_commit(),
        "num_train": num_train,
        "wall_sec": time.perf_counter() - since,
    }
    if is_main_process():
        atomic_write_text(plan.output / "results.json", json.dumps(record, indent=2) + "\n")
    return record


def _cached_batches(cached: FeatureSet, order: ShuffledBatches) -> Iterator[tuple[Tensor, Tensor]]:
    for places in order:
        index = torch.tensor([i for _, i in places], dtype=torch.int64, device=cached.labels.device)
        yield cached.features[index], cached.labels[index]


def _encoded_batches(
    plan: LinearPlan, trunk: nn.Module, order: ShuffledBatches, dim: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (features, labels) of new crops of the training images."""
    view, device = plan.encoder.view, plan.compute.device
    make_views = ViewMaker("supervised", view.size, _CROP_SCALE, 1)
    loader = DataLoader(
        Views(plan.train, make_views, seed=plan.protocol.seed),
        sampler=order,
        batch_size=None,
        num_workers=plan.num_workers,
        worker_init_fn=ignore_sigterm if plan.num_workers else None,
        collate_fn=as_it_is,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    for batch in loader:
        for path in batch["unreadable"]:
            logger.warning("replaced unreadable image %s by another", path)
        if batch["given_up"]:
            raise InputError(
                "20 training images in a row cannot be read, the last is"
                f" {batch['unreadable'][-1]}. Repair or remove them."
            )
        labels = batch["label"].to(device)
        if len(labels):
            yield encode(trunk, batch["views"][0], view, plan.compute), labels
        else:  # fewer images left than processes
            yield torch.zeros(0, dim, device=device), labels
