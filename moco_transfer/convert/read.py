"""Read a checkpoint of any kind into named tensors; none of the code it may ask for is run.

Three containers, recognised by their first bytes and not by the file's name: what torch.save writes
(zip, and the older stream of pickles), a pickle of numpy arrays, and safetensors.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..runtime.checkpoint import torch_load, zip_fault
from ..runtime.errors import InputError, MissingFileError, damaged, printable
from ..runtime.files import regular
from ..runtime.safe_pickle import StandIn, read_pickle, stand_in
from ..runtime.text import nature_of

_ZIP = b"PK\x03\x04"
# The magic number with which torch < 1.6 began, as a protocol-2 pickle of a long.
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = re.compile(rb"\x80[\x00-\x05]|[(}\]c]")

_SAVE = "Save its tensors: torch.save({call}, 'state_dict.pth')"

MAX_DEPTH = 8  # of dicts and lists that are searched for tensors; VISSL's trunk lies 5 deep


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    path: Path
    container: str  # torch, pickle or safetensors
    # Every tensor, on the CPU, under the dotted path of its keys and positions in lists
    # (state_dict.module.encoder_q.conv1.weight).
    tensors: dict[str, Tensor]
    top: Mapping[str, Any] = field(default_factory=dict)  # outermost dict (epoch, the stamp, ...)
    metadata: Mapping[str, str] = field(default_factory=dict)  # text in a safetensors file


def read_checkpoint(path: str | os.PathLike[str]) -> Content:
    """Read a file of torch.save, a pickle of numpy arrays, or a safetensors file. MissingFileError
    if there is none; InputError if it is damaged, of another kind, asks for code, or has no tensor.
    """
    path = Path(path)
    head = _head(path)
    metadata: Mapping[str, str] = {}
    top: Any
    if head.startswith((_ZIP, _LEGACY_TORCH)):
        if is_zip := head.startswith(_ZIP):
            _check_torch_zip(path)
        # Memory-mapped: a table that claims too many bytes meets the end of the file, not other
        # memory.
        container, top = "torch", torch_load(path, mmap=is_zip, resolve=stand_in)
    elif head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 40:
        container = "safetensors"
        top, metadata = _read_safetensors(path)
    elif _PICKLE.match(head):
        with open(path, "rb") as file:
            container, top = "pickle", read_pickle(file, path)
    else:
        what = nature_of(head) or f"no checkpoint, it starts with {head[:12]!r}"
        raise InputError(f"{path} is {what}; expected a .pth, .pkl or .safetensors file.")
    if not isinstance(top, Mapping):
        raise InputError(f"{path} holds a {type(top).__name__}, expected a dict of tensors.")
    tensors = named_tensors(top, path)
    if not tensors:
        raise _no_tensor(path, top)
    return Content(path=path, container=container, tensors=tensors, top=top, metadata=metadata)


def _head(path: Path) -> bytes:
    try:
        with open(regular(path), "rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Cannot read {path}: {reason}.") from error


def _check_torch_zip(path: Path) -> None:
    """Check every record's checksum before torch's own reader, which trusts the archive."""
    if fault := zip_fault(path):
        raise damaged(path, fault)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    names = [info.filename.rpartition("/")[2] for info in infos]
    if "constants.pkl" in names:
        call = f"torch.jit.load({str(path)!r}, map_location='cpu').state_dict()"
        raise InputError(f"{path} is a TorchScript program. {_SAVE.format(call=call)}")
    is_stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    if not is_stored or "data.pkl" not in names:
        raise InputError(
            f"{path} is a zip archive that torch.save did not write; pass the checkpoint inside."
        )


def _no_tensor(path: Path, top: Mapping[Any, Any]) -> InputError:
    """Return the error for a file without tensors; a whole model has them in objects, not read."""
    for place, value in [("", top), *((f"[{key!r}]", value) for key, value in top.items())]:
        if isinstance(value, StandIn) and value.is_model:
            call = f"torch.load({str(path)!r}, weights_only=False){place}.state_dict()"
            what = f"a whole model ({value.stands_for}{' at ' * bool(place)}{place})"
            save = f"If you trust it and have its code: {_SAVE.format(call=call)}"
            return InputError(f"{path} holds {what}, not its state dict. {save}")
    if isinstance(top, StandIn):
        return InputError(f"{path} holds a {top.stands_for}, expected a dict of tensors.")
    keys = [printable(name)[:80] for name in top]
    return InputError(f"{path} holds no tensor, expected a state dict. Its keys: {listed(keys)}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise damaged(path, error) from error


def named_tensors(top: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return every tensor in nested dicts and lists, under the dotted path of its keys.

    An InputError names a tensor that is no plain one on the CPU.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(node: Mapping[Any, Any] | list | tuple, prefix: str, depth: int) -> None:
        if id(node) in seen or depth > MAX_DEPTH:
            return
        seen.add(id(node))
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            name = f"{prefix}{printable(key)}"
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            if isinstance(value, Tensor):
                tensors[name] = value.detach()
                if value.layout != torch.strided or value.is_quantized or value.is_meta:
                    what = f"tensor {name} is quantized, sparse or on the meta device"
                    raise InputError(f"{path}: {what}; save a float checkpoint.")
            elif isinstance(value, (Mapping, list, tuple)):
                walk(value, f"{name}.", depth + 1)

    walk(top, "", 1)
    return tensors


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first names, with ``…`` where there are more, or "none"."""
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "none"
