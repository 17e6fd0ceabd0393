"""Checkpoints of full-size ResNet-18s whose every number is known: made by arithmetic, not by a random generator."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision


def numbered_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return values that depend on the name alone, the same on every machine: a linear congruence seeded by its CRC."""
    if dtype == torch.int64:
        return torch.tensor(zlib.crc32(name.encode()) % 1000)
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (index * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) % np.uint64(65536)
    values = mixed.astype(np.float32) / np.float32(65536)  # [0, 1) in steps of 2**-16: exact in float32
    if name.endswith("running_var") or ".bn" in name or "downsample.1" in name or name.startswith("bn"):
        values = values + np.float32(0.5)  # a variance is positive
    else:
        values = (values - np.float32(0.5)) / np.float32(16)
    return torch.from_numpy(values.reshape(shape))


def resnet_shapes(arch: str) -> dict[str, torch.Tensor]:
    """Return torchvision's name -> tensor without storage of a whole ResNet, ``fc`` included."""
    with torch.device("meta"):
        return torchvision.models.get_model(arch, weights=None).state_dict()


def resnet_state(arch: str, *, salt: str = "") -> dict[str, torch.Tensor]:
    """Return torchvision's name -> tensor of a whole ResNet, ``fc`` included, with numbers that depend on ``salt``."""
    return {name: numbered_tensor(name + salt, tuple(t.shape), t.dtype) for name, t in resnet_shapes(arch).items()}


@pytest.fixture(scope="session")
def r18() -> dict[str, torch.Tensor]:
    """torchvision's state dict of a ResNet-18; do not change its tensors."""
    return resnet_state("resnet18")


@pytest.fixture(scope="session")
def r18_key() -> dict[str, torch.Tensor]:
    """Another ResNet-18, for the momentum encoder."""
    return resnet_state("resnet18", salt="k")


def one_number_each(state: dict[str, torch.Tensor], *, salt: str = "") -> dict[str, torch.Tensor]:
    """Return a state dict of the same shapes in which each tensor is one number of its own, so that its file is small."""
    numbers = {name: (zlib.crc32(f"{salt}{name}".encode()) % 4093 + 1) / 4096 for name in state}
    return {name: torch.tensor(numbers[name]).to(tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


def official_content(query: dict[str, torch.Tensor], key: dict[str, torch.Tensor]) -> dict:
    """Return what moco's main_moco.py saves for MoCo v2: DDP's ``module.``, both encoders with their MLP heads, the queue."""
    state = {}
    for role, weights in (("encoder_q", query), ("encoder_k", key)):
        state.update({f"module.{role}.{name}": tensor for name, tensor in weights.items() if not name.startswith("fc.")})
        for layer, shape in (("0.weight", (512, 512)), ("0.bias", (512,)), ("2.weight", (128, 512)), ("2.bias", (128,))):
            state[f"module.{role}.fc.{layer}"] = torch.zeros(shape)
    state["module.queue"] = torch.zeros(128, 64)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}


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
    convert_checkpoint(folder / "moco.pth.tar", folder / "moco.pkl", verify=False)  # so that a wrong file reaches the tests
    return folder / "moco.pkl"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves an object with torch.save and gives the path."""

    def save(content: object, name: str = "source.pth") -> Path:
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save
