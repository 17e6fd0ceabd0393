"""ShuffleBN and SplitBN: BN statistics that do not tell a query which key is its own.

The paper computes them per GPU, 32 images each, and shuffles the keys among the GPUs (ShuffleBN).
On one device a batch is cut into groups, each normalised by its own statistics, and the keys' batch
is shuffled before the cut (SplitBN); without the cut, shuffling would change nothing.

Shapes in this module:
    N: images on this process    W: processes    C: feature dimension
Distributed:
    "Collective" functions are called by every process, with equal N. The permutation stays on the
    CPU: read back from a GPU, it would make the host wait. Each process draws it for itself, as all
    are seeded equally for each iteration; ``run.save`` checks that they drew the same.
Source:
    arXiv:1911.05722 Sec. 3.3; facebookresearch/moco@7397dfe, but images are sent by all-to-all.
    SplitBN: the official CIFAR-10 demo (branch colab-notebook @f736491); groups are consecutive
    rows here, every n-th row there.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..runtime.device import sent
from ..runtime.distributed import all_gather_rows, get_rank, get_world_size
from .split_norm.operator import split_batch_norm


def draw_permutation(batch_size: int) -> Tensor:
    """Return a random permutation of the images of all processes, equal on each.

    int64 (W * N,), on the CPU: entry p is the image that goes to place p, of process p // N.
    """
    return torch.randperm(batch_size * get_world_size())


def shuffle_rows(rows: Tensor, permutation: Tensor) -> Tensor:
    """Send each row (N, ...) to its place; return those of this process's places, in the rows'
    memory format. Collective.
    """
    world_size, rank, n = get_world_size(), get_rank(), len(rows)
    if world_size == 1:
        return rows[sent(permutation, rows.device)]
    channels_last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not rows.is_contiguous():  # dense in this order of dimensions
        return shuffle_rows(rows.permute(0, 2, 3, 1), permutation).permute(0, 3, 1, 2)
    by_place = permutation.view(world_size, n)  # row r: the images that process r gets
    owner = by_place // n
    outgoing = [by_place[r][owner[r] == rank] - rank * n for r in range(world_size)]
    send = rows[sent(torch.cat(outgoing), rows.device)].contiguous()
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)
    from_rank = torch.bincount(owner[rank], minlength=world_size).tolist()
    dist.all_to_all_single(
        received, send, output_split_sizes=from_rank, input_split_sizes=[len(o) for o in outgoing]
    )
    # Rows arrive by sender, by place within one: a stable sort of the senders gives the places.
    shuffled = torch.empty_like(received)
    shuffled[sent(torch.argsort(owner[rank], stable=True), rows.device)] = received
    return shuffled


def gather_unshuffled(keys: Tensor, permutation: Tensor) -> Tensor:
    """Return all keys (W * N, C) in the images' order; takes this process's (N, C). Collective."""
    gathered = all_gather_rows(keys)
    original = torch.empty_like(gathered)
    original[sent(permutation, keys.device)] = gathered
    return original


def num_groups(batch_size: int, group_size: int) -> int:
    """Return into how many groups of about ``group_size`` a batch is cut; 1 where that is 0."""
    return max(1, round(batch_size / group_size)) if group_size > 0 else 1


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of groups of ``group_size`` images.

    Group sizes differ by at most 1; 0 makes one group. The running statistics move once per batch,
    by the mean over the groups.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(
        self, num_features: int, *, group_size: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, num_features, H, W)."""
        groups = num_groups(len(x), self.group_size)
        if not self.training or groups == 1:
            return super().forward(x)
        y, _, _, batch = split_batch_norm(x, self.weight, self.bias, groups, self.eps)
        with torch.no_grad():
            running = [self.running_mean, self.running_var]
            torch._foreach_lerp_(running, list(batch), self.momentum)
            self.num_batches_tracked += 1
        return y
