"""The compiled loops of the fast pipeline (view_kernels.c) and the decoder of parts of a JPEG
(partial_jpeg.c), each where it was built; :func:`available` and :func:`decodes_parts` say.

Installing with a C compiler at hand builds the loops beside this file, and with libjpeg-turbo's
headers the decoder. Without, torch's operators and the decoders of whole images do the same more
slowly, so that nothing depends on a compiler but the time.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .threads import in_threads

OFF = (  # environment variable; set to anything to have none of what was compiled
    "MOCO_TRANSFER_NO_NATIVE"
)

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


def _load(name: str) -> ctypes.CDLL | None:
    if os.environ.get(OFF):
        return None
    for path in sorted(Path(__file__).parent.glob(f"{name}*.so")):
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # built for another machine, or a library that it needs is missing
            continue
    return None


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = _load("view_kernels")
    if library is not None:
        library.mt_crop_resize.argtypes = [
            _POINTER,
            _LONG,
            _INT,
            _INT,
            _INT,
            _INT,
            _INT,
            _INT,
            _POINTER,
        ]
        library.mt_finish_view.argtypes = [
            _POINTER,
            _INT,
            _POINTER,
            _POINTER,
            _INT,
            _POINTER,
            _POINTER,
            _POINTER,
            _LONG,
            _LONG,
        ]
    return library


@functools.cache
def _decoder() -> ctypes.CDLL | None:
    library = _load("partial_jpeg")
    if library is not None:
        library.mt_decode_region.argtypes = [
            ctypes.c_char_p,
            _LONG,
            _INT,
            _INT,
            _INT,
            _INT,
            _INT,
            _INT,
            _POINTER,
        ]
    return library


def available() -> bool:
    """Return whether the compiled loops are there and wanted."""
    return _library() is not None


def decodes_parts() -> bool:
    """Return whether the decoder of parts of a JPEG is there and wanted."""
    return _decoder() is not None


def decode_region(data: bytes, region: tuple[int, int, int, int], *, out: np.ndarray) -> bool:
    """Decode a part of a JPEG, where that is certain to give the pixels of a decoder of whole
    images.

    Args:
        data: The file's bytes.
        region: (top, left, height, width) inside the image, px.
        out: uint8 (H, W, 3) without gaps, the size that the header says; the part is written to its
            place, around it anything.

    Returns:
        Whether it was. False says nothing about the file: the part may be outside, the JPEG of an
            unusual kind, or damaged.
    """
    if (
        out.dtype != np.uint8
        or out.ndim != 3
        or out.shape[2] != 3
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise ValueError(
            f"expected writable uint8 (H, W, 3) without gaps, got {out.dtype} {out.shape}."
        )
    return not _decoder().mt_decode_region(
        data, len(data), *out.shape[:2], *region, out.ctypes.data
    )


def crop_resize(
    image: np.ndarray, crop: tuple[int, int, int, int], *, flip: bool, out: np.ndarray
) -> None:
    """Cut, resize with Pillow's antialiased bilinear filter, and mirror.

    Args:
        image: uint8 (H, W, 3), RGB, each row without gaps.
        crop: (top, left, height, width) inside it, px.
        flip: Mirror left and right.
        out: uint8 (S, S, 3) without gaps; written.

    Raises:
        ValueError: If the crop is not inside the image, or an array is not as described.
    """
    top, left, height, width = crop
    if (
        top < 0
        or left < 0
        or height < 1
        or width < 1
        or top + height > image.shape[0]
        or left + width > image.shape[1]
    ):
        raise ValueError(f"crop {crop} is not inside an image of {image.shape[:2]}.")
    _check(image, out)
    stride = image.strides[0]
    if _library().mt_crop_resize(
        image.ctypes.data, stride, top, left, height, width, len(out), flip, out.ctypes.data
    ):
        raise MemoryError("no memory for a resized view")


def _check(image: np.ndarray, out: np.ndarray) -> None:
    right = (
        image.dtype == out.dtype == np.uint8 and image.strides[1:] == (3, 1) and image.shape[2] == 3
    )
    if not right or out.shape != (len(out), len(out), 3) or not out.flags.c_contiguous:
        raise ValueError(
            f"expected uint8 (H, W, 3) and (S, S, 3) without gaps, got {image.dtype}"
            f" {image.shape} and {out.dtype} {out.shape}."
        )


def finish_views(
    views: Tensor, steps: Tensor, kernels: Tensor, *, scale: Tensor, bias: Tensor, out: Tensor
) -> None:
    """Apply colours and blur and normalise; views are dealt out to ``torch.get_num_threads()``
    threads.

    Args:
        views: uint8 (B, S, S, 3), without gaps, CPU.
        steps: float32 (B, 10), operation (see ``view_colours.CODES``) and factor of five steps, in
            their order.
        kernels: float32 (B, R + 1), half of each view's blur kernel, all zeros for none.
        scale: float32 (3,); a value v comes out as v * scale + bias.
        bias: float32 (3,).
        out: float32 (B, 3, S, S), contiguous or channels-last; written.

    Raises:
        ValueError: If a tensor is not as described. The loops take addresses alone and would read
            past the end of a smaller one.
    """
    batch, size = views.shape[:2]
    expected = {
        "views": (batch, size, size, 3),
        "steps": (batch, 10),
        "kernels": (batch, None),
        "scale": (3,),
        "bias": (3,),
    }
    for name, tensor in zip(expected, (views, steps, kernels, scale, bias), strict=True):
        dtype = torch.uint8 if name == "views" else torch.float32
        fits = tensor.dim() == len(expected[name]) and all(
            want in (None, got) for want, got in zip(expected[name], tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits or (name == "kernels" and tensor.shape[1] < 1):
            raise ValueError(
                f"{name}: expected {dtype} {expected[name]}, got {tensor.dtype}"
                f" {tuple(tensor.shape)}."
            )
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(
                f"expected contiguous tensors on the CPU, got {tensor.shape} with strides"
                f" {tensor.stride()} on {tensor.device}."
            )
    if out.dtype != torch.float32 or out.device.type != "cpu":
        raise ValueError(
            f"out: expected torch.float32 on the CPU, got {out.dtype} on {out.device}."
        )
    channel, column = out.stride(1), out.stride(3)
    if (
        out.shape != (batch, 3, size, size)
        or out.stride(2) != size * column
        or (channel, column) not in ((size * size, 1), (1, 3))
    ):
        raise ValueError(
            f"out {tuple(out.shape)} with strides {out.stride()} does not fit views"
            f" {tuple(views.shape)}."
        )
    pointers = [t.data_ptr() for t in (views, steps, kernels, scale, bias, out)]
    jumps = [t.stride(0) * t.element_size() for t in (views, steps, kernels, out)]
    reach, finish = kernels.shape[1] - 1, _library().mt_finish_view

    def work(places: range) -> int:
        view, step, kernel, by, plus, target = pointers
        failed = 0
        for i in places:
            addresses = (
                view + i * jumps[0],
                size,
                step + i * jumps[1],
                kernel + i * jumps[2],
                reach,
                by,
                plus,
                target + i * jumps[3],
            )
            failed |= finish(*addresses, channel, column)
        return failed

    if any(in_threads(work, batch)):
        raise MemoryError("no memory for the colours of a view")
