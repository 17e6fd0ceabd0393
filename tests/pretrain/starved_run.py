"""Run by tests: ``pretrain`` whose images, for training or for the kNN monitor, do not come for
hours from the second epoch on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small_runs import SmallEncoder, labelled_images_end, training_images_end

from moco_transfer.cli.main import main as run_program
from moco_transfer.pretrain import build


def main(kind: str, mark: str, overrides: list[str]) -> int:
    """Run with a config.

    Args:
        kind: ``training`` or ``monitor``.
        mark: File that is made when the wait begins.
        overrides: KEY VALUE words.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_encoder", SmallEncoder)
        if kind == "training":
            training_images_end(patch, epoch=1, rank=-1, told=False, mark=Path(mark))
        else:
            labelled_images_end(patch, told=False, mark=Path(mark))
        return run_program(["pretrain", "--config-file", "demo_moco", *overrides])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
