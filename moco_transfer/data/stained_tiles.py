"""The demo's images: stained tissue from the wheel of ``histolytics``, cut into tiles.

Two sections of ovarian carcinoma (HGSC), 1500 x 1500 px. One has a mask of 1,294 nuclei: its upper
part is trained on, its lower part tested on, with a gap between them that is wider than a nucleus.
The other gives tiles without labels. No tile without a label, nor a training tile, has a pixel of
the tested part.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from . import tiles
from .tiles import Photograph

WHEEL = tiles.Wheel(
    "histolytics==0.3.0",
    "histolytics-0.3.0-py3-none-any.whl",
    "de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
)
CREDIT = "Sections and masks: histolytics 0.3.0 (BSD 3-clause licence, (c) HautaniemiLab)."
DETECTION_SIZE, LABELLED_SIZE, POOL_SIZE = 128, 48, 64  # px, sides of the tiles
TRAIN_ROWS, TEST_ROWS = (0, 960), (992, 1500)  # px, of the section with a mask


def write_tiles(wheel: Path, root: Path) -> dict[str, int]:
    """Cut the sections in ``wheel`` into the tiles of ``root``; return the number of each kind.

    Writes ``pool/`` (without labels), ``labelled/{train,test}/{nucleus,none}/``, ``detection/``
    (VOC's layout, splits ``train`` and ``test``) and the licence. ``root`` exists when everything
    is in it.
    """
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        (partial / "LICENSE").write_bytes(archive.read(licence))
        section, other = (_image(archive, name) for name in ("hgsc_nest", "hgsc_stromal_he"))
        packed = io.BytesIO(archive.read("histolytics/data/hgsc_nest_inst_mask.npz"))
        boxes = _boxes_of(next(iter(np.load(packed, allow_pickle=False).values())))
    counts = {"pool": _write_pool(Photograph("stroma", "train", other, np.empty((0, 4))), partial)}
    for split, (top, bottom) in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        image = section.crop((0, top, section.width, bottom))
        part = Photograph(f"nest_{split}", split, image, boxes - (0, top, 0, top))
        written, nuclei = tiles.write_detection(
            part, partial / "detection", split, size=DETECTION_SIZE, class_name="nucleus"
        )
        counts |= {f"detection_{split}": written, f"nuclei_{split}": nuclei}
        counts[f"labelled_{split}"] = tiles.write_labelled(
            part, partial / "labelled" / split, LABELLED_SIZE, ("nucleus", "none")
        )
        if split == "train":
            counts["pool"] += _write_pool(part, partial)
    partial.rename(root)
    return counts


def _write_pool(part: Photograph, root: Path) -> int:
    return tiles.write_pool(part, root / "pool", POOL_SIZE)


def _image(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(f"histolytics/data/{name}.jpg"))).convert("RGB")


def _boxes_of(mask: np.ndarray) -> np.ndarray:
    """Return the boxes (N, 4), XYXY px, right and lower exclusive, of the ids 1..N of a mask."""
    ys, xs = np.nonzero(mask)
    ids, found = np.unique(mask[ys, xs], return_inverse=True)
    low, high = np.full((2, len(ids)), np.inf), np.zeros((2, len(ids)))
    for side, places in enumerate((xs, ys)):
        np.minimum.at(low[side], found, places)
        np.maximum.at(high[side], found, places + 1)
    return np.concatenate([low, high]).T
