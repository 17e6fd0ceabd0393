"""Run by tests under torchrun: ``pretrain`` with a small network, whose batches take SECONDS."""

from __future__ import annotations

import sys

import pytest
import torch
from small_runs import EncoderWithoutBN, told_during_training

from moco_transfer.cli.main import main as run_program
from moco_transfer.pretrain import plan


def main(seconds: float, overrides: list[str]) -> int:
    """Continue the run of a config, or begin it, as torchrun's restarts need it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "build_encoder", EncoderWithoutBN)
        if seconds:
            told_during_training(patch, epoch=0, rank=-1, seconds=seconds)
        return run_program(["pretrain", "--config-file", "demo_moco", "--resume", *overrides])


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
