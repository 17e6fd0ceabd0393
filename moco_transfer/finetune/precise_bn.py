"""PreciseBN: before an evaluation the BN statistics are computed again over many training batches.

Source:
    fvcore.nn.precise_bn does the computing. What is added is that all processes end with the same
        statistics: each sees its own
    images, and detectron2's hook leaves the difference standing (detectron2 issue 5398).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from ..runtime.distributed import average_bn_statistics


def recompute_bn_statistics(
    model: nn.Module, batches: Iterable[list[dict]], *, num_iterations: int
) -> bool:
    """Replace running means and variances by their averages over ``num_iterations`` training
    batches. Collective.

    Args:
        model: The detector, without DistributedDataParallel around it; left in training mode.
        batches: Training batches of this process, at least ``num_iterations``.
        num_iterations: Batches per process.

    Returns:
        False when the model has no BN layer that is trained, and nothing was done.
    """
    model.train()
    layers = get_bn_modules(model)
    if not layers:
        return False
    with torch.no_grad():
        update_bn_stats(model, itertools.islice(batches, num_iterations), num_iterations)
    average_bn_statistics(model)
    return True
