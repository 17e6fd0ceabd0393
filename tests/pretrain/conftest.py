"""Fixtures of whole pre-training runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from generated_images import write_pool

from moco_transfer.pretrain import plan
from moco_transfer.runtime.device import Precision, choose_precision


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """24 generated images of 24 px in class folders."""
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, count=24, size=24, seed=0)
    return folder


@pytest.fixture
def fp16_on_the_cpu(monkeypatch):
    """Loss scaling and its state are the same on a CPU, where users may not choose fp16."""

    def choose(asked, device):
        return Precision("fp16", "a test") if asked == "fp16" else choose_precision(asked, device)

    monkeypatch.setattr(plan, "choose_precision", choose)
