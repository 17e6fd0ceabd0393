"""Read a checkpoint of any kind into named tensors, running none of the code that it may ask for.

Three containers are told apart by their first bytes, not by the name of the file: what torch.save
    writes (zip, and the
older stream of pickles), a pickle of numpy arrays, and safetensors.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco_transfer.runtime.errors import InputError, MissingFileError

from .inert import inert_globals
from .safe_pickle import read_pickle
from .safetensors_file import looks_like_safetensors, read_safetensors

_ZIP = b"PK\x03\x04"
# The magic number with which torch < 1.6 began, as a protocol-2 pickle of a long.
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = re.compile(rb"\x80[\x00-\x05]|[(}\]c]")

MAX_NAME = 1000
"""Characters of a tensor's full name; VISSL's have about 90."""

MAX_DEPTH = 8
"""Dicts and lists within each other that are searched for tensors; VISSL's trunk lies 5 deep."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        path: The file.
        container: "torch", "pickle" or "safetensors".
        tensors: Every tensor under the dotted path of its keys and positions in lists
            (``state_dict.module.encoder_q.conv1.weight``), on the CPU.
        top: The outermost dict, for the numbers and strings beside the tensors (``epoch``,
            ``arch``, the stamp).
        metadata: The text that a safetensors file carries.
    """

    path: Path
    container: str
    tensors: dict[str, Tensor]
    top: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> Content:
    """Read a checkpoint file of any container.

    Args:
        path: A ``.pth``/``.pth.tar``/``.ckpt``/``.torch`` of torch.save, a ``.pkl`` of numpy arrays
            or a ``.safetensors``.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is a folder, empty, truncated, damaged, of another kind, asks for code, or
            holds no tensor.
    """
    path = Path(path)
    head, size = _head(path)
    metadata: Mapping[str, str] = {}
    if head.startswith(_ZIP):
        container, top = "torch", _read_torch_zip(path)
    elif head.startswith(_LEGACY_TORCH):
        container, top = "torch", _torch_load(path, mmap=False)
    elif looks_like_safetensors(head, size):
        container = "safetensors"
        top, metadata = read_safetensors(path)
    elif _PICKLE.match(head):
        container, top = "pickle", read_pickle(path)
    else:
        raise InputError(
            f"{path} is no checkpoint: it starts with {head[:8]!r}, not like a .pth, .pkl or"
            " .safetensors file."
        )
    if not isinstance(top, Mapping):
        raise InputError(
            f"{path} holds a {type(top).__name__}, expected a dict of tensors (a state dict)."
        )
    tensors = named_tensors(top, path)
    if not tensors:
        raise InputError(
            f"{path} holds no tensor. Its keys: {_some(top)}. Pass a checkpoint that holds a state"
            " dict."
        )
    return Content(path=path, container=container, tensors=tensors, top=top, metadata=metadata)


def _head(path: Path) -> tuple[bytes, int]:
    try:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder, expected a checkpoint file; name a file inside it."
            )
        with open(path, "rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path} does not exist. Check the path of the checkpoint."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or error}."
        ) from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes). Copy or download the checkpoint again.")
    return head, size


def _read_torch_zip(path: Path) -> Any:
    """Check the archive, every record's checksum included, before torch's own reader, which trusts
    it, sees it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        zlib.error,
    ) as error:
        raise InputError(
            f"{path} is truncated or damaged ({_short(error)}); copy or download it again."
        ) from error
    if damaged:
        raise InputError(
            f"{path} is damaged: its record {damaged!r} fails its checksum; copy or download it"
            " again."
        )
    if packed or not any(info.filename.endswith("data.pkl") for info in infos):
        raise InputError(
            f"{path} is a zip archive but not one that torch.save wrote; unpack it and pass the"
            " checkpoint inside."
        )
    # Memory-mapped, a tensor is a slice of the file: a table that claims more bytes than there are
    # meets the end of the file instead of foreign memory. It also leaves the momentum encoder and
    # the optimizer on the disk.
    return _torch_load(path, mmap=True)


def _torch_load(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(inert_globals()), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a damaged byte may look like another version of pickle
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error)) or re.search(
            r"[Uu]nsupported \S+ (\S+)", str(error)
        )
        if named:
            raise InputError(
                f"{path} asks for {named[1][:100]!r}, which is neither a tensor nor a plain value;"
                " nothing in it was run. Save its state_dict() alone with torch.save and convert"
                " that."
            ) from None
        raise InputError(
            f"{path} is truncated or damaged ({_short(error)}); copy or download it again."
        ) from error
    except (
        Exception
    ) as error:  # torch's reader answers a damaged file with every kind of exception there is
        raise InputError(
            f"{path} is truncated or damaged ({_short(error)}); copy or download it again."
        ) from error


def named_tensors(top: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return every tensor in dicts and lists within each other, under the dotted path of its keys
    and positions.

    Args:
        top: What a file holds.
        path: The file, for messages.

    Raises:
        InputError: If a name is longer than MAX_NAME, or a tensor is no plain one on the CPU.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(node: Mapping[Any, Any] | list | tuple, prefix: str, depth: int) -> None:
        if id(node) in seen or depth > MAX_DEPTH:
            return
        seen.add(id(node))
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            name = f"{prefix}{printable(key)}"
            if len(name) > MAX_NAME:
                raise InputError(
                    f"{path}: a name of {len(name)} characters ({name[:80]}…), expected at most"
                    f" {MAX_NAME}."
                )
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            if isinstance(value, Tensor):
                tensors[name] = _plain(value, name, path)
            elif isinstance(value, (Mapping, list, tuple)):
                walk(value, f"{name}.", depth + 1)

    walk(top, "", 1)
    return tensors


def _plain(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise InputError(
            f"{path}: tensor {name} is {kind}, expected plain numbers; save a float checkpoint."
        )
    return tensor.detach()


def printable(name: Any) -> str:
    """Return a key as one line of text, with what cannot be printed escaped."""
    text = str(name)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _some(names: Any) -> str:
    names = [printable(name)[:80] for name in names]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "none"


def _short(error: BaseException) -> str:
    # torch appends a C++ stack trace; the first line says what there is to say.
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:120])
