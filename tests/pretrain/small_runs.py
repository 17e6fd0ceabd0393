"""Runs of a second each, with a network of a few hundred weights, that can be told to stop."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from moco_transfer.config import load_pretrain_config
from moco_transfer.data.views import labelled, view_batch
from moco_transfer.pretrain.plan import plan_pretrain
from moco_transfer.pretrain.run import Pretraining, build_run
from moco_transfer.pretrain.run import pretrain as run_plan
from moco_transfer.runtime.checkpoint import load_checkpoint
from moco_transfer.runtime.distributed import get_rank
from moco_transfer.runtime.log import set_up_logging

# 24 images: three iterations an epoch, nine in all, and a log period that ends with no epoch
# before the last.
SETTINGS = {
    "DATA.IMAGE_SIZE": 16,
    "DATA.BATCH_SIZE_TOTAL": 8,
    "DATA.NUM_WORKERS": 0,
    "MOCO.QUEUE_SIZE": 20,
    "MOCO.BN_GROUP_SIZE": 4,
    "SOLVER.EPOCHS": 3,
    "SOLVER.STEPS": "()",
    "SOLVER.BASE_LR": 0.06,
    "SOLVER.SCHEDULE": "cosine",
    "TRAIN.LOG_PERIOD": 4,
    "TRAIN.CHECKPOINT_PERIOD_EPOCHS": 100,
    "TRAIN.KEEP_CHECKPOINTS": 0,
    "TRAIN.PRECISION": "fp32",
    "LOGGERS": "()",
    "KNN.K": 5,
}
NOT_OF_THE_MATHEMATICS = ("images_per_sec", "data_wait_share", "time", "knn_sec")


class SmallEncoder(nn.Module):
    """In place of a ResNet, whose checkpoints take seconds to write."""

    def __init__(
        self, arch: str, *, num_classes: int, norm_layer=nn.BatchNorm2d, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, stride=2, bias=False)
        self.bn1 = norm_layer(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn1(self.conv1(images)).relu().mean((2, 3)))


class EncoderWithoutBN(SmallEncoder):
    """One whose result does not depend on how images are dealt out to processes."""

    def __init__(
        self, arch: str, *, num_classes: int, norm_layer=None, in_channels: int = 3
    ) -> None:
        super().__init__(
            arch,
            num_classes=num_classes,
            norm_layer=lambda channels: nn.Identity(),
            in_channels=in_channels,
        )


class NoImages:
    """A source of which no image is read."""

    class_names = ()
    pixel_change = ""

    def __len__(self) -> int:
        return 1000

    def describe(self) -> str:
        return "no images"


def run_without_images(config_file: str, settings: dict[str, object]) -> Pretraining:
    """Build a run of a config and put it into training mode."""
    overrides = [str(word) for pair in settings.items() for word in pair]
    run = build_run(plan_pretrain(load_pretrain_config(config_file, overrides), source=NoImages()))
    run.model.train()
    return run


def words(pool: Path, out: Path, **changes: object) -> list[str]:
    settings = (
        SETTINGS
        | {"DATA.ROOT": pool, "OUTPUT_DIR": out}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return [str(word) for pair in settings.items() for word in pair]


def config(pool: Path, out: Path, **changes: object):
    return load_pretrain_config("demo_moco", words(pool, out, **changes))


def pretrain(cfg, *, log: bool = False, **options) -> Pretraining | None:
    """Plan and run, as the command line does; ``log``: also into the run's folder."""
    plan = plan_pretrain(cfg, **options)
    if log:
        set_up_logging(plan.output_dir)
    return run_plan(plan)


def rows_of(out: Path) -> list[dict]:
    """Return what metrics.json holds, without what depends on the machine's mood."""
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name not in NOT_OF_THE_MATHEMATICS}
        for row in rows
    ]


def last_state(out: Path) -> dict:
    return load_checkpoint(out / (out / "last_checkpoint").read_text().strip())


def assert_same_state(a: dict, b: dict) -> None:
    assert a["iteration"] == b["iteration"] and a["state_dict"].keys() == b["state_dict"].keys()
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    for mine, theirs in zip(
        a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def told_during_training(
    monkeypatch, *, epoch: int, rank: int = 0, seconds: float = 0.0, mark: Path | None = None
) -> None:
    """From an epoch on, SIGTERM comes while a process reads images for training.

    Args:
        monkeypatch: Pytest's.
        epoch: 0-based.
        rank: The process; -1 for all.
        seconds: In place of the signal, each batch takes so long.
        mark: A file to be made then.
    """
    read = view_batch.Views.__getitem__

    def reading(self, places):
        if places[0][0] >= epoch and rank in (-1, get_rank()):
            _tell(seconds, mark)
        return read(self, places)

    monkeypatch.setattr(view_batch.Views, "__getitem__", reading)


def told_during_knn(
    monkeypatch, *, before: int = 0, seconds: float = 0.0, mark: Path | None = None
) -> None:
    """After ``before`` images, SIGTERM comes while the kNN monitor reads one; see above."""
    read, seen = labelled.CentreViews.__getitem__, []

    def reading(self, index):
        seen.append(index)
        if len(seen) > before:
            _tell(seconds, mark)
        return read(self, index)

    monkeypatch.setattr(labelled.CentreViews, "__getitem__", reading)
    monkeypatch.setattr(labelled, "_KEEP_BYTES", 0)


def _tell(seconds: float, mark: Path | None) -> None:
    if mark is not None:
        mark.touch()
    if not seconds:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
