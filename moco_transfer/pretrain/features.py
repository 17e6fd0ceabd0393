"""Features of labelled images by a frozen encoder, for the kNN classifier and the linear protocol.

N: images of a set    C: dimension of the features
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.views.labelled import UNREADABLE_LABEL, EvaluationView, LabelledBatches
from ..data.views.view_colours import normalize
from ..runtime.device import Compute
from ..runtime.distributed import all_gather_rows, get_world_size
from ..runtime.errors import InputError
from ..runtime.stop import StopRequest


class FeaturesStopped(Exception):
    """The run was told to stop before all features were computed; raised on all processes."""


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set's readable images, in the set's order."""

    features: Tensor  # (N, C), float32, on the device they were computed on
    labels: Tensor  # (N,), int64
    class_names: tuple[str, ...]
    num_unreadable: int  # left out because they could not be decoded


def trunk_of(encoder: nn.Module) -> nn.Sequential:
    """Return a ResNet without its head, (N, 3, H, W) -> pooled features (N, C); shared weights."""
    parts = (part for name, part in encoder.named_children() if name != "fc")
    return nn.Sequential(*parts, nn.Flatten(1))


@torch.no_grad()
def encode(network: nn.Module, views: Tensor, view: EvaluationView, compute: Compute) -> Tensor:
    """Return the features (N, C), float32, no gradient, of uint8 images (N, C, H, W), 0-255."""
    images = normalize(views.to(compute.device, non_blocking=True), view.mean, view.std)
    with compute.autocast():
        return network(images.to(memory_format=torch.channels_last)).float()


@torch.no_grad()
def extract_features(
    network: nn.Module,
    batches: LabelledBatches,
    compute: Compute,
    *,
    description: str,
    stop: StopRequest | None = None,
) -> FeatureSet:
    """Run a network in evaluation mode over labelled images; each process encodes its share.

    Collective; the result is equal on every process, and the network's mode is restored. Raises
    FeaturesStopped if any process was told to stop.
    """
    was_training = network.training
    network.eval()
    parts = []
    for views, label, index in batches(description):
        if stop is not None and stop.requested:
            break
        parts.append((encode(network, views, batches.view, compute), label, index))
    network.train(was_training)
    if stop is not None and stop.agreed(now=True):
        raise FeaturesStopped
    own = (torch.cat(each).to(compute.device) for each in zip(*parts, strict=True))
    rows, label = _in_order(*own, total=len(batches.images))
    readable = label != UNREADABLE_LABEL
    if not readable.any():
        first = batches.images.name(0)
        raise InputError(f"{description}: none of the images can be read, the first is {first}.")
    names, unreadable = batches.images.class_names, int((~readable).sum())
    return FeatureSet(rows[readable], label[readable], names, unreadable)


def top1_and_top5(ranked: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``top1`` and ``top5``, percent, of labels (N,) among ranked classes (N, 5 or more)."""
    hits = ranked[:, :5] == labels[:, None]
    top1, top5 = hits[:, 0].sum().item(), hits.any(1).sum().item()
    return {"top1": 100 * top1 / len(hits), "top5": 100 * top5 / len(hits)}


def _in_order(
    rows: Tensor, labels: Tensor, indices: Tensor, *, total: int
) -> tuple[Tensor, Tensor]:
    """Gather the processes' shares, which differ by one row at most, in the set's order."""
    missing = -(-total // get_world_size()) - len(rows)
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        labels = torch.cat([labels, labels.new_zeros(missing)])
        indices = torch.cat([indices, indices.new_full((missing,), total)])
    order = torch.argsort(all_gather_rows(indices))[:total]  # padding has the largest index
    return all_gather_rows(rows)[order], all_gather_rows(labels)[order]
