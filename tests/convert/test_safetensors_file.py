"""The safetensors reader and writer, against bytes laid out by hand and, where it is installed, the
safetensors package.

Seen red under: offsets counted from the file's start; metadata lost; a hole between tensors
    accepted.
"""

import json
import struct

import pytest
import torch

from moco_transfer.convert.safetensors_file import DTYPES, read_safetensors, write_safetensors
from moco_transfer.runtime.errors import InputError


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_read__bytes_by_hand(tmp_path):
    # an odd offset: 1 byte of bool, then two float32 (1.0 = 0x3f800000, -2.0 = 0xc0000000)
    header = {
        "flag": {"dtype": "BOOL", "shape": [], "data_offsets": [0, 1]},
        "x": {"dtype": "F32", "shape": [2, 1], "data_offsets": [1, 9]},
    }
    (tmp_path / "a.safetensors").write_bytes(
        file_of({"__metadata__": {"k": "v"}, **header}, b"\x01\x00\x00\x80\x3f\x00\x00\x00\xc0")
    )
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert (
        tensors["x"].tolist() == [[1.0], [-2.0]]
        and tensors["flag"].item() is True
        and metadata == {"k": "v"}
    )


def test_write__there_and_back_in_every_type(tmp_path):
    tensors = {
        name: (torch.arange(12).reshape(3, 4) % 2).to(dtype) for name, dtype in DTYPES.items()
    }
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).t()
    tensors["scalar"], tensors["none"] = torch.tensor(5), torch.zeros(0, 3)
    write_safetensors(tmp_path / "a", tensors, {"format": "pt"})
    read, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"format": "pt"} and list(read) == list(tensors)
    assert all(
        torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )
    package = pytest.importorskip(
        "safetensors.torch", reason="the safetensors package is not installed"
    )
    theirs = package.load_file(tmp_path / "a")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "data",
    [
        file_of(
            {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7)
        ),  # truncated
        file_of(
            {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9)
        ),  # a byte too many
        file_of(
            {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)
        ),  # shape against bytes
        file_of({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}),
        file_of({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),  # a hole
        file_of({"x": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        file_of({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}),
        file_of({"x": 3}),
        file_of(b"{not json"),
        file_of(b"{" * 100_000),
        struct.pack("<Q", 1 << 20) + b"{}",
        file_of({"__metadata__": [1, 2]}),
    ],
)
def test_read__refuses_what_contradicts_itself(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_safetensors(tmp_path / "a.safetensors")
