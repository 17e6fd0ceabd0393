"""End to end: the other keys of the mini-batch are the negatives, with gradient (Fig. 2a, Table 3).

Shapes in this module:
    N: images on this process    C: feature dimension    W: processes
Distributed:
    Every process calls ``forward``, with equal N.
Source:
    He et al. 2019, arXiv:1911.05722, Sec. 3.2 and 4.1, of which no code was released. Queries and
    keys share one encoder here ("f_q and f_k can be identical").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from ..models import add_mlp_head
from ..runtime.device import sent
from ..runtime.distributed import get_rank, get_world_size
from .info_nce import info_nce, unit
from .shuffle import draw_permutation, shuffle_rows
from .watch import describe_contrast


class EndToEnd(nn.Module):
    """InfoNCE over the mini-batch of all processes: K = W * N - 1 negatives, all with gradient.

    Micro-batches would change the negatives. Arguments and attributes as in
    :class:`~moco_transfer.pretrain.moco.MoCo`.
    """

    loss_scale = 1

    def __init__(
        self,
        encoder_factory: Callable[..., nn.Module],
        *,
        dim: int = 128,
        temperature: float = 0.07,
        mlp: bool = False,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        self.temperature, self.shuffle = temperature, shuffle
        self.measured: dict[str, Tensor] = {}
        self.encoder_q = encoder_factory(num_classes=dim)
        if mlp:
            add_mlp_head(self.encoder_q)

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, W * N), class 0 the positive, and targets; as ``MoCo.forward``."""
        q = unit(self.encoder_q(im_q))  # (N, C)
        k_all = self._encode_keys_shuffled(im_k)  # (W * N, C)
        own = torch.arange(len(q), device=q.device) + get_rank() * len(q)
        with torch.autocast(q.device.type, enabled=False):
            similarities = q @ k_all.T / self.temperature  # (N, W * N)
        others = torch.arange(len(k_all) - 1, device=q.device)
        others = others + (others >= own[:, None])  # the numbers of all keys but the own one
        l_pos = similarities.gather(1, own[:, None])  # (N, 1)
        l_neg = similarities.gather(1, others)  # (N, W * N - 1)
        logits = torch.cat([l_pos, l_neg], dim=1)
        self.measured = describe_contrast(q, logits, temperature=self.temperature)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def loss(self, views: list[Tensor], *_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of two views of images and its measures."""
        return info_nce(self(*views)[0]), self.measured

    def begin_step(self, index: Tensor) -> None:
        """Do nothing."""

    def end_step(self) -> None:
        """Do nothing."""

    def _encode_keys_shuffled(self, im_k: Tensor) -> Tensor:
        """Return the keys of all processes in the order of the images, with gradient."""
        permutation = None
        if self.shuffle:
            permutation = draw_permutation(len(im_k))
            im_k = shuffle_rows(im_k, permutation)
        k = unit(self.encoder_q(im_k))
        if get_world_size() > 1:
            k = torch.cat(all_gather(k))  # each process gets its gradient summed
        if permutation is None:
            return k
        # Place p holds image permutation[p]; the inverse gives the place of image i.
        return k[sent(torch.argsort(permutation), k.device)]
