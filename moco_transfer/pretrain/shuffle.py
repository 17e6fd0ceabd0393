"""ShuffleBN: the keys' batch is permuted over all processes before the key encoder sees it, and put
back after.

Shapes in this module:
    N: images on this process    W: world size    C: feature dimension
Distributed:
    All three functions are collective: every process calls them, with equal N.
    The permutation is drawn, agreed on and cut into messages on the CPU, over a group of its own
    where the processes' is NCCL's: read back from a GPU, it would make the host wait in each
    iteration for all that the GPU has to do.
Source:
    arXiv:1911.05722 Sec. 3.3. Difference from facebookresearch/moco@7397dfe: images go only where
    they are needed (all-to-all), instead of all of them to every process (all-gather), and one
    gather of features serves both the unshuffling and the queue.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..runtime.distributed import all_gather_rows, cpu_group, get_rank, get_world_size
from ..runtime.transfer import sent


def draw_permutation(batch_size: int) -> Tensor:
    """Return a random permutation of the W * N images of all processes, the same on every process.
    Collective.

    Args:
        batch_size: N.

    Returns:
        int64 (W * N,), on the CPU: entry p is the image that goes to place p; place p belongs to
        process p // N.
    """
    permutation = torch.randperm(
        batch_size * get_world_size()
    )  # from the generator that the trainer seeds for each iteration
    if get_world_size() > 1:
        dist.broadcast(permutation, src=0, group=cpu_group())
    return permutation


def shuffle_rows(rows: Tensor, permutation: Tensor) -> Tensor:
    """Send each row to the place that the permutation gives it. Collective.

    Args:
        rows: (N, ...) this process's rows.
        permutation: (W * N,) from :func:`draw_permutation`, on the CPU.

    Returns:
        (N, ...): the rows of places rank * N ... rank * N + N - 1.
    """
    world_size, rank, n = get_world_size(), get_rank(), len(rows)
    if world_size == 1:
        return rows[sent(permutation, rows.device)]
    by_place = permutation.view(world_size, n)  # row r: the images that process r gets
    owner = by_place // n
    outgoing = [by_place[r][owner[r] == rank] - rank * n for r in range(world_size)]
    send = rows[sent(torch.cat(outgoing), rows.device)].contiguous()
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)
    from_rank = torch.bincount(owner[rank], minlength=world_size).tolist()
    dist.all_to_all_single(
        received, send, output_split_sizes=from_rank, input_split_sizes=[len(o) for o in outgoing]
    )
    # What arrives is sorted by sender, and by place within a sender; a stable sort of the senders
    # tells the places.
    shuffled = torch.empty_like(received)
    shuffled[sent(torch.argsort(owner[rank], stable=True), rows.device)] = received
    return shuffled


def gather_unshuffled(keys: Tensor, permutation: Tensor) -> Tensor:
    """Undo :func:`shuffle_rows` on the features. Collective, without gradient.

    Args:
        keys: (N, C) features of this process's places.
        permutation: The permutation the images were shuffled by, on the CPU or with the keys.

    Returns:
        (W * N, C): features of all images in their original order, equal on every process.
    """
    gathered = all_gather_rows(keys)
    original = torch.empty_like(gathered)
    original[sent(permutation, keys.device)] = gathered
    return original
