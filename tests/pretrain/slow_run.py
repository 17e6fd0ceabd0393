"""Run by tests: ``pretrain`` whose images, for training or for the kNN monitor, come slowly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small_runs import SmallEncoder, told_during_knn, told_during_training

from moco_transfer.cli.main import main as run_program
from moco_transfer.pretrain import plan


def main(kind: str, mark: str, overrides: list[str]) -> int:
    """Run with a config.

    Args:
        kind: ``training`` or ``monitor``.
        mark: File that is made when the first slow image is read.
        overrides: KEY VALUE words.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "build_encoder", SmallEncoder)
        if kind == "training":
            told_during_training(patch, epoch=1, rank=-1, seconds=0.5, mark=Path(mark))
        else:
            told_during_knn(patch, seconds=0.1, mark=Path(mark))
        return run_program(["pretrain", "--config-file", "demo_moco", *overrides])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
