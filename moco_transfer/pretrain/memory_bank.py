"""The memory bank: contrast a query against stored features of all images (paper Fig. 2b, Fig. 3,
Table 3).

Shapes in this module:
    N: images on this process    C: feature dimension    K: negatives    S: images in the data
        W: world size
Distributed:
    ``MemoryBank.forward`` is collective in training: every process calls it, with equal N.
Source:
    He et al. 2019, arXiv:1911.05722, Sec. 3.2 and 4.1 (InfoNCE, K negatives sampled per
    mini-batch); Wu et al. 2018, arXiv:1805.01978, for the momentum on the representation. The
    authors never released code for this comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..models import add_mlp_head
from ..runtime.distributed import all_gather_rows, get_world_size
from .info_nce import Negatives, contrastive_logits
from .measures import describe_contrast
from .moco import unit
from .queue import new_queue


class MemoryBank(nn.Module):
    """InfoNCE whose keys are a bank's features of past epochs: one encoder, no key pass, no
    gradient to keys.

    An image's positive is the bank's feature of the same image, which then moves towards the
    query. Negatives are drawn with replacement from the other images of the bank, one draw for
    the whole mini-batch; with fewer than K others, all of them. An image that is in the batch
    twice (one took the place of one that cannot be read) moves once, towards the later of its
    queries.

    Without BN, W processes with N images each compute what one process with W * N images computes:
        draw, bank and the mean of the
    gradients; and so do micro-batches, when each is told the images of the whole step. With BN
    they do not, because statistics are those of each process's images or of each micro-batch, and
    in reduced precision sums are rounded in another order.

    Args:
        encoder_factory: Called with the number of outputs, returns an encoder whose last layer is
            ``fc``.
        num_images: S, images in the data.
        dim: C.
        num_negatives: K.
        momentum: Share of the old feature kept when an image is seen (Wu et al.: 0.5).
        temperature: Softmax temperature T > 0.
        mlp: Two-layer head.

    Attributes:
        bank: Buffer (S, C), unit rows, persistent: a resumed run goes on with its keys.
        loss_scale, measured: As in :class:`MoCo`.
        num_negatives: K of the last step: as asked for, or the images outside the batch where
            those are fewer.

    Raises:
        ValueError: If momentum is outside [0, 1], there are fewer than two images, or a size is
            not positive.
    """

    loss_scale = 1.0

    def __init__(
        self,
        encoder_factory: Callable[[int], nn.Module],
        *,
        num_images: int,
        dim: int = 128,
        num_negatives: int = 65536,
        momentum: float = 0.5,
        temperature: float = 0.07,
        mlp: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}.")
        if num_images < 2 or dim < 1 or num_negatives < 1 or temperature <= 0:
            raise ValueError(
                "num_images must be at least 2 and dim, num_negatives and temperature positive, "
                f"got {num_images}, {dim}, {num_negatives}, {temperature}."
            )
        self.momentum = momentum
        self.temperature = temperature
        self._wanted_negatives = num_negatives
        self.num_negatives = min(num_negatives, num_images - 1)
        self.measured: dict[str, Tensor] = {}
        self.encoder_q = encoder_factory(dim)
        if mlp:
            add_mlp_head(self.encoder_q)
        self.register_buffer("bank", new_queue(dim, num_images).T.contiguous())
        self._waiting: list[
            tuple[Tensor, Tensor]
        ] = []  # numbers (W, n) and queries (W, n, C) of the micro-batches so far
        self._drawn: Tensor | None = None  # the step's negatives

    def forward(
        self,
        im_q: Tensor,
        index: Tensor,
        micro_batch: int = 0,
        num_micro_batches: int = 1,
        step_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of the pretext task; in training also moves the bank's features
        of these images.

        A step may come in micro-batches: negatives are drawn before the first, the bank moves after
        the last.

        Args:
            im_q: Images (N, 3, H, W), normalised RGB.
            index: int64 (N,), each image's number in the data, [0, S).
            micro_batch: Number of this part of the step, 0-based.
            num_micro_batches: Parts of the step.
            step_index: ``index`` of all parts of the step, none of which is to be a negative; None
                for ``index`` itself. Read with the first part.

        Returns:
            Logits (N, 1 + K'), float32 under autocast too, and targets (N,) of zeros. K' is K, or
            the number of other images.
        """
        q = unit(self.encoder_q(im_q))  # (N, C)
        if micro_batch == 0:
            self._waiting = []  # of a step that did not come to its end
            excluded = index if step_index is None else step_index
            self._drawn = self._draw(all_gather_rows(excluded) if self.training else excluded)
        k, negatives = self.bank[index], self.bank[self._drawn].T  # (N, C), (C, K)
        with torch.autocast(q.device.type, enabled=False):
            logits = contrastive_logits(q, k, Negatives(negatives), temperature=self.temperature)
        self.num_negatives = logits.shape[1] - 1
        self.measured = describe_contrast(q, logits, temperature=self.temperature)
        if self.training:
            self._waiting.append(
                tuple(
                    all_gather_rows(rows).unflatten(0, (get_world_size(), -1))
                    for rows in (index, q.detach())
                )
            )
            if micro_batch == num_micro_batches - 1:
                self._move_bank()
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    @torch.no_grad()
    def _draw(self, own: Tensor) -> Tensor:
        """Return K numbers of images that are not among ``own``, the same on every process.

        Collective.
        """
        is_other = torch.ones(len(self.bank), dtype=torch.bool, device=own.device)
        is_other[own] = False
        others = is_other.nonzero().squeeze(1)
        if len(others) <= self._wanted_negatives:
            if not len(others):
                raise ValueError(
                    f"All {len(self.bank)} images of the bank are in one batch: no negatives are"
                    " left. Use a smaller batch."
                )
            return others
        # Drawn on the CPU, whose generator is seeded per iteration.
        draw = torch.randint(len(others), (self._wanted_negatives,)).to(own.device)
        if get_world_size() > 1:
            dist.broadcast(draw, src=0)
        return others[draw]

    @torch.no_grad()
    def _move_bank(self) -> None:
        # (W, all micro-batches' n, ...) -> rank after rank, as one batch would be.
        index, q = (
            torch.cat(parts, dim=1).flatten(0, 1) for parts in zip(*self._waiting, strict=True)
        )
        moved = unit(self.momentum * self.bank[index] + (1 - self.momentum) * q).to(self.bank.dtype)
        # Of a number that is there twice every place writes what the last would: a GPU keeps no
        # order among them.
        places = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, places, -1).amax(dim=1)
        self.bank[index] = moved[last]
        self._waiting = []
