"""The case on which the official MoCo and ours are compared: the same weights, the same batches,
float64, 20 steps of SGD.

float64, so that twenty steps do not turn another machine's rounding into a difference.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn

BATCH, QUEUE_SIZE, STEPS, SIDE = 8, 32, 20, 16
VARIANTS = {"v1": {"mlp": False, "temperature": 0.07}, "v2": {"mlp": True, "temperature": 0.2}}


class SmallNet(nn.Module):
    """Two convolutions with BN and ``fc``: official MoCo takes any encoder that has one.

    Small, and with 256 values and more per BN statistic: with the 4 of a ResNet's last stage on a
        tiny image, rounding alone grows to 1e-2
    within twenty steps.
    """

    def __init__(self, num_classes: int = 128) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = (
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Overwrite all parameters and the queue by numbers that depend on names alone; both encoders
    start equal.
    """
    for name, value in [*model.named_parameters(), ("queue", model.queue)]:
        rng = np.random.default_rng(zlib.crc32(name.replace("encoder_k", "encoder_q").encode()))
        if value.dim() == 1:  # BN weights near 1, biases near 0
            filled = rng.normal(1.0 if name.endswith("weight") else 0.0, 0.1, value.shape)
        else:
            filled = rng.normal(0.0, (2 / np.prod(value.shape[1:])) ** 0.5, value.shape)
        value.copy_(torch.from_numpy(filled))
    model.queue.copy_(nn.functional.normalize(model.queue, dim=0))


def batch_of(step: int) -> torch.Tensor:
    """Return both views (2, BATCH, 3, SIDE, SIDE) of one step, float64: an image's own pattern
    plus noise.
    """
    rng = np.random.default_rng(step)
    images = rng.normal(size=(1, BATCH, 3, 4, 4)).repeat(SIDE // 4, 3).repeat(SIDE // 4, 4)
    return torch.from_numpy(images + 0.3 * rng.normal(size=(2, BATCH, 3, SIDE, SIDE)))


def run_steps(model: nn.Module, forward, loss_of, *, rank: int, world_size: int) -> list[float]:
    """Train for STEPS steps; returns this process's losses.

    Args:
        model: Official MoCo or ours.
        forward: The model, or its DistributedDataParallel.
        loss_of: (logits, target) -> loss.
        rank: This process.
        world_size: Number of processes; each has its part of the batch.
    """
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.03, momentum=0.9, weight_decay=1e-4
    )
    part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)  # the permutation of ShuffleBN is the next draw
        logits, target = forward(*batch_of(step)[:, part])
        loss = loss_of(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
