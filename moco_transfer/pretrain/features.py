"""Features of labelled images by a frozen encoder: what the kNN classifier and the linear
protocol start from.

Shapes in this module:
    N: images of a set    C: dimension of the features
Distributed:
    ``extract_features`` is collective: each process encodes every W-th image, and all end with
    the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.images.labelled import UNREADABLE_LABEL, LabelledBatches
from ..data.views.view_batch import normalize
from ..runtime.distributed import all_gather_rows, get_world_size
from ..runtime.errors import InputError
from ..runtime.run_folder import Stopped, StopRequest


@dataclass(frozen=True)
class Precision:
    """Where and how a network computes.

    Attributes:
        device: Where it is.
        amp_dtype: Autocast type, None for fp32.
        channels_last: Memory format of the images.
    """

    device: torch.device
    amp_dtype: torch.dtype | None = None
    channels_last: bool = True


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set's readable images, in the set's order.

    Attributes:
        features: (N, C), float32, on the device they were computed on.
        labels: (N,), int64.
        class_names: Names of the classes.
        num_unreadable: Images left out because they could not be decoded.
    """

    features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    num_unreadable: int


def trunk_of(encoder: nn.Module) -> nn.Sequential:
    """Return a ResNet without its head: (N, 3, H, W) to globally average-pooled features (N, C).

    Shares the weights.
    """
    return nn.Sequential(
        *(part for name, part in encoder.named_children() if name != "fc"), nn.Flatten(1)
    )


@torch.no_grad()
def encode(
    network: nn.Module,
    views: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    precision: Precision,
) -> Tensor:
    """Return the features (N, C), float32 and without gradient, of uint8 images (N, 3, H, W), RGB
    0-255.
    """
    images = normalize(views.to(precision.device, non_blocking=True), mean, std)
    if precision.channels_last:
        images = images.to(memory_format=torch.channels_last)
    with torch.autocast(
        precision.device.type, dtype=precision.amp_dtype, enabled=precision.amp_dtype is not None
    ):
        return network(images).float()


@torch.no_grad()
def extract_features(
    network: nn.Module,
    batches: LabelledBatches,
    precision: Precision,
    *,
    description: str,
    stop: StopRequest | None = None,
) -> FeatureSet:
    """Run a network in evaluation mode over labelled images. Collective.

    Args:
        network: The encoder, or :func:`trunk_of` it; its mode is put back afterwards.
        batches: The images.
        precision: Where and how to compute.
        description: For the progress bar.
        stop: Ends it before the last image.

    Returns:
        The features of all processes' images, the same on every process.

    Raises:
        InputError: If none of the images can be read.
        Stopped: If any process was told to stop.
    """
    was_training = network.training
    network.eval()
    mean, std = batches.view.mean, batches.view.std
    features, labels, indices = [], [], []
    for views, label, index in (
        batches(description) if stop is None else stop.until_told(batches(description))
    ):
        features.append(encode(network, views, mean=mean, std=std, precision=precision))
        labels.append(label)
        indices.append(index)
    network.train(was_training)
    if stop is not None and stop.agreed(precision.device):
        raise Stopped
    device = precision.device
    rows, label, index = (
        torch.cat(features),
        torch.cat(labels).to(device),
        torch.cat(indices).to(device),
    )
    rows, label = _in_order(rows, label, index, total=len(batches.images))
    readable = label != UNREADABLE_LABEL
    if not readable.any():
        raise InputError(
            f"{description}: none of the {len(batches.images)} images can be read, the first is"
            f" {batches.images.name(0)}. Repair them or name others."
        )
    return FeatureSet(
        rows[readable], label[readable], batches.images.class_names, int((~readable).sum())
    )


def _in_order(
    rows: Tensor, labels: Tensor, indices: Tensor, *, total: int
) -> tuple[Tensor, Tensor]:
    """Put the processes' shares together.

    Collective; the shares differ by one row at most, which is padded for the gather.
    """
    share = -(-total // get_world_size())
    missing = share - len(rows)
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        labels = torch.cat([labels, labels.new_zeros(missing)])
        indices = torch.cat([indices, indices.new_full((missing,), total)])
    order = torch.argsort(all_gather_rows(indices))[:total]  # padding has the largest index
    return all_gather_rows(rows)[order], all_gather_rows(labels)[order]
