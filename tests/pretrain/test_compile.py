"""TRAIN.COMPILE changes the losses by no more than rounding.

Not seen red yet: compiling takes minutes.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from moco_transfer.pretrain import plan
from moco_transfer.pretrain.run import step
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d

from .small_runs import run_without_images

pytestmark = [
    pytest.mark.slow,  # the compiler takes a minute and more on a busy machine
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
    ),
]


class Small(nn.Module):
    """A convolution, groups of batch statistics, and a linear layer."""

    def __init__(self, arch: str, *, num_classes: int, norm_layer, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, stride=2, bias=False)
        self.norm = SplitBatchNorm2d(8, group_size=4)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def losses(compiled: bool) -> list[float]:
    settings = {
        "DATA.IMAGE_SIZE": 16,
        "DATA.BATCH_SIZE_TOTAL": 8,
        "MOCO.QUEUE_SIZE": 24,
        "TRAIN.DEVICE": "cpu",
        "TRAIN.PRECISION": "fp32",
        "SOLVER.BASE_LR": 1.0,
        "TRAIN.COMPILE": compiled,
    }
    run = run_without_images("moco_v2_R_50_200ep", settings)
    generator, label = torch.Generator().manual_seed(0), torch.zeros(8, dtype=torch.int64)
    found = []
    for iteration in range(4):
        views = torch.randint(
            0, 256, (2, 8, 16, 16, 3), dtype=torch.uint8, generator=generator
        ).permute(0, 1, 4, 2, 3)
        torch.manual_seed(iteration)
        found.append(float(step(run, {"views": views, "label": label, "index": label})["loss"]))
    return found


def test_compile__same_losses_within_rounding(monkeypatch):
    monkeypatch.setattr(plan, "build_encoder", Small)
    torch._dynamo.reset()
    eager, compiled = losses(False), losses(True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled
    assert compiled == pytest.approx(eager, rel=1e-4)
