"""TRAIN.COMPILE changes the losses by no more than rounding.

Not seen red yet: compiling takes minutes.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from moco_transfer.config import load_pretrain_config
from moco_transfer.pretrain import build
from moco_transfer.pretrain.build_data import plan_run
from moco_transfer.pretrain.split_batch_norm import SplitBatchNorm2d
from moco_transfer.pretrain.trainer import step

pytestmark = [
    pytest.mark.slow,  # the compiler takes a minute and more on a busy machine
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
    ),
]


class NoImages:
    """A source of which no image is read."""

    class_names = ()

    def __len__(self) -> int:
        return 1000


class Small(nn.Module):
    """A convolution, groups of batch statistics, and a linear layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = SplitBatchNorm2d(8, group_size=4)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def losses(compiled: bool) -> list[float]:
    words = [
        "DATA.IMAGE_SIZE",
        "16",
        "DATA.BATCH_SIZE_TOTAL",
        "8",
        "MOCO.QUEUE_SIZE",
        "24",
        "TRAIN.DEVICE",
        "cpu",
        "SOLVER.BASE_LR",
        "1.0",
    ]
    cfg = load_pretrain_config("moco_v2_R_50_200ep", [*words, "TRAIN.COMPILE", str(compiled)])
    run = build.build_run(
        cfg, NoImages(), plan_run(cfg, NoImages(), start_iteration=0), torch.device("cpu")
    )
    run.wrapped.train()
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
    monkeypatch.setattr(build, "_encoder", lambda arch, norm_layer, outputs: Small(outputs))
    torch._dynamo.reset()
    eager, compiled = losses(False), losses(True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled
    assert compiled == pytest.approx(eager, rel=1e-4)
