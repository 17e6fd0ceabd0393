"""safetensors files laid out by hand: what they hold, and what contradicts itself.

Seen red under: the metadata lost; a SafetensorError passed on.
"""

import json
import struct

import pytest

from moco_transfer.convert.read import read_checkpoint
from moco_transfer.runtime.errors import InputError


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


def test_read_checkpoint__safetensors_by_hand(tmp_path):
    # an odd offset: 1 byte of bool, then two float32 (1.0 = 0x3f800000, -2.0 = 0xc0000000)
    header = {"flag": entry([], 0, 1, "BOOL")["x"], **entry([2, 1], 1, 9)}
    (tmp_path / "a.safetensors").write_bytes(
        file_of({"__metadata__": {"k": "v"}, **header}, b"\x01\x00\x00\x80\x3f\x00\x00\x00\xc0")
    )
    content = read_checkpoint(tmp_path / "a.safetensors")
    assert content.tensors["x"].tolist() == [[1.0], [-2.0]]
    assert content.tensors["flag"].item() is True and content.metadata == {"k": "v"}


@pytest.mark.parametrize(
    "data",
    [
        file_of(entry([2], 0, 8), bytes(7)),  # truncated
        file_of(entry([2], 0, 8), bytes(9)),  # a byte too many
        file_of(entry([3], 0, 8), bytes(8)),  # shape against bytes
        file_of(entry([-2], 0, -8)),
        file_of(entry([1], 4, 8), bytes(8)),  # a hole
        file_of(entry([2], 0, 8, "F31"), bytes(8)),
        file_of(entry([2**40, 2**40], 0, 0)),
        file_of({"x": 3}),
        file_of(b"{not json"),
        file_of(b"{" * 100_000),
        struct.pack("<Q", 1 << 20) + b"{}",
        file_of({"__metadata__": [1, 2]}),
    ],
)
def test_read_checkpoint__refuses_safetensors_that_contradict_themselves(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_checkpoint(tmp_path / "a.safetensors")
