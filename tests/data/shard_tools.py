"""Writes small tar shards whose images can be told apart by their colour."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def shade_of(number: int) -> tuple[int, int, int]:
    """Return the one colour of image ``number``, 0 to 4095."""
    return (number % 16 * 16, number // 16 % 16 * 16, number // 256 * 16)


def number_of(view: np.ndarray) -> int:
    """Return the number of the image that a view (3, H, W) of one colour shows."""
    red, green, blue = (int(v) // 16 for v in view[:, 0, 0])
    return red + 16 * green + 256 * blue


def png(number: int, size: int = 6) -> bytes:
    """Encode image ``number``."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), shade_of(number)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar file with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(
    folder: Path, counts: list[int], *, labels: bool = False, broken: tuple[int, ...] = ()
) -> Path:
    """Write shards with so many images each, numbered through; the images in ``broken`` cannot
    be decoded.
    """
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            members.append((f"{number:06d}.png", b"damaged" if number in broken else png(number)))
            if labels:
                members.append((f"{number:06d}.cls", str(number % 3).encode()))
            number += 1
        write_tar(folder / f"train-{shard:03d}.tar", members)
    return folder
