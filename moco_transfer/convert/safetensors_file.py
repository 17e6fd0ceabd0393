"""The safetensors format: a JSON table of tensors and their bytes. Reading and writing it takes no
code but this.

Layout:
    8 bytes: length L of the header, unsigned little-endian.   L bytes: JSON, name -> {"dtype",
        "shape", "data_offsets"} and
    optionally "__metadata__" -> {str: str}.   Then the bytes; offsets count from their start,
    little-endian, C order.
Source:
    github.com/huggingface/safetensors, README "Format": offsets leave no hole and do not overlap,
    the header is at most 100 MB.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from moco_transfer.runtime.errors import InputError

MAX_HEADER = 100_000_000

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Tell from the first 9 bytes of a file and its size in bytes whether it can be a safetensors
    file.
    """
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return 2 <= length <= MAX_HEADER


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the metadata of a safetensors file.

    Raises:
        InputError: If the file is truncated or its table contradicts its bytes.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = os.fstat(file.fileno()).st_size
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            header = json.loads(file.read(length).decode("utf-8"))
            data = bytearray(file.read())
        metadata = header.pop("__metadata__", {})
        _check_holes(header, len(data))
        return {str(name): _tensor(name, entry, data) for name, entry in header.items()}, dict(
            metadata
        )
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path} is not a whole safetensors file ({reason}): truncated or damaged; get it again."
        ) from error


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors of any device to ``path``; their values are kept bit for bit, their layout
    becomes C order.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the bytes that follow are aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors.values():
            file.write(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )


def _check_holes(header: Mapping[str, dict], size: int) -> None:
    end = 0
    for begin, stop in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if begin != end or stop < begin:
            raise ValueError(f"its bytes {end} to {begin} belong to no tensor or to two")
        end = stop
    if end != size:
        raise ValueError(f"its table speaks of {end} bytes, the file has {size}")


def _tensor(name: str, entry: Mapping, data: bytearray) -> Tensor:
    dtype, shape = DTYPES[entry["dtype"]], [int(side) for side in entry["shape"]]
    begin, end = entry["data_offsets"]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(
            f"{name}: {end - begin} bytes do not hold {entry['dtype']} of shape {shape}"
        )
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin)
    # frombuffer of the type itself would need an aligned offset; a copy of the bytes is aligned.
    return flat.clone().view(dtype).reshape(shape)
