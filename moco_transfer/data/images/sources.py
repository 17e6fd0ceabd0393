"""From what DATA.ROOT names to the images: folders, a list file, COCO's and VOC's folders,
CIFAR-10, packs, tar shards.

What a source has:
    len(source), source.labels (int64 (n,) or empty), source.class_names, source.describe(); and,
    shards excepted, which are read as a stream, source.name(index) and source.read(index) -> PIL
    RGB, source.decode(index, buffer, region) -> uint8 (H, W, 3), as ``decode.decode_pixels``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TypeAlias

from ...runtime.errors import InputError, MissingFileError
from ..annotations.catalog import builtin_datasets
from .cifar10 import looks_like_cifar10, read_cifar10
from .folder import ImageFolder, PathList, find_images, is_image
from .list_file import read_list_file
from .pack_reader import Pack, is_pack, open_pack
from .packed import PackedImages, PixelImages
from .shard_index import TAR_EXTENSIONS, ShardSet, is_url, open_shards

logger = logging.getLogger(__name__)

LAYOUTS = ("auto", "folders", "flat", "list", "cifar10", "shards", "pack")

IndexedImages: TypeAlias = ImageFolder | PackedImages | PixelImages | Pack
"""Images that can be read in any order."""
Images: TypeAlias = IndexedImages | ShardSet
"""Every kind of source."""

# Folders beside train/ that show that the root holds the splits of a data set, not its classes.
_OTHER_SPLITS = ("val", "test", "valid", "validation")
_WHOLE_SPLITS = (
    "coco_2014_train",
    "coco_2014_val",
    "coco_2017_train",
    "coco_2017_val",
    "coco_2017_test",
)


def open_source(
    root: str, *, layout: str = "auto", list_file: str = "", num_images: int = 0
) -> Images:
    """Find the images that a run trains on.

    Args:
        root: Folder, list file, archive, shards (folder, brace pattern, URL, index file), or the
            name of a data set (``coco_2017_train``) below the folder in DETECTRON2_DATASETS.
        layout: One of :data:`LAYOUTS`; ``auto`` goes by what is there, the others insist.
        list_file: List of the images; its paths are then relative to ``root``, or to its own
            folder when ``root`` is empty.
        num_images: Number of images in shards, where it cannot be counted; 0 elsewhere.

    Raises:
        MissingFileError: If what is named does not exist.
        InputError: If it holds no images, is damaged, or does not fit ``layout``.
    """
    if list_file:
        if layout not in ("auto", "list"):
            raise InputError(
                f"DATA.LIST_FILE is given and DATA.LAYOUT is {layout!r}. Set DATA.LAYOUT auto, or"
                " drop the list."
            )
        return _without_number(read_list_file(list_file, root), num_images)
    if not root:
        raise InputError(
            "DATA.ROOT is not set. Give the folder with the images, e.g. DATA.ROOT"
            " /data/imagenet/train."
        )
    if layout == "auto":
        layout = _recognize(root)
    if layout == "shards":
        return open_shards(root, num_images=num_images)
    return _without_number(_open_indexed(root, layout), num_images)


def _open_indexed(root: str, layout: str) -> IndexedImages:
    if layout == "name":
        return _from_name(root)
    if layout == "list":
        return read_list_file(root)
    if layout == "cifar10":
        return read_cifar10(root)
    if layout == "pack":
        return open_pack(root)
    if layout == "splits":
        folder = _training_split(Path(root))
        logger.info(
            "%s holds the splits of a data set; the images are taken from %s alone", root, folder
        )
        return find_images(folder)
    return find_images(root, layout=layout)


def _without_number(source: IndexedImages, num_images: int) -> IndexedImages:
    if num_images not in (0, len(source)):
        raise InputError(
            f"DATA.NUM_IMAGES is {num_images}, but there are {len(source)} images. It is for tar"
            " shards; set it to 0."
        )
    return source


def _recognize(root: str) -> str:
    """Return how ``root`` is laid out; ``find_images`` tells folders from flat, and says what is
    wrong with what does not exist.
    """
    path = Path(root)
    if is_url(root) or "{" in root and not path.exists():
        return "shards"
    if path.is_file():
        if root.lower().endswith(TAR_EXTENSIONS):
            return "cifar10" if looks_like_cifar10(path) else "shards"
        if root.lower().endswith(".json"):
            return "shards"
        if is_image(root):
            raise InputError(
                f"DATA.ROOT {root} is one image, expected a folder of images, a list file or"
                " tar shards."
            )
        return "list"
    if not path.exists():
        return "name" if root in builtin_datasets() else "auto"
    if looks_like_cifar10(path):
        return "cifar10"
    if is_pack(path):
        return "pack"
    if _training_split(path) is not None:
        return "splits"
    return "shards" if _holds_shards(path) else "auto"


def _training_split(root: Path) -> Path | None:
    """Return the folder of training images where the root is a data set's:

    COCO's, VOC's, or train/ beside val/.
    """
    if (root / "annotations").is_dir():
        for name in ("train2017", "train2014"):
            if (root / name).is_dir():
                return root / name
    if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        return root / "JPEGImages"
    if (root / "train").is_dir() and any((root / name).is_dir() for name in _OTHER_SPLITS):
        return root / "train"
    return None


def _holds_shards(root: Path) -> bool:
    names = [entry.name.lower() for entry in os.scandir(root)]
    return any(name.endswith(TAR_EXTENSIONS) for name in names) and not any(map(is_image, names))


def _from_name(name: str) -> ImageFolder:
    datasets = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    source = builtin_datasets()[name]
    if source.kind == "coco":
        if name.removeprefix("keypoints_") not in _WHOLE_SPLITS:
            raise InputError(
                f"DATA.ROOT {name} names a part of {datasets / source.image_root}. Give a list file"
                " with its images (DATA.LIST_FILE)."
            )
        folder = datasets / source.image_root
        if not folder.is_dir():
            raise _not_there(name, folder)
        return find_images(folder, layout="flat")
    split = datasets / source.root / "ImageSets" / "Main" / f"{source.split}.txt"
    if not split.is_file():
        raise _not_there(name, split)
    ids = [
        line.split()[0] for line in split.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    return ImageFolder(
        datasets / source.root / "JPEGImages",
        PathList([f"{image_id}.jpg" for image_id in ids]),
        listed_in=split,
    )


def _not_there(name: str, path: Path) -> MissingFileError:
    return MissingFileError(
        f"Data set {name}: {path} does not exist. Set DETECTRON2_DATASETS to the folder that holds"
        " coco, VOC2007 and VOC2012."
    )
