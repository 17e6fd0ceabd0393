"""SplitBN: batch statistics over virtual groups of images on one device.

MoCo needs BN statistics that do not tell a query which key is its own (Sec. 3.3). The paper
computes them per GPU, 32 images each, and shuffles the keys among the GPUs. On one device the
    groups are virtual: a batch is cut into groups, each group is
normalised by its own statistics, and shuffling the keys' batch before the cut does what shuffling
among GPUs does. Shuffling alone, without the cut, would change nothing, because one group's
statistics do not depend on its order.

Source:
    Behaviour of SplitBatchNorm in the official CIFAR-10 demo (facebookresearch/moco branch
    colab-notebook @f736491): the running statistics move once per batch, by the mean of the groups'
    statistics. Difference: groups are consecutive rows here, every n-th row there, which is the
        same for a shuffled batch, and for queries a matter of which images meet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def num_groups(batch_size: int, group_size: int) -> int:
    """Return into how many groups of nearly equal size a batch is cut; 1 when ``group_size`` is 0
    or not reached twice.
    """
    return max(1, round(batch_size / group_size)) if group_size > 0 else 1


def _sizes(batch_size: int, groups: int) -> list[int]:
    # Given to split, whose gradient is one concatenation; tensor_split's would be, for each group,
    # a tensor of the whole batch.
    small, larger = divmod(batch_size, groups)
    return [small + (i < larger) for i in range(groups)]


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of groups of ``group_size`` images.

    Same state-dict keys as BatchNorm2d. In evaluation it is BatchNorm2d.

    Args:
        num_features: Channels.
        group_size: Images per group; a batch that it does not divide is cut into groups whose sizes
            differ by at most 1. 0: one group.
        eps, momentum: As in BatchNorm2d.
    """

    def __init__(
        self, num_features: int, *, group_size: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); C = num_features."""
        groups = num_groups(len(x), self.group_size)
        if not self.training or groups == 1:
            return super().forward(x)
        means = [self.running_mean.clone() for _ in range(groups)]
        variances = [self.running_var.clone() for _ in range(groups)]
        parts = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(
                x.split(_sizes(len(x), groups)), means, variances, strict=True
            )
        ]
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
            self.num_batches_tracked += 1
        return torch.cat(parts)

    def extra_repr(self) -> str:
        """Show the group size beside BatchNorm2d's own fields."""
        return f"{super().extra_repr()}, group_size={self.group_size}"
