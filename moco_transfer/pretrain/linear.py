"""The linear protocol: one fully connected layer on frozen, globally average-pooled features.

Shapes in this module:
    B: images of an iteration over all processes    C: dimension of the features
Distributed:
    An iteration's images do not depend on the number of processes.
Source:
    arXiv:1911.05722 Sec. 4.1; facebookresearch/moco@7397dfe main_lincls.py: lr 30, weight decay 0,
    momentum 0.9, batch 256, 100 epochs, lr times 0.1 at 60 and 80, weights N(0, 0.01), bias 0, the
    network in evaluation mode, the last partial batch used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm

from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import gather_object, get_rank, get_world_size, is_main_process
from ..runtime.errors import InputError
from ..runtime.metrics import MetricsFile
from ..runtime.seed import generator_at, seed_everything
from ..runtime.stop import StopRequest
from .features import FeatureSet

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = "moco_transfer.linear/1"


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


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """This process's part of every batch after a place in the run, as lists of (epoch, index).

    Unlike ``data.batches.samplers.EpochBatches`` it keeps the last, partial batch of an epoch, as
    main_lincls.py does. A process's part may therefore be smaller than another's by one image.
    """

    def __init__(
        self,
        num_images: int,
        protocol: LinearProtocol,
        *,
        start_epoch: int = 0,
        start_step: int = 0,
    ) -> None:
        self.num_images, self.protocol = num_images, protocol
        self.start_epoch, self.start_step = start_epoch, start_step
        self.iterations_per_epoch = -(-num_images // protocol.batch_size_total)

    def batch_size(self, iteration_in_epoch: int) -> int:
        """Return the number of images of an iteration over all processes."""
        size = self.protocol.batch_size_total
        return min(size, self.num_images - iteration_in_epoch * size)

    def __len__(self) -> int:
        epochs = self.protocol.epochs - self.start_epoch
        return epochs * self.iterations_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, seed = self.protocol.batch_size_total, self.protocol.seed
        for epoch in range(self.start_epoch, self.protocol.epochs):
            order = generator_at(seed, "linear order", epoch).permutation(self.num_images)
            done = self.start_step if epoch == self.start_epoch else 0
            for start in range(done * size, self.num_images, size):
                own = order[start : start + size][get_rank() :: get_world_size()]
                yield [(epoch, int(i)) for i in own]


@dataclass
class LinearRun:
    """A classifier in training.

    ``epoch`` epochs and ``step`` iterations of the next are finished. ``sums``: of the loss and of
    correct answers in those, over this process's images. A resumed run needs equal ``settings``.
    """

    classifier: nn.Linear
    optimizer: torch.optim.SGD
    protocol: LinearProtocol
    settings: dict[str, Any]
    sums: Tensor
    epoch: int = 0
    step: int = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, on process 0. Collective."""
        weights = self.classifier.state_dict()
        return {
            "format": CHECKPOINT_FORMAT,
            "state_dict": {f"fc.{name}": tensor for name, tensor in weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": gather_object(self.sums.cpu()),
            "origin": self.settings,
        }


def new_run(
    dim: int,
    num_classes: int,
    protocol: LinearProtocol,
    *,
    device: torch.device,
    settings: dict[str, Any],
) -> LinearRun:
    """Return a run at its start: weights from N(0, 0.01), bias 0, equal on every process."""
    seed_everything(protocol.seed, "linear weights")
    classifier = nn.Linear(dim, num_classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=protocol.lr,
        momentum=protocol.sgd_momentum,
        weight_decay=protocol.weight_decay,
    )
    return LinearRun(classifier, optimizer, protocol, settings, torch.zeros(2, device=device))


def restore(run: LinearRun, state: dict[str, Any], path: str) -> None:
    """Put a checkpoint's state into a run; refuses one of other features or settings."""
    if state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of moco-transfer linear (format {state.get('format')!r},"
            f" expected {CHECKPOINT_FORMAT!r})."
        )
    for key, mine in run.settings.items():
        if state["origin"].get(key) != mine:
            raise InputError(
                f"{path} was made with {key} {state['origin'].get(key)!r}, the run to resume has"
                f" {mine!r}. Resume with the same."
            )
    weights = state["state_dict"]
    run.classifier.load_state_dict({n.removeprefix("fc."): t for n, t in weights.items()})
    run.optimizer.load_state_dict(state["optimizer"])
    run.epoch, run.step, sums = state["epoch"], state["step"], state["sums"]
    if len(sums) == get_world_size():
        run.sums = sums[get_rank()].to(run.sums.device)
    elif is_main_process():  # another number of processes
        run.sums = sum(sums).to(run.sums.device)
    logger.info("resumed from %s: %d of %d epochs", path, run.epoch, run.protocol.epochs)


def train_classifier(
    run: LinearRun,
    batches: Iterable[tuple[Tensor, Tensor]],
    test: FeatureSet,
    *,
    order: ShuffledBatches,
    checkpoints: CheckpointFolder,
    metrics: MetricsFile | None,
) -> dict[str, float] | None:
    """Train to the end, from wherever ``run`` stands, testing after each epoch. Collective.

    Args:
        run: Classifier and optimiser; changed in place.
        batches: This process's (features (b, C), labels (b,)) for each batch of ``order``, on the
            classifier's device.
        test: Features of the images to be classified.
        order: The order that ``batches`` follow.
        checkpoints: Where rank 0 saves after each epoch.
        metrics: Where rank 0 writes, None on other processes.

    Returns:
        The last epoch's ``loss``, ``acc1``, ``top1`` and ``top5``, percent; None when it was told
        to stop (SIGTERM) and has saved.
    """
    protocol, per_epoch = run.protocol, order.iterations_per_epoch
    done = run.epoch * per_epoch + run.step
    bar = tqdm(
        total=protocol.epochs * per_epoch,
        initial=done,
        desc="linear",
        unit="it",
        disable=None if is_main_process() else True,
    )
    row = accuracy_on(run.classifier, test) if run.epoch == protocol.epochs else {}
    with StopRequest() as stop, bar:
        source = iter(batches)
        while run.epoch < protocol.epochs:
            if stop.agreed():
                _save(run, checkpoints, per_epoch)
                logger.warning("Told to stop (SIGTERM): saved. Continue with --resume.")
                return None
            for group in run.optimizer.param_groups:
                group["lr"] = protocol.lr_in(run.epoch)
            run.sums += _step(run, *next(source), batch_size=order.batch_size(run.step))
            run.step += 1
            bar.update()
            if run.step == per_epoch:
                row = _end_epoch(run, test, order, metrics)
                _save(run, checkpoints, per_epoch)
    return row


def _step(run: LinearRun, features: Tensor, labels: Tensor, *, batch_size: int) -> Tensor:
    """Take an SGD step; return this process's sums of loss and correct answers."""
    logits = run.classifier(features)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    run.optimizer.zero_grad(set_to_none=True)
    (loss / batch_size).backward()
    if get_world_size() > 1:
        for parameter in run.classifier.parameters():  # parts were divided by the whole batch
            dist.all_reduce(parameter.grad)
    run.optimizer.step()
    return torch.stack([loss.detach(), (logits.argmax(1) == labels).sum().to(loss.dtype)])


def _end_epoch(
    run: LinearRun, test: FeatureSet, order: ShuffledBatches, metrics: MetricsFile | None
) -> dict[str, float]:
    """Begin the next epoch, test, and log."""
    lr = run.protocol.lr_in(run.epoch)
    run.epoch, run.step = run.epoch + 1, 0
    if get_world_size() > 1:
        dist.all_reduce(run.sums)
    loss, correct = (run.sums / order.num_images).tolist()
    run.sums = torch.zeros_like(run.sums)
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss} after epoch {run.epoch} at lr {lr:g}. Lower --lr."
        )
    row = {"loss": loss, "acc1": 100 * correct} | accuracy_on(run.classifier, test)
    if metrics is not None:
        iteration = run.epoch * order.iterations_per_epoch
        metrics.write(iteration, {"epoch": run.epoch - 1, "lr": lr} | row)
    logger.info(
        f"epoch {run.epoch}/{run.protocol.epochs} loss {loss:.3f} acc1 {row['acc1']:.2f} lr {lr:g}"
        f" test top-1 {row['top1']:.2f} top-5 {row['top5']:.2f}"
    )
    return row


def _save(run: LinearRun, checkpoints: CheckpointFolder, per_epoch: int) -> None:
    state = run.state()
    if is_main_process():
        within = f"_iter{run.epoch * per_epoch + run.step:08d}" if run.step else ""
        checkpoints.save(state, f"{run.epoch:04d}{within}")


@torch.no_grad()
def accuracy_on(classifier: Callable[[Tensor], Tensor], test: FeatureSet) -> dict[str, float]:
    """Return ``top1`` and ``top5``, percent, of a classifier on features that every process has."""
    best = classifier(test.features).topk(min(5, len(test.class_names)), dim=1).indices
    hits = best == test.labels[:, None]
    return {
        "top1": 100 * hits[:, 0].sum().item() / len(hits),
        "top5": 100 * hits.any(1).sum().item() / len(hits),
    }
