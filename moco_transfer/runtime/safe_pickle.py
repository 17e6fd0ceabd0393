"""Read a pickle of numpy arrays, numbers, strings and containers; nothing it asks for is run.

A pickle is a program: its opcodes may name any function of any module and call it. Here the names
that numpy and Python write for arrays resolve to functions of this module, whichever opcode asks
for them. An object of any other class (a config, a logger) becomes a :class:`StandIn`, and a call
of a function is refused; the class or function named is never imported. BUILD fills an array or a
stand-in or fails. The unpickler is the pure-Python one: the C one reserves memory for any memo
index that a damaged file names, many GB for a flipped bit.
"""

from __future__ import annotations

import _compat_pickle
import io
import os
import pickle
import re
import struct
import sys
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

from .errors import InputError, damaged

_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")

# What a damaged or hostile pickle raises, from the opcodes and from the stand-ins.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RecursionError, ImportError, AssertionError, struct.error),
)


# Modules of Python itself whose classes hold values. What its other modules have can act, and no
# checkpoint needs it.
_VALUES = """argparse collections copyreg datetime decimal enum fractions functools pathlib random
    types typing uuid""".split()
_CONTAINERS = {f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, set, frozenset)}
_BUILTINS = "bool bytearray bytes complex float getattr int object range slice str".split()
_CONSTRUCTORS = """collections.defaultdict collections.deque copyreg._reconstructor
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
    functools.partial numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar numpy.dtype
    numpy.ndarray uuid.uuid4""".split()


class ForbiddenNameError(Exception):
    """A file asks to call what no checkpoint needs; nothing was run."""


class StandIn(dict):
    """Takes the place of an object of a class that is not imported: its items are kept, and nothing
    else of it.
    """

    stands_for = ""  # full name of the class
    is_model = False  # whether it is a torch.nn.Module, by its state

    def __new__(cls, *_args: Any, **_options: Any) -> StandIn:
        """Take whatever the constructor of the class takes."""
        return dict.__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.is_model = isinstance(state, dict) and "_modules" in state

    def append(self, _item: Any) -> None:
        """Drop the item of a list's subclass."""

    def extend(self, _items: Any) -> None:
        """Drop the items of a list's subclass."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key of a dict


def stand_in(full_name: str) -> Any:
    """Return what a name in a pickle (module.name) resolves to where it is not known.

    A plain container is itself, a class a :class:`StandIn` of its own. What may be a function gives
    a ForbiddenNameError when it is called. ForbiddenNameError at once for what can act: most
    of Python's own modules and built-in functions.
    """
    module, _, leaf = full_name.rpartition(".")
    top = module.partition(".")[0]
    if full_name in _CONTAINERS:
        return _CONTAINERS[full_name]
    known = _BUILTINS if top == "builtins" else [leaf] * (top in _VALUES)
    if top in sys.stdlib_module_names and leaf not in known:
        raise ForbiddenNameError(full_name)
    made = type(leaf, (StandIn,), {"__module__": module, "stands_for": full_name})
    is_class = leaf.lstrip("_")[:1].isupper() or top == "builtins"
    if full_name == "builtins.getattr":
        made.__new__ = _look_up  # type: ignore[method-assign,assignment]
    elif not is_class and full_name.replace("numpy._core.", "numpy.core.", 1) not in _CONSTRUCTORS:
        made.__new__ = _refuse  # type: ignore[method-assign,assignment]
    return made


def _refuse(cls: Any, *_args: Any, **_options: Any) -> Any:
    raise ForbiddenNameError(cls.stands_for)


def _look_up(cls: Any, owner: Any, _name: Any) -> Any:
    # mmengine's HistoryBuffer names its methods so; nothing is looked up.
    is_harmless = isinstance(owner, type) and issubclass(owner, (StandIn, OrderedDict))
    return dict.__new__(StandIn) if is_harmless else _refuse(cls)


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
    "builtins.bytes": lambda: b"",  # how protocols 0 to 2 write it
}

_Unpickler: Any = pickle._Unpickler


class _ArrayUnpickler(_Unpickler):
    dispatch: dict[int, Any] = dict(_Unpickler.dispatch)

    def find_class(self, module: Any, name: Any) -> Any:
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)  # Python 2's
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        return _ALLOWED[full_name] if full_name in _ALLOWED else stand_in(full_name)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            target.value = target.value.newbyteorder(state[1])
        elif isinstance(target, np.ndarray):
            _version, shape, dtype, is_fortran, data = state
            array = _array(data, dtype, shape, "F" if is_fortran else "C")
            made: Any = array.__reduce__()
            target.__setstate__(made[2])
        elif isinstance(target, StandIn):
            target.__setstate__(state)
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
        InputError: If it is truncated or damaged, holds arrays of anything but plain numbers, or
            asks for a call; nothing was run.
    """
    try:
        content = io.BytesIO(file.read())  # which no damaged length reads beyond its end
        return _ArrayUnpickler(content, encoding="latin1").load()
    except ForbiddenNameError as error:
        raise InputError(
            f"{where} is a pickle that asks for {str(error)[:100]!r}; only numpy arrays, numbers,"
            " strings and containers are read, and nothing in it was run. Save it with those alone."
        ) from None
    except _DAMAGE as error:
        raise damaged(where, error) from error
