"""The compiled loops of the fast pipeline (view_kernels.c), called through ctypes, and threads.

Installing with a C compiler builds the loops next to this file. Without them torch's operators give
the same views more slowly (``view_batch.resized_crop``, ``view_colours.py``).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OFF = "MOCO_TRANSFER_NO_NATIVE"
"""Environment variable; set to anything to switch the compiled loops off."""

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


@functools.cache
def _library() -> Any:  # a CDLL, or None without the loops
    if os.environ.get(OFF):
        return None
    for path in sorted(Path(__file__).parent.glob("view_kernels*.so")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # built for another machine, or a library that it needs is missing
            continue
        library.mt_crop_resize.argtypes = [_POINTER, _LONG, *[_INT] * 6, _POINTER]
        library.mt_finish_view.argtypes = [
            *(_POINTER, _INT, _POINTER, _POINTER, _INT),
            *(_POINTER, _POINTER, _POINTER, _LONG, _LONG),
        ]
        return library
    return None


def available() -> bool:
    """Return whether the compiled loops are there and switched on."""
    return _library() is not None


def crop_resize(
    image: np.ndarray, crop: tuple[int, int, int, int], *, flip: bool, out: np.ndarray
) -> None:
    """Crop (top, left, height, width) of uint8 (H, W, 3), resize with Pillow's antialiased bilinear
    filter to ``out``, uint8 (S, S, 3), and mirror.

    ``out`` has no gaps, and ``image`` none but between rows; the crop lies inside it.
    """
    place = (*crop, len(out), flip)
    if _library().mt_crop_resize(image.ctypes.data, image.strides[0], *place, out.ctypes.data):
        raise MemoryError("no memory for a resized view")


def finish_views(
    views: Tensor, steps: Tensor, kernels: Tensor, *, scale: Tensor, bias: Tensor, out: Tensor
) -> None:
    """Apply colours and blur and normalise, on ``torch.get_num_threads()`` threads.

    Args:
        views: uint8 (B, S, S, 3), contiguous, CPU.
        steps: float32 (B, 10), operation (see ``view_colours.CODES``) and factor of five steps.
        kernels: float32 (B, R + 1), half of each view's blur kernel, all zeros for none.
        scale: float32 (3,); a value v becomes v * scale + bias.
        bias: float32 (3,).
        out: float32 (B, 3, S, S), contiguous or channels-last; written.
    """
    batch, size = views.shape[:2]
    reach = kernels.shape[1] - 1
    channel, column = (size * size, 1) if out.is_contiguous() else (1, 3)
    tensors = (views, steps, kernels, scale, bias, out)
    view, step, kernel, by, plus, target = (tensor.data_ptr() for tensor in tensors)
    jumps = [t.stride(0) * t.element_size() for t in (views, steps, kernels, out)]
    finish = _library().mt_finish_view

    def work(places: range) -> int:
        failed = 0
        for i in places:
            addresses = (view + i * jumps[0], size, step + i * jumps[1], kernel + i * jumps[2])
            failed |= finish(*addresses, reach, by, plus, target + i * jumps[3], channel, column)
        return failed

    if any(in_threads(work, batch)):
        raise MemoryError("no memory for the colours of a view")


def in_threads(work: Callable[[range], Any], count: int) -> list[Any]:
    """Call ``work`` with parts of ``range(count)``, one for each of ``torch.get_num_threads()``
    threads (1 in a data worker); returns the results in the order of the parts.
    """
    threads = max(1, min(torch.get_num_threads(), count))
    parts = [range(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
    if threads == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))
