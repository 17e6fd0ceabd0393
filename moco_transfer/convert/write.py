"""Write an encoder in the layout of Detectron2, torchvision, timm, Hugging Face or official MoCo.

Tensors keep their values and types, except that bfloat16, which numpy lacks, becomes float32,
exactly, in a Detectron2 ``.pkl`` and in an official checkpoint. The official layout is what
facebookresearch/moco@7397dfe main_moco.py saves; its tools read ``module.encoder_q.`` alone.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..models.resnets import BATCH_COUNTER
from .formats import Source
from .key_maps import WRITE_NAME, detectron2_name
from .read import Content
from .stamp import KEY

SUFFIXES = {"detectron2": (".pkl",), "torchvision": (".pth", ".pt"), "timm": (".safetensors",)}
SUFFIXES |= {"huggingface": (".safetensors",), "moco": (".tar", ".pth", ".pt")}
"""Target -> endings of its files, by which Detectron2's and timm's readers choose how to read."""

KEY_ENCODER = "module.encoder_k."
_QUERY = "encoder_q."

# Every Python since 3.4 reads protocol 4; protocol 5 would name a function that numpy < 1.16 lacks.
_PROTOCOL = 4


def companions(content: Content, source: Source) -> dict[str, str]:
    """Return name in the source -> name to write, of the head, the key encoder and the queue.

    Only of official names, with or without ``module.``: another project's heads mean other things.
    """
    if source.layout.format != "moco" or not source.prefix.endswith(_QUERY):
        return {}
    root = source.prefix.removesuffix(_QUERY)
    wanted = re.compile(rf"{re.escape(root)}((encoder_q\.fc|encoder_k)\..+|queue|queue_ptr)")
    taken = source.names.values()
    found = {n: match for n in content.tensors if (match := wanted.fullmatch(n))}
    return {name: f"module.{match[1]}" for name, match in found.items() if name not in taken}


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    stamp: Mapping[str, Any],
    *,
    to: str,
    extra: Mapping[str, Tensor],
) -> dict[str, str]:
    """Write a backbone; return torchvision's name -> name in the file.

    ``extra``, for "moco" alone: name in the file -> tensor next to the trained backbone.
    """
    names = {name: name for name in state}
    if to == "detectron2":
        names = {name: detectron2_name(name) or name for name in state}
        model = {names[name]: as_array(tensor) for name, tensor in state.items()}
        content = {"model": model, "__author__": KEY, "matching_heuristics": True}
        with open(path, "wb") as file:
            pickle.dump(content | {KEY: dict(stamp)}, file, protocol=_PROTOCOL)
    elif to == "torchvision":
        weights = OrderedDict((name, tensor.clone()) for name, tensor in state.items())
        weights._metadata = OrderedDict({KEY: dict(stamp)})  # type: ignore[attr-defined]
        _torch_save(weights, path)
    elif to == "moco":
        names = {name: f"module.{_QUERY}{name}" for name in state}
        tensors = _official({names[name]: tensor for name, tensor in state.items()} | dict(extra))
        epoch = {} if stamp["epoch"] is None else {"epoch": stamp["epoch"]}
        whole = {"arch": stamp["arch"], "state_dict": tensors, **epoch, KEY: dict(stamp)}
        _torch_save(whole, path)
    else:
        if to == "huggingface":
            state = _with_counters(state)
            names = {name: WRITE_NAME[to](name) or name for name in state}
        # Copies, because safetensors refuses tensors that share memory.
        own = {names[n]: t.clone(memory_format=torch.contiguous_format) for n, t in state.items()}
        metadata = {"format": "pt", KEY: json.dumps(dict(stamp))}
        Path(path).write_bytes(safetensors.torch.save(own, metadata))
    return names


def _official(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    return _with_counters(
        {n: t.float() if t.dtype == torch.bfloat16 else t.clone() for n, t in tensors.items()}
    )


def _with_counters(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    # BN's counters, which old files lack, are added as 0: main_lincls.py looks each of them up,
    # and transformers calls them missing.
    whole = OrderedDict(tensors)
    for name in tensors:
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + BATCH_COUNTER
            whole.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return whole


def _torch_save(content: Any, path: str | os.PathLike[str]) -> None:
    with open(path, "wb") as file:  # given a path, torch's writer would not say why it failed
        torch.save(content, file)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a C-ordered array of the same type; bfloat16 becomes float32, exactly."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))
