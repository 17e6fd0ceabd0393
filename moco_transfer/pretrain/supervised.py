"""The supervised baseline: cross-entropy on class folders, with the encoder, data and loop of
contrastive pre-training.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Supervised(nn.Module):
    """A classifier whose trunk is the ``encoder_q`` of a checkpoint, as MoCo's is.

    Args:
        encoder_factory: Called with the number of classes, returns the encoder.
        num_classes: Number of class folders.
    """

    def __init__(self, encoder_factory: Callable[[int], nn.Module], *, num_classes: int) -> None:
        super().__init__()
        self.encoder_q = encoder_factory(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) in float32 for normalised RGB images (N, 3, H, W)."""
        return self.encoder_q(images).float()
