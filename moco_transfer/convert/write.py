"""Write an encoder in the layout of Detectron2, torchvision, timm or the official MoCo code, bit
for bit.

Conventions:
    Tensors keep their values and their type. The one exception is bfloat16 in a Detectron2
    ``.pkl``, and in an official checkpoint, which goes the same way: numpy has no such type, so it
    becomes float32, which holds every bfloat16 exactly.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .key_maps import detectron2_name
from .official import official_checkpoint, official_name
from .safetensors_file import write_safetensors
from .stamp import KEY

TARGETS = ("detectron2", "torchvision", "timm", "moco")

SUFFIXES = {
    "detectron2": (".pkl",),
    "torchvision": (".pth", ".pt"),
    "timm": (".safetensors",),
    "moco": (".tar", ".pth", ".pt"),
}
"""Target -> endings of its files, by which Detectron2's and timm's readers choose how to read them.
"""

AUTHOR = "moco_transfer"

# Protocol 4 is what every Python since 3.4 reads; protocol 5 would name a function that numpy <
# 1.16 lacks.
_PROTOCOL = 4


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    stamp: Mapping[str, Any],
    *,
    to: str,
    beside: Mapping[str, Tensor] | None = None,
) -> dict[str, str]:
    """Write a backbone and its stamp.

    Args:
        path: The file to write, in place.
        state: torchvision's name -> tensor.
        stamp: See :mod:`moco_transfer.convert.stamp`.
        to: "detectron2" (.pkl), "torchvision" (.pth), "timm" (.safetensors) or "moco" (.pth.tar).
        beside: Name in the file -> tensor, of what an official checkpoint holds beside the trained
            backbone; for "moco" alone.

    Returns:
        torchvision's name -> name in the file written.
    """
    names = {name: _NAME.get(to, str)(name) for name in state}
    if to == "detectron2":
        model = {names[name]: as_array(tensor) for name, tensor in state.items()}
        with open(path, "wb") as file:
            content = {
                "model": model,
                "__author__": AUTHOR,
                "matching_heuristics": True,
                KEY: dict(stamp),
            }
            pickle.dump(content, file, protocol=_PROTOCOL)
    elif to == "torchvision":
        weights = OrderedDict((name, tensor.clone()) for name, tensor in state.items())
        weights._metadata = OrderedDict({KEY: dict(stamp)})
        _torch_save(weights, path)
    elif to == "moco":
        content = official_checkpoint(
            state, names, beside or {}, arch=stamp["arch"], epoch=stamp["epoch"]
        )
        _torch_save(content | {KEY: dict(stamp)}, path)
    else:
        metadata = {"format": "pt", KEY: json.dumps(dict(stamp))}
        write_safetensors(path, state, metadata)
    return names


_NAME = {"detectron2": detectron2_name, "moco": official_name}


def _torch_save(content: Any, path: str | os.PathLike[str]) -> None:
    buffer = (
        io.BytesIO()
    )  # torch's own writer answers a full disk with a RuntimeError, not an OSError
    torch.save(content, buffer)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a C-ordered array of the same type; bfloat16 becomes float32, exactly."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))
