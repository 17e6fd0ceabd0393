"""Stand-ins for the wheels with the demo's and the tutorial's images: small, with known objects."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from moco_transfer.data import aerial_tiles, stained_tiles
from moco_transfer.data.tiles import Wheel
from moco_transfer.runtime.files import sha256_of

RED, GREEN = (220, 30, 30), (40, 120, 40)
Box = tuple[int, int, int, int]  # x0, y0, x1, y1, right and lower exclusive
# The first tree is whole in the tile at 0; the second is to a quarter in it, the rest in the next.
TREES: list[Box] = [(10, 10, 50, 50), (190, 100, 230, 140)]
SIZE = (420, 200)  # of each photograph, px

WITHIN, BEYOND = (40, 120, 40), (220, 30, 30)  # of what may be seen before the test; of the rest
# Nuclei of the section: for training, between the parts, for testing.
NUCLEI: list[Box] = [(10, 20, 26, 40), (10, 965, 30, 985), (140, 1000, 160, 1030)]


def write_wheel(path: Path, monkeypatch) -> Path:
    """Write the wheel of photographs, and let its SHA-256 be expected."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deepforest-2.1.0.dist-info/licenses/LICENSE", "MIT")
        for split, names in aerial_tiles.PHOTOGRAPHS.items():
            for name in names:
                archive.writestr(f"deepforest/data/{name}.png", _png())
                if split != "unlabelled":
                    archive.writestr(f"deepforest/data/{name}.xml", _xml())
    monkeypatch.setattr(aerial_tiles, "SHA256", sha256_of(path))
    return path


def _png() -> bytes:
    pixels = np.full((SIZE[1], SIZE[0], 3), GREEN, np.uint8)
    for x0, y0, x1, y1 in TREES:
        pixels[y0:y1, x0:x1] = RED
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _xml() -> str:
    objects = "".join(
        f"<object><name>Tree</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in TREES
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
    return f"<annotation>{size}{objects}</annotation>"


def write_stained_wheel(path: Path, monkeypatch) -> Path:
    """Write the wheel of stained sections, and let the demo expect its SHA-256."""
    section = np.full((1500, 256, 3), WITHIN, np.uint8)
    section[976:] = BEYOND  # whole blocks of the JPEG
    mask = np.zeros((1500, 256), np.int32)
    for number, (x0, y0, x1, y1) in enumerate(NUCLEI, start=1):
        mask[y0:y1, x0:x1] = number
    packed = io.BytesIO()
    np.savez(packed, nuc_raster=mask)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("histolytics-0.3.0.dist-info/licenses/LICENSE", "BSD")
        archive.writestr("histolytics/data/hgsc_nest_inst_mask.npz", packed.getvalue())
        for name, pixels in (("nest", section), ("stromal_he", section[:960])):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            archive.writestr(f"histolytics/data/hgsc_{name}.jpg", file.getvalue())
    monkeypatch.setattr(stained_tiles, "WHEEL", Wheel("x", path.name, sha256_of(path)))
    return path
