"""The supervised baseline: cross-entropy on classes, with the encoder, data and loop of MoCo."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Supervised(nn.Module):
    """A classifier; its trunk is the ``encoder_q`` of a checkpoint, as MoCo's is."""

    loss_scale = 1

    def __init__(self, encoder_factory: Callable[..., nn.Module], *, num_classes: int) -> None:
        super().__init__()
        self.encoder_q = encoder_factory(num_classes=num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) in float32 for normalised RGB images (N, 3, H, W)."""
        return self.encoder_q(images).float()

    def loss(
        self, views: list[Tensor], labels: Tensor, *_: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of (a micro-batch of) images and ``acc1``, 0-100."""
        logits = self(views[0])
        acc1 = (logits.detach().argmax(1) == labels).float().mean() * 100
        return F.cross_entropy(logits, labels), {"acc1": acc1}

    def begin_step(self, index: Tensor) -> None:
        """Do nothing."""

    def end_step(self) -> None:
        """Do nothing."""
