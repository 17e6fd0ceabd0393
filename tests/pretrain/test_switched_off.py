"""A part of the method that is switched off shows in training.

Images are patterns of 2x2 patches under noise as strong as they are; 120 steps of a small network
with three BN layers. On these numbers (seed 0) without groups: accuracy 92.7 % against 57.3 %;
momentum 0: loss 5.87 and rising against 2.69.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from moco_transfer.pretrain.info_nce import info_nce
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d

BATCH, STEPS, PERIOD = 32, 120, 40


class Net(nn.Module):
    def __init__(self, num_classes: int, *, group_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32, 64):
            convolution = nn.Conv2d(
                channels, width, 3, stride=1 if width == 16 else 2, padding=1, bias=False
            )
            layers += [convolution, SplitBatchNorm2d(width, group_size=group_size), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(self.body(x))


@functools.cache
def means_of(group_size: int, momentum: float) -> list[tuple[float, float]]:
    """Return the mean loss and (K+1)-way accuracy of each PERIOD steps."""
    torch.manual_seed(0)
    model = MoCo(
        lambda num_classes: Net(num_classes, group_size=group_size),
        dim=32,
        queue_size=1024,
        momentum=momentum,
        temperature=0.1,
    )
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.06, momentum=0.9, weight_decay=1e-4
    )
    rows = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        patterns = (
            torch.randn(BATCH, 3, 2, 2, generator=generator)
            .repeat_interleave(6, 2)
            .repeat_interleave(6, 3)
        )
        im_q, im_k = (
            patterns + torch.randn(BATCH, 3, 12, 12, generator=generator) for _ in range(2)
        )
        logits, _ = model(im_q, im_k)
        loss = info_nce(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append((loss.item(), model.measured["contrast_acc1"].item()))
    return [
        tuple(torch.tensor(rows[i : i + PERIOD]).mean(0).tolist()) for i in range(0, STEPS, PERIOD)
    ]


def test_without_bn_groups_the_pretext_task_leaks():
    grouped, leaking = means_of(8, 0.99), means_of(0, 0.99)
    assert (
        leaking[-1][1] > grouped[-1][1] + 15
    )  # percent; Fig. A.1 of the paper: above 99.9 % without, 96 to 97 % with ShuffleBN


def test_without_momentum_it_does_not_converge():
    slow, none = means_of(8, 0.99), means_of(8, 0.0)
    assert slow[-1][0] < slow[0][0] - 1.0
    assert (
        none[-1][0] > none[0][0] + 0.3
    )  # the loss rises; Sec. 4.1 of the paper: "oscillates and fails to converge"
    assert none[-1][0] > slow[-1][0] + 2.0
