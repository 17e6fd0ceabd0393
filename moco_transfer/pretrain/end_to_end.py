"""End to end: gradients through queries and keys, the other keys of the mini-batch as negatives
(paper Fig. 2a, Fig. 3, Table 3).

Shapes in this module:
    N: images on this process    C: feature dimension    W: world size
Distributed:
    ``EndToEnd.forward`` is collective in training: every process calls it, with equal N.
Source:
    He et al. 2019, arXiv:1911.05722, Sec. 3.2 and 4.1: the same pretext task and InfoNCE, ShuffleBN
    as in MoCo. The authors never released code for it. Queries and keys share one encoder here
    ("f_q and f_k can be identical").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from ..models import add_mlp_head
from ..runtime.distributed import get_rank, get_world_size
from ..runtime.transfer import sent
from .measures import describe_contrast
from .moco import unit
from .shuffle import draw_permutation, shuffle_rows


class EndToEnd(nn.Module):
    """InfoNCE over the mini-batch of all processes: K = W * N - 1 negatives, all keys fresh, all
    with gradient.

    Without BN, W processes with N images each compute what one process with W * N images computes,
    gradients included (averaged over processes, as DistributedDataParallel does). Micro-batches
    would not: they change the negatives.

    Args:
        encoder_factory: Called with the number of outputs, returns an encoder whose last layer is
            ``fc``.
        dim: C.
        temperature: Softmax temperature T > 0.
        mlp: Two-layer head.
        shuffle: Permute the keys' batch over all processes before the encoder (ShuffleBN).

    Attributes:
        loss_scale, measured: As in :class:`MoCo`.
        num_negatives: K of the last step.
    """

    loss_scale = 1.0

    def __init__(
        self,
        encoder_factory: Callable[[int], nn.Module],
        *,
        dim: int = 128,
        temperature: float = 0.07,
        mlp: bool = False,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        if dim < 1 or temperature <= 0:
            raise ValueError(f"dim and temperature must be positive, got {dim}, {temperature}.")
        self.temperature = temperature
        self.shuffle = shuffle
        self.num_negatives = 0
        self.measured: dict[str, Tensor] = {}
        self.encoder_q = encoder_factory(dim)
        if mlp:
            add_mlp_head(self.encoder_q)

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, W * N), class 0 the positive, and targets (N,) of zeros; float32 under
        autocast too.

        Args:
            im_q: Query images (N, 3, H, W), normalised RGB.
            im_k: Key images (N, 3, H, W), another view of the same images in the same order.
        """
        q = unit(self.encoder_q(im_q))  # (N, C)
        k_all = self._keys(im_k)  # (W * N, C), with gradient
        own = torch.arange(len(q), device=q.device) + (get_rank() * len(q) if self.training else 0)
        with torch.autocast(q.device.type, enabled=False):
            similarities = q @ k_all.T / self.temperature  # (N, W * N)
        is_negative = torch.ones_like(similarities, dtype=torch.bool)
        is_negative[torch.arange(len(q)), own] = False
        l_pos = similarities.gather(1, own[:, None])
        logits = torch.cat([l_pos, similarities[is_negative].view(len(q), -1)], dim=1)
        self.num_negatives = logits.shape[1] - 1
        self.measured = describe_contrast(q, logits, temperature=self.temperature)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def _keys(self, im_k: Tensor) -> Tensor:
        """Return the keys of all processes in their original order, with gradient to the process
        that encoded each.
        """
        if not self.training:
            return unit(self.encoder_q(im_k))
        if not self.shuffle:
            return _gather_with_gradient(unit(self.encoder_q(im_k)))
        permutation = draw_permutation(len(im_k))
        shuffled = _gather_with_gradient(unit(self.encoder_q(shuffle_rows(im_k, permutation))))
        # Place p holds image permutation[p]; the inverse tells where image i went.
        return shuffled[sent(torch.argsort(permutation), shuffled.device)]


def _gather_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all processes (W * N, C); the gradient of each goes back, summed, to its
    own process. Collective.
    """
    return torch.cat(all_gather(rows)) if get_world_size() > 1 else rows
