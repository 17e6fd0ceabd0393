"""The linear protocol: one fully connected layer on frozen, globally average-pooled features.

An iteration's images do not depend on the number of processes. C: dimension of the features.
Source: arXiv:1911.05722 Sec. 4.1; facebookresearch/moco@7397dfe main_lincls.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.images.image_source import IndexedSource
from ..data.views.labelled import LabelledBatches
from ..data.views.view_batch import ViewMaker, Views
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.device import Compute, wants_pinned
from ..runtime.distributed import gather_object, get_rank, get_world_size, is_main_process
from ..runtime.environment import git_commit, package_versions
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from ..runtime.health.heartbeat import Heartbeat
from ..runtime.metrics import MetricsFile
from ..runtime.progress import progress
from ..runtime.run_folder import record_settings
from ..runtime.seed import generator_at, seed_everything
from ..runtime.stop import StopRequest, prepare_worker, sigterm_held
from .encoder_file import TrainedEncoder
from .features import FeatureSet, encode, extract_features, top1_and_top5, trunk_of

logger = logging.getLogger(__name__)

FORMAT = "moco_transfer.linear/1"  # of checkpoints and of results.json
_CROP_SCALE = (0.08, 1.0)  # torchvision's default, as in main_lincls.py; pre-training's is (0.2, 1)


@dataclass(frozen=True)
class LinearProtocol:
    """Settings; the defaults are the paper's. ``lr`` is not scaled by the batch."""

    lr: float = 30.0
    sgd_momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size_total: int = 256
    epochs: int = 100
    seed: int = 0

    @property
    def steps(self) -> tuple[int, int]:
        """Epochs at which lr falls to a tenth: 60 % and 80 % of the run."""
        return round(0.6 * self.epochs), round(0.8 * self.epochs)

    def lr_in(self, epoch: int) -> float:
        """Return the learning rate of an epoch, 0-based."""
        return self.lr * 0.1 ** sum(epoch >= step for step in self.steps)


@dataclass(frozen=True)
class LinearPlan:
    """What is measured on what; labels of ``train`` and ``test`` are numbered equally.

    ``origin``: where the encoder comes from, for results.json. ``cache_features``: compute the
    training features once, without augmentation, instead of on new crops in each epoch.
    """

    encoder: TrainedEncoder
    train: IndexedSource
    test: IndexedSource
    origin: dict[str, Any]
    compute: Compute  # of the trunk; the classifier is float32
    output: Path
    protocol: LinearProtocol = LinearProtocol()
    cache_features: bool = False
    num_workers: int = 0
    resume: bool = False


def shuffled_batches(
    num_images: int, protocol: LinearProtocol, *, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Yield this process's part of every batch from an iteration on, as (epoch, index).

    The last, partial batch of an epoch is kept, so one process may get an image more than another.
    """
    size, order = protocol.batch_size_total, np.empty(0, np.int64)
    per_epoch = math.ceil(num_images / size)
    for iteration in range(start, protocol.epochs * per_epoch):
        epoch, step = divmod(iteration, per_epoch)
        if step == 0 or iteration == start:
            order = generator_at(protocol.seed, "linear order", epoch).permutation(num_images)
        own = order[step * size : (step + 1) * size][get_rank() :: get_world_size()]
        yield [(epoch, int(i)) for i in own]


class LinearRun:
    """A classifier in training; weights from N(0, 0.01), bias 0, equal on every process.

    Attributes:
        settings: What a run to resume must have had.
        num_train: Images of an epoch.
        iteration: Iterations finished.
        row: What was measured after the last finished epoch.
        sums: Of the loss and of correct answers in this epoch, over this process's images.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        protocol: LinearProtocol,
        *,
        num_train: int,
        device: torch.device,
        settings: dict[str, Any],
    ) -> None:
        self.protocol, self.settings, self.num_train = protocol, settings, num_train
        self.per_epoch = math.ceil(num_train / protocol.batch_size_total)
        self.iteration, self.sums = 0, torch.zeros(2, device=device)
        self.row: dict[str, float] = {}
        seed_everything(protocol.seed, "linear weights")
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.classifier.to(device)
        momentum, decay = protocol.sgd_momentum, protocol.weight_decay
        weights = self.classifier.parameters()
        self.optimizer = torch.optim.SGD(weights, protocol.lr, momentum, weight_decay=decay)

    def save(self, checkpoints: CheckpointFolder) -> None:
        """Write a checkpoint on process 0. Collective."""
        epoch, step = divmod(self.iteration, self.per_epoch)
        weights = self.classifier.state_dict()
        state = {
            "format": FORMAT,
            "state_dict": {f"fc.{name}": tensor for name, tensor in weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "epoch": epoch,
            "step": step,
            "sums": gather_object(self.sums.cpu()),
            "origin": self.settings,
            "row": self.row,
        }
        if is_main_process():
            checkpoints.save(state, f"{epoch:04d}" + (f"_iter{self.iteration:08d}" if step else ""))

    def restore(self, state: dict[str, Any], path: str) -> None:
        """Continue from a checkpoint's state; refuses one of other features or settings."""
        if state.get("format") != FORMAT:
            raise InputError(f"{path} is not a checkpoint of moco-transfer linear.")
        for key, mine in self.settings.items():
            if (theirs := state["origin"].get(key)) != mine:
                raise InputError(
                    f"{path} was made with {key} {theirs!r}, the run to resume has {mine!r}."
                )
        weights = state["state_dict"]
        self.classifier.load_state_dict({n.removeprefix("fc."): t for n, t in weights.items()})
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["epoch"] * self.per_epoch + state["step"]
        self.row = state.get("row", {})
        if is_main_process():
            self.sums = sum(state["sums"]).to(self.sums.device)
        logger.info("resumed from %s: iteration %d", path, self.iteration)


def train_classifier(
    run: LinearRun,
    batches: Iterable[tuple[Tensor, Tensor]],
    test: FeatureSet,
    *,
    checkpoints: CheckpointFolder,
    metrics: MetricsFile | None,
) -> dict[str, float] | None:
    """Train to the end, from wherever ``run`` stands, testing after each epoch. Collective.

    ``batches``: this process's (features (b, C), labels (b,)) in the order of
    :func:`shuffled_batches`. Returns the last epoch's ``loss``, ``acc1``, ``top1`` and ``top5``,
    percent; None when SIGTERM or Ctrl-C stopped it and it has saved.
    """
    total = run.protocol.epochs * run.per_epoch
    bar = progress(None, "linear", total=total, initial=run.iteration)
    row = run.row | accuracy_on(run.classifier, test) if run.iteration == total else {}
    with StopRequest() as stop, bar:
        for features, labels in batches:
            if stop.agreed():
                run.save(checkpoints)
                logger.warning("Stopped by %s: saved. Continue with --resume.", stop.name)
                return None
            _step(run, features, labels)
            bar.update()
            if run.iteration % run.per_epoch == 0:
                row = run.row = _end_epoch(run, test, metrics)
                if metrics is not None:
                    metrics.sync()
                run.save(checkpoints)
    return row


def _step(run: LinearRun, features: Tensor, labels: Tensor) -> None:
    epoch, step = divmod(run.iteration, run.per_epoch)
    size = run.protocol.batch_size_total
    run.optimizer.param_groups[0]["lr"] = run.protocol.lr_in(epoch)
    logits = run.classifier(features)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    run.optimizer.zero_grad(set_to_none=True)
    (loss / min(size, run.num_train - step * size)).backward()
    if get_world_size() > 1:
        for parameter in run.classifier.parameters():  # parts were divided by the whole batch
            dist.all_reduce(parameter.grad)
    run.optimizer.step()
    correct = (logits.argmax(1) == labels).sum().to(loss.dtype)
    run.sums += torch.stack([loss.detach(), correct])
    run.iteration += 1


def _end_epoch(run: LinearRun, test: FeatureSet, metrics: MetricsFile | None) -> dict[str, float]:
    epoch, lr = run.iteration // run.per_epoch, run.optimizer.param_groups[0]["lr"]
    if get_world_size() > 1:
        dist.all_reduce(run.sums)
    loss, correct = (run.sums / run.num_train).tolist()
    run.sums = torch.zeros_like(run.sums)
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss is {loss} in epoch {epoch} at lr {lr:g}. Lower --lr.")
    row = {"loss": loss, "acc1": 100 * correct} | accuracy_on(run.classifier, test)
    logger.info(
        f"epoch {epoch}/{run.protocol.epochs} loss {loss:.3f} acc1 {row['acc1']:.2f} lr {lr:g}"
        f" test top-1 {row['top1']:.2f} top-5 {row['top5']:.2f}"
    )
    if metrics is not None:
        metrics.write(run.iteration, {"epoch": epoch - 1, "lr": lr} | row)
    return row


@torch.no_grad()
def accuracy_on(classifier: Callable[[Tensor], Tensor], test: FeatureSet) -> dict[str, float]:
    """Return ``top1`` and ``top5``, percent, of a classifier on features that every process has."""
    best = classifier(test.features).topk(min(5, len(test.class_names)), dim=1).indices
    return top1_and_top5(best, test.labels)


def evaluate_linear(plan: LinearPlan) -> dict[str, Any] | None:
    """Train the classifier and write what is returned into ``results.json``. Collective.

    None when SIGTERM or Ctrl-C stopped the run and it has saved.
    """
    with Heartbeat(plan.output):
        return _evaluate_linear(plan)


def _evaluate_linear(plan: LinearPlan) -> dict[str, Any] | None:
    since, compute, protocol = time.perf_counter(), plan.compute, plan.protocol
    trunk = trunk_of(plan.encoder.network).to(compute.device).eval()

    def features_of(images: IndexedSource, description: str) -> FeatureSet:
        batches = LabelledBatches(images, plan.encoder.view, num_workers=plan.num_workers)
        return extract_features(trunk, batches, compute, description=description)

    test = features_of(plan.test, "test features")
    cached = features_of(plan.train, "training features") if plan.cache_features else None
    num_train = len(plan.train) if cached is None else len(cached.labels)
    dim, num_classes = test.features.shape[1], len(test.class_names)
    settings = plan.origin | {"cache_features": plan.cache_features}
    settings |= {"protocol": dataclasses.asdict(protocol)}
    shared: dict[str, Any] = {"num_train": num_train, "device": compute.device}
    run = LinearRun(dim, num_classes, protocol, settings=settings, **shared)
    checkpoints = CheckpointFolder(plan.output, keep=2)
    if plan.resume and (last := checkpoints.newest()) is not None:
        run.restore(last[1], str(last[0]))
        checkpoints.resume_from(last[0])
    record_settings(plan.output, yaml.safe_dump(settings))
    order = shuffled_batches(num_train, protocol, start=run.iteration)
    batches = _encoded_batches(plan, trunk, order)
    if cached is not None:
        index = (torch.tensor([i for _, i in each], dtype=torch.int64) for each in order)
        batches = ((cached.features[i], cached.labels[i]) for i in index)
    metrics = None
    if is_main_process():
        metrics = MetricsFile(plan.output / "metrics.json", start_iteration=run.iteration)
    with contextlib.closing(metrics) if metrics else contextlib.nullcontext():
        row = train_classifier(run, batches, test, checkpoints=checkpoints, metrics=metrics)
    if row is None:
        return None
    record = {"schema": FORMAT, **plan.origin, "top1": row["top1"], "top5": row["top5"]}
    record |= {
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


def _encoded_batches(
    plan: LinearPlan, trunk: nn.Module, order: Iterator[list[tuple[int, int]]]
) -> Iterator[tuple[Tensor, Tensor]]:
    view, device = plan.encoder.view, plan.compute.device
    channels = len(view.mean)
    pipeline = "reference" if channels in (1, 3) else "fast"  # which holds bands
    crops = "supervised", view.size, _CROP_SCALE, 1
    make_views = ViewMaker(*crops, pipeline, view.upright, channels)
    loader = DataLoader(
        Views(plan.train, make_views, seed=plan.protocol.seed),
        sampler=order,
        batch_size=None,
        num_workers=plan.num_workers,
        worker_init_fn=prepare_worker if plan.num_workers else None,
        pin_memory=wants_pinned(device),
        generator=torch.Generator(),
    )
    with sigterm_held():
        reading = iter(loader)
    for batch in reading:  # new crops of the training images
        unreadable = batch["unreadable"]
        for path in unreadable:
            logger.warning("replaced unreadable image %s by another", path)
        if batch["given_up"]:
            raise InputError(f"20 training images in a row cannot be read, last {unreadable[-1]}.")
        # Empty where fewer images are left than processes.
        yield encode(trunk, batch["views"][0], view, plan.compute), batch["label"].to(device)
