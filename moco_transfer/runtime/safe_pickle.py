"""Read a pickle of numpy arrays, numbers, strings and containers; nothing it asks for is run.

A pickle is a program: its opcodes may name any function of any module and call it. Here only the
names that numpy and Python write for arrays resolve, each to a function of this module, whichever
opcode asks for them; BUILD fills an array or fails. The unpickler is the pure-Python one: the C one
reserves memory for any memo index that a damaged file names, many GB for a flipped bit.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
from typing import Any, BinaryIO

import numpy as np

from .errors import InputError, damaged

_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")

# What a damaged or hostile pickle raises, from the opcodes and from the stand-ins.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RecursionError, ImportError, AssertionError, struct.error),
)


class _ForbiddenGlobalError(pickle.UnpicklingError): ...


class _Dtype:
    """Stands in for numpy.dtype: a plain number type of 1 to 8 bytes, whose BUILD sets the order
    of the bytes.
    """

    def __init__(self, code: Any, _align: Any = False, _copy: Any = True) -> None:
        if not (isinstance(code, str) and _DTYPE.fullmatch(code)):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not supported")
        self.value = np.dtype(code)


def _array(data: Any, dtype: Any, shape: Any, order: Any, _axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > 8:
        raise pickle.UnpicklingError("an array without a plain type and shape")
    if any(type(side) is not int or side < 0 for side in shape) or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"array shape {shape!r}")
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as str
    if not isinstance(raw, (bytes, bytearray)):
        raise pickle.UnpicklingError(f"array data of type {type(raw).__name__}")
    array = np.frombuffer(bytearray(raw), dtype=dtype.value).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return str.encode(text, "latin1")


_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": None,  # only ever named as an argument of _reconstruct
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0),  # BUILD fills it
    "numpy.core.multiarray.scalar": lambda dtype, data: _array(data, dtype, (), "C").item(),
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _encode,
    "collections.OrderedDict": lambda items=(): dict(items),
    "__builtin__.bytes": lambda: b"",  # how protocols 0 to 2 write it
}

_Unpickler: Any = pickle._Unpickler


class _ArrayUnpickler(_Unpickler):
    dispatch: dict[int, Any] = dict(_Unpickler.dispatch)

    def find_class(self, module: Any, name: Any) -> Any:
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if full_name not in _ALLOWED:
            raise _ForbiddenGlobalError(f"{module}.{name}")
        return _ALLOWED[full_name]

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            target.value = target.value.newbyteorder(state[1])
        elif isinstance(target, np.ndarray):
            _version, shape, dtype, is_fortran, data = state
            array = _array(data, dtype, shape, "F" if is_fortran else "C")
            made: Any = array.__reduce__()
            target.__setstate__(made[2])
        else:
            raise pickle.UnpicklingError(f"state for a {type(target).__name__}")

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
        return _ArrayUnpickler(content, encoding="latin1").load()
    except _ForbiddenGlobalError as error:
        raise InputError(
            f"{where} is a pickle that asks for {str(error)[:100]!r}; only numpy arrays, numbers,"
            " strings and containers are read, and nothing in it was run. Save it with those alone."
        ) from None
    except _DAMAGE as error:
        raise damaged(where, error) from error
