"""The memory bank: contrast a query with stored features of all images (paper Fig. 2b, Table 3).

Shapes in this module:
    N: images on this process    C: feature dimension    K: negatives    S: images in the data
Distributed:
    Every process calls ``forward``, with equal N.
Source:
    He et al. 2019, arXiv:1911.05722, Sec. 3.2 and 4.1 (InfoNCE, K negatives per mini-batch), of
    which no code was released; Wu et al. 2018, arXiv:1805.01978 (momentum on the representation).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import add_mlp_head
from ..runtime.device import sent
from ..runtime.distributed import all_gather_rows
from .info_nce import contrastive_logits, info_nce, unit
from .watch import describe_contrast


class MemoryBank(nn.Module):
    """InfoNCE whose keys are the bank's features: one encoder, no key pass, no gradient to keys.

    An image's positive is the bank's feature of the same image, which then moves towards the
    query. Negatives are drawn with replacement from the images outside the step's batch, one draw
    for the whole step; with K or fewer of them, all are taken. An image that is in the batch twice
    moves once, towards the later of its queries.

    As in :class:`~moco_transfer.pretrain.moco.MoCo`, and: ``momentum``, the share of the old
    feature that is kept; ``bank`` (S, C), unit rows.
    """

    bank: Tensor
    loss_scale = 1

    def __init__(
        self,
        encoder_factory: Callable[..., nn.Module],
        *,
        num_images: int,
        dim: int = 128,
        num_negatives: int = 65536,
        momentum: float = 0.5,
        temperature: float = 0.07,
        mlp: bool = False,
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.num_negatives = num_negatives
        self.measured: dict[str, Tensor] = {}
        self.encoder_q = encoder_factory(num_classes=dim)
        if mlp:
            add_mlp_head(self.encoder_q)
        bank = F.normalize(torch.randn(dim, num_images), dim=0).T.contiguous()
        self.register_buffer("bank", bank)
        self._drawn = torch.empty(0, dtype=torch.int64)  # the step's negatives
        self._seen: list[tuple[Tensor, Tensor]] = []  # the step's numbers (N,), queries (N, C)

    def forward(self, im_q: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, 1 + K) and targets (N,) of zeros, between begin_step and end_step.

        ``im_q``: (N, 3, H, W), normalised RGB. ``index``: int64 (N,), their numbers in the data.
        """
        q = unit(self.encoder_q(im_q))  # (N, C)
        k, negatives = self.bank[index], self.bank[self._drawn].T  # (N, C), (C, K)
        logits = contrastive_logits(q, k, negatives, temperature=self.temperature)
        self._seen.append((index, q.detach()))
        self.measured = describe_contrast(q, logits, temperature=self.temperature)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def loss(
        self, views: list[Tensor], labels: Tensor, index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of (a micro-batch of) images and its measures."""
        return info_nce(self(views[0], index)[0]), self.measured

    @torch.no_grad()
    def begin_step(self, index: Tensor) -> None:
        """Draw the step's negatives, equal on every process; ``index``: all own images' numbers."""
        is_other = torch.ones(len(self.bank), dtype=torch.bool, device=index.device)
        is_other[all_gather_rows(index)] = False
        others = is_other.nonzero().squeeze(1)
        if len(others) > self.num_negatives:
            # On the CPU, whose generator all processes seed equally for each iteration.
            draw = torch.randint(len(others), (self.num_negatives,))
            others = others[sent(draw, index.device)]
        self._drawn, self._seen = others, []

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the bank's features of the step's images; after the last loss of the step."""
        own = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        index, q = map(all_gather_rows, own)  # rank after rank
        moved = unit(self.momentum * self.bank[index] + (1 - self.momentum) * q).to(self.bank.dtype)
        # Equal numbers all write what the last of them would: a GPU keeps no order among them.
        places = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, places, -1).amax(dim=1)
        self.bank[index] = moved[last]
