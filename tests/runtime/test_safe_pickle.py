"""The unpickler builds arrays of every kind that the field has written, and runs nothing.

Seen red under: find_class falling back to the real one; BUILD of the parent class; encoding ASCII;
    Fortran order ignored.
"""

import contextlib
import os
import pickle
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch

from moco_transfer.convert.read import read_checkpoint
from moco_transfer.runtime import safe_pickle
from moco_transfer.runtime.errors import InputError

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float64": np.array([1.5, -2.0]),
    "float16": np.array([[1], [2]], np.float16),
    "int64": np.array(7),
    "big": np.arange(3, dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
}


class Runs:
    """A pickle of this leaves a file behind when it is loaded by the plain pickle module."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def read_pickle(path):
    with open(path, "rb") as file:
        return safe_pickle.read_pickle(file, path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_pickle__every_protocol(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    content = {
        "model": OrderedDict(ARRAYS),
        "__author__": "me",
        "n": [1, 2.5, None, True, (b"x", np.float32(3))],
    }
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(path)
    assert read["n"] == [1, 2.5, None, True, (b"x", 3.0)] and read["__author__"] == "me"
    for name, array in ARRAYS.items():
        assert np.array_equal(read["model"][name], array), name
        assert read["model"][name].dtype == array.dtype.newbyteorder("="), name


def test_read_pickle__python_2_strings(tmp_path):
    # As Python 2 wrote {"a": numpy.float32 array [1, 2]}: str for bytes, numpy.core's names, no
    # protocol 3 opcodes.
    raw = np.array([1, 2], np.float32).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU"
        + bytes([len(raw)])
        + raw
        + b"tb"
    )
    path = tmp_path / "two.pkl"
    path.write_bytes(b"\x80\x02}U\x01a" + array + b"s.")
    assert np.array_equal(read_pickle(path)["a"], [1, 2])
    assert np.array_equal(
        pickle.loads(path.read_bytes(), encoding="latin1")["a"], [1, 2]
    )  # and so does Detectron2's reader


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch_legacy"])
@pytest.mark.parametrize("call", [os.system, eval, __import__, getattr, np.load, torch.load])
def test_read_checkpoint__runs_nothing(tmp_path, writer, call):
    mark = tmp_path / "ran"
    args = {
        os.system: (f"touch {mark}",),
        eval: (f"open({str(mark)!r}, 'w')",),
        getattr: (dict, "fromkeys"),
    }.get(call, (str(mark),))
    content = {"model": {"x": Runs(call, *args)}}
    path = tmp_path / "evil.pkl"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    asked = f"({call.__name__}|dict)"  # getattr's own argument is refused first by PyTorch
    with pytest.raises(InputError, match=rf"evil\.pkl .*asks for '[\w.]*{asked}'"):
        read_checkpoint(path)
    assert not mark.exists()


def test_read_pickle__a_plain_pickle_would_have_run(tmp_path):
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {mark}")))
    assert mark.exists()  # so that the test above can fail


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"\x80\x02cnumpy\nndarray\n.", "holds a NoneType"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "truncated or damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n}U\x01ac_codecs\nencode\nsb.", "state for a"),
        (b"\x80\x02cnumpy\ndtype\n(U\x01OK\x00K\x01tR.", "not supported"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated or damaged"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated or damaged"),
        (b"\x80\x02(i__builtin__\neval\n.", "truncated or damaged|asks for"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "truncated or damaged|asks for"),
        (b"\x80\x02U\x01xQ.", "truncated or damaged|asks for"),
        (b"\x80\x02((((.", "truncated or damaged|asks for"),
        (b"\x80\x04]\x94h\x00a.", "holds a list"),  # a list that contains itself
        (b"\x80\x02" + b"]" * 9999 + b"a" * 9998 + b".", "holds a list"),
        (b"\x80\x02c\xff\n\xff\n.", "truncated or damaged|asks for"),
    ],
)
def test_read_pickle__hostile_programs(tmp_path, program, words):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(program)
    with pytest.raises(InputError, match=words):
        read_checkpoint(path)


def test_read_pickle__a_memo_index_reserves_no_memory(tmp_path):
    import resource

    path = tmp_path / "memo.pkl"
    path.write_bytes(
        b"\x80\x02}r\xff\xff\xff\x7f."
    )  # LONG_BINPUT 2**31 - 1: the C unpickler would reserve 32 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_pickle(path) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_read_pickle__shared_containers_are_walked_once(tmp_path):
    # 30 times t = (t, t) by DUP and TUPLE2: 2**30 leaves for whoever walks it naively
    path = tmp_path / "shared.pkl"
    path.write_bytes(b"\x80\x02)" + b"2\x86" * 30 + b".")
    assert isinstance(read_pickle(path), tuple)


def test_read_pickle__mutated_files(tmp_path):
    """Damaged files: each is read or refused, none raises anything else. fuzz.py runs more."""
    content = {
        "model": {name: array for name, array in ARRAYS.items()},
        "__author__": "me",
        "matching_heuristics": True,
    }
    path = tmp_path / "fuzz.pkl"
    for seed in range(200):
        data = bytearray(pickle.dumps(content, protocol=2 + seed % 4))
        for step in range(1 + seed % 4):
            number = zlib.crc32(b"%d %d" % (seed, step))
            data[number % len(data)] = number >> 24
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            read_checkpoint(path)
