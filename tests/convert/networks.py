"""ResNets for the tests: full-size ones whose every number is known, made by arithmetic, and ones
that fit a small file.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torchvision

from moco_transfer.models import build_encoder


def numbered_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return values that depend on the name alone, the same on every machine: a linear congruence
    seeded by its CRC.
    """
    if dtype == torch.int64:
        return torch.tensor(zlib.crc32(name.encode()) % 1000)
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (index * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) % np.uint64(
        65536
    )
    values = mixed.astype(np.float32) / np.float32(
        65536
    )  # [0, 1) in steps of 2**-16: exact in float32
    if (
        name.endswith("running_var")
        or ".bn" in name
        or "downsample.1" in name
        or name.startswith("bn")
    ):
        values = values + np.float32(0.5)  # a variance is positive
    else:
        values = (values - np.float32(0.5)) / np.float32(16)
    return torch.from_numpy(values.reshape(shape))


def resnet_shapes(arch: str) -> dict[str, torch.Tensor]:
    """Return torchvision's name -> tensor without storage of a whole ResNet, ``fc`` included."""
    with torch.device("meta"):
        return torchvision.models.get_model(arch, weights=None).state_dict()


def resnet_state(arch: str, *, salt: str = "") -> dict[str, torch.Tensor]:
    """Return torchvision's name -> tensor of a whole ResNet, ``fc`` included, with numbers that
    depend on ``salt``.
    """
    return {
        name: numbered_tensor(name + salt, tuple(t.shape), t.dtype)
        for name, t in resnet_shapes(arch).items()
    }


def one_number_each(state: dict[str, torch.Tensor], *, salt: str = "") -> dict[str, torch.Tensor]:
    """Return a state dict of the same shapes in which each tensor is one number of its own, so that
    its file is small.
    """
    numbers = {name: (zlib.crc32(f"{salt}{name}".encode()) % 4093 + 1) / 4096 for name in state}
    return {
        name: torch.tensor(numbers[name]).to(tensor.dtype).expand(tensor.shape)
        for name, tensor in state.items()
    }


def official_content(query: dict[str, torch.Tensor], key: dict[str, torch.Tensor]) -> dict:
    """Return what moco's main_moco.py saves for MoCo v2:

    DDP's ``module.``, both encoders with their MLP heads, the queue.
    """
    state = {}
    for role, weights in (("encoder_q", query), ("encoder_k", key)):
        state.update(
            {
                f"module.{role}.{name}": tensor
                for name, tensor in weights.items()
                if not name.startswith("fc.")
            }
        )
        for layer, shape in (
            ("0.weight", (512, 512)),
            ("0.bias", (512,)),
            ("2.weight", (128, 512)),
            ("2.bias", (128,)),
        ):
            state[f"module.{role}.fc.{layer}"] = torch.zeros(shape)
    state["module.queue"] = torch.zeros(128, 64)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    optimizer = {
        "state": {0: {"momentum_buffer": torch.zeros(3)}},
        "param_groups": [{"lr": 0.03, "params": [0]}],
    }
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}


def seeded(arch):
    """Return a ResNet whose features neither die out nor explode, with batch statistics unlike the
    initial ones.
    """
    torch.manual_seed(0)
    model = build_encoder(arch, num_classes=1000).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.4, 0.8)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    return model
