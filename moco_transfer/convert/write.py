"""Write an encoder in the layout of Detectron2, torchvision or timm, bit for bit.

Conventions:
    Tensors keep their values and their type. The one exception is bfloat16 in a Detectron2 ``.pkl``: numpy has no such type,
    so it becomes float32, which holds every bfloat16 exactly.
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
from .safetensors_file import write_safetensors
from .stamp import KEY

TARGETS = ("detectron2", "torchvision", "timm")

SUFFIXES = {"detectron2": (".pkl",), "torchvision": (".pth", ".pt"), "timm": (".safetensors",)}
"""Target -> endings of its files, by which Detectron2's and timm's readers choose how to read them."""

AUTHOR = "moco_transfer"

# Protocol 4 is what every Python since 3.4 reads; protocol 5 would name a function that numpy < 1.16 lacks.
_PROTOCOL = 4


def write(path: str | os.PathLike[str], state: Mapping[str, Tensor], stamp: Mapping[str, Any], *, to: str) -> dict[str, str]:
    """Write a backbone and its stamp.

    Args:
        path: The file to write, in place.
        state: torchvision's name -> tensor.
        stamp: See :mod:`moco_transfer.convert.stamp`.
        to: "detectron2" (.pkl), "torchvision" (.pth) or "timm" (.safetensors).

    Returns:
        torchvision's name -> name in the file written.
    """
    names = {name: detectron2_name(name) if to == "detectron2" else name for name in state}
    if to == "detectron2":
        model = {names[name]: as_array(tensor) for name, tensor in state.items()}
        with open(path, "wb") as file:
            content = {"model": model, "__author__": AUTHOR, "matching_heuristics": True, KEY: dict(stamp)}
            pickle.dump(content, file, protocol=_PROTOCOL)
    elif to == "torchvision":
        weights = OrderedDict((name, tensor.clone()) for name, tensor in state.items())
        weights._metadata = OrderedDict({KEY: dict(stamp)})
        buffer = io.BytesIO()  # torch's own writer answers a full disk with a RuntimeError, not an OSError
        torch.save(weights, buffer)
        with open(path, "wb") as file:
            file.write(buffer.getbuffer())
    else:
        metadata = {"format": "pt", KEY: json.dumps(dict(stamp))}
        write_safetensors(path, state, metadata)
    return names


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a C-ordered array of the same type; bfloat16 becomes float32, exactly."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))
