"""Read a pickle of numpy arrays, numbers, strings and containers; nothing it asks for is run.

A pickle is a program: its opcodes may name any function of any module and call it. Here only the
names that numpy and Python write for arrays resolve, each to a stand-in of this module. Opcodes
that make objects in other ways (NEWOBJ, INST, OBJ, EXT, persistent ids) are unknown; BUILD fills a
stand-in or fails. The unpickler is the pure-Python one: the C one reserves memory for any memo
index that a damaged file names, many GB for a flipped bit.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
from typing import Any, BinaryIO

import numpy as np

from .errors import InputError

_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")

# What a damaged or hostile pickle raises, from the opcodes and from the stand-ins.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RecursionError, ImportError, AssertionError, struct.error),
)


class _ForbiddenGlobalError(pickle.UnpicklingError): ...


class _Dtype:
    """Stands in for numpy.dtype: a plain number type of 1 to 8 bytes."""

    def __init__(self, code: Any, _align: Any = False, _copy: Any = True) -> None:
        if not (isinstance(code, str) and _DTYPE.fullmatch(code)):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not supported")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Subtype:
    """Stands in for numpy.ndarray, which is only ever named as an argument of _reconstruct."""


class _Array:
    """Stands in for an array that its BUILD opcode has yet to fill."""

    def __init__(self, _subtype: Any, _shape: Any, _code: Any) -> None:
        self.value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any, _axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > 8:
        raise pickle.UnpicklingError("an array without a plain type and shape")
    if any(type(side) is not int or side < 0 for side in shape) or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"array shape {shape!r}")
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as str
    size = math.prod(shape) * dtype.dtype.itemsize
    if not isinstance(raw, (bytes, bytearray)) or len(raw) != size:
        raise pickle.UnpicklingError(f"an array of shape {shape} whose data have another length")
    array = np.frombuffer(bytearray(raw), dtype=dtype.dtype).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _scalar(dtype: Any, data: Any = b"") -> int | float | bool:
    return _array(data, dtype, (), "C").item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    "numpy.ndarray": _Subtype,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _encode,
    "collections.OrderedDict": lambda items=(): dict(items),
    "__builtin__.bytes": lambda: b"",  # how protocols 0 to 2 write it
}

_FORBIDDEN_OPCODES = (
    *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ, pickle.PERSID, pickle.BINPERSID),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


_Unpickler: Any = pickle._Unpickler


class _ArrayUnpickler(_Unpickler):
    dispatch: dict[int, Any] = {
        op: load
        for op, load in _Unpickler.dispatch.items()
        if bytes([op]) not in _FORBIDDEN_OPCODES
    }

    def find_class(self, module: Any, name: Any) -> Any:
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if full_name not in _ALLOWED:
            raise _ForbiddenGlobalError(f"{module}.{name}")
        return _ALLOWED[full_name]

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, (_Array, _Dtype)):
            raise pickle.UnpicklingError(f"state for a {type(target).__name__}")
        target.set_state(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:  # the parent reserves the length before it reads it
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_pickle(file: BinaryIO, where: str | os.PathLike[str]) -> Any:
    """Return what a pickle holds: dict, list, tuple, str, bytes, numbers, None and numpy arrays.

    Reads every protocol; strings of Python 2 (Detectron2's and Caffe2's model zoos, CIFAR's
    batches) are decoded as latin1. ``where`` is its name in messages.

    Raises:
        InputError: If it is truncated or damaged, or asks for anything but arrays of plain numbers;
            nothing was run.
    """
    try:
        content = io.BytesIO(file.read())  # which no damaged length reads beyond its end
        return _resolve(_ArrayUnpickler(content, encoding="latin1").load(), {})
    except _ForbiddenGlobalError as error:
        raise InputError(
            f"{where} is a pickle that asks for {str(error)[:100]!r}; only numpy arrays, numbers,"
            " strings and containers are read, and nothing in it was run. Save it with those alone."
        ) from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(
            f"{where} is not a whole pickle of numpy arrays ({reason}). Copy it again."
        ) from error


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Put arrays in the place of their stand-ins; ``done`` (by id) walks shared containers once."""
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without data")
        return value.value
    if callable(value) or isinstance(value, (_Dtype, _Subtype)):
        raise pickle.UnpicklingError("a type where a value is expected")
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in done:
        made: Any
        if isinstance(value, dict):
            made = {key: _resolve(item, done) for key, item in value.items()}
        else:
            made = type(value)(_resolve(item, done) for item in value)
        done[id(value)] = (made, value)  # keeps the value alive, so that its id stays its own
    return done[id(value)][0]
