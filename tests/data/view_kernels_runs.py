"""Call the compiled loops, built with sanitizers, with every shape that their callers can give:
``python view_kernels_runs.py LIBRARY [overrun]``; test_view_kernels_sanitized.py runs it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import torch

from moco_transfer.data.views import native


def crops(rng: np.random.Generator) -> int:
    """Crop and resize images of 1 px to 300 px a side, of rows with gaps too, by any crop."""
    count = 0
    for size in (1, 2, 3, 7, 16, 31, 32, 33, 96, 224):
        for height, width in ((1, 1), (1, 300), (300, 1), (2, 3), (16, 17), (64, 48), (257, 255)):
            whole = np.ascontiguousarray(rng.integers(0, 256, (height, width + 5, 3), np.uint8))
            for gap in (0, 5):
                image = np.ascontiguousarray(whole[:, :width]) if not gap else whole[:, :width]
                for _ in range(3):
                    h, w = (int(rng.integers(1, side + 1)) for side in (height, width))
                    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                    for crop in ((top, left, h, w), (0, 0, height, width)):
                        out = np.empty((size, size, 3), np.uint8)
                        native.crop_resize(image, crop, flip=bool(count % 2), out=out)
                        count += 1
    return count


def colours(rng: np.random.Generator) -> int:
    """Finish views of 1 px to 224 px with every operation, reach of the blur and layout."""
    count = 0
    for size in (1, 2, 3, 5, 15, 16, 17, 32, 64, 224):
        for reach in (0, 1, 2, 3, 11, 29, 30, 40):
            views = torch.from_numpy(rng.integers(0, 256, (2, size, size, 3), np.uint8))
            steps = torch.zeros(2, 5, 2)
            steps[..., 0] = torch.from_numpy(rng.integers(0, 6, (2, 5)).astype(np.float32))
            steps[..., 1] = torch.from_numpy(rng.uniform(-0.5, 2, (2, 5)).astype(np.float32))
            kernels = torch.from_numpy(rng.uniform(0, 1, (2, reach + 1)).astype(np.float32))
            kernels[1] = 0
            for layout in (torch.contiguous_format, torch.channels_last):
                out = torch.empty(2, 3, size, size).contiguous(memory_format=layout)
                scale, bias = torch.ones(3) / 255, torch.zeros(3)
                native.finish_views(
                    views, steps.reshape(2, 10), kernels, scale=scale, bias=bias, out=out
                )
                assert out.isfinite().all()
                count += 1
    return count


def main() -> None:
    """Load the library in the place of the installed one, and run."""
    library = ctypes.CDLL(sys.argv[1])
    installed = ctypes.CDLL
    ctypes.CDLL = lambda path: installed(sys.argv[1])  # type: ignore[assignment,misc]
    native._library.cache_clear()
    assert native._library()._name == sys.argv[1], "another library is in use"
    ctypes.CDLL = installed  # type: ignore[misc]
    assert hasattr(library, "__asan_init"), "no sanitizer"
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    if "overrun" in sys.argv:
        small = np.zeros((4, 4, 3), np.uint8)
        native.crop_resize(small, (0, 0, 400, 4), flip=False, out=np.empty((8, 8, 3), np.uint8))
    print(f"{crops(rng)} crops, {colours(rng)} views in {Path(sys.argv[1]).name}")


if __name__ == "__main__":
    main()
