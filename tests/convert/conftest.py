"""Checkpoints of ResNet-18s that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import official_content, one_number_each, resnet_state


@pytest.fixture(scope="session")
def r18() -> dict[str, torch.Tensor]:
    """torchvision's state dict of a ResNet-18; do not change its tensors."""
    return resnet_state("resnet18")


@pytest.fixture(scope="session")
def r18_key() -> dict[str, torch.Tensor]:
    """Another ResNet-18, for the momentum encoder."""
    return resnet_state("resnet18", salt="k")


@pytest.fixture(scope="session")
def official(r18, r18_key) -> dict:
    """An official MoCo v2 checkpoint of a ResNet-18."""
    return official_content(r18, r18_key)


@pytest.fixture(scope="session")
def small(r18) -> dict[str, torch.Tensor]:
    """A ResNet-18 whose file is small: it converts, but its features are infinite."""
    return one_number_each(r18, salt="q")


@pytest.fixture(scope="session")
def small_key(r18) -> dict[str, torch.Tensor]:
    """Another one, for the momentum encoder."""
    return one_number_each(r18, salt="k")


@pytest.fixture(scope="session")
def official_small(small, small_key) -> dict:
    """An official MoCo v2 checkpoint whose file is small."""
    return official_content(small, small_key)


@pytest.fixture(scope="session")
def converted(tmp_path_factory, official) -> Path:
    """A Detectron2 file made from the official checkpoint; do not change it."""
    from moco_transfer.convert import convert_checkpoint

    folder = tmp_path_factory.mktemp("converted")
    torch.save(official, folder / "moco.pth.tar")
    convert_checkpoint(
        folder / "moco.pth.tar", folder / "moco.pkl", verify=False
    )  # so that a wrong file reaches the tests
    return folder / "moco.pkl"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves an object with torch.save and gives the path."""

    def save(content: object, name: str = "source.pth") -> Path:
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save
