"""From what DATA.ROOT names to the images: folders, a list file, COCO's and VOC's folders,
CIFAR-10, tar shards.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ..annotations.catalog import dataset_names, get_dataset
from ..annotations.coco import load_json
from .cifar10 import looks_like_cifar10, read_cifar10
from .folder import ImageFolder, find_images, read_list_file
from .image_source import IndexedSource, is_image, name_table
from .tar_shards import LocalShards, ShardStream, open_local_shards, scheme_of

logger = logging.getLogger(__name__)

_TAR = (".tar", ".tar.gz", ".tgz")


def open_source(
    root: str,
    *,
    layout: str = "auto",
    list_file: str = "",
    num_images: int = 0,
    arrays: bool = False,
) -> IndexedSource | ShardStream:
    """Find the images that a run trains on. Collective for tar shards.

    The arguments are the values of DATA.ROOT, LAYOUT, LIST_FILE and NUM_IMAGES, described in
    ``config/pretrain_schema.yaml``; ``arrays`` takes .npy files of a folder too.

    MissingFileError if what is named does not exist, InputError if it holds no images, is damaged,
    or does not fit ``layout``.
    """
    if list_file and layout not in ("auto", "list"):
        raise InputError(f"DATA.LIST_FILE needs DATA.LAYOUT auto or list, got {layout!r}.")
    if not root and not list_file:
        raise InputError("DATA.ROOT is not set. Give the folder with the images.")
    layout = "list" if list_file else _recognize(root) if layout == "auto" else layout
    source: IndexedSource
    if layout == "shards":
        return _open_shards(root, num_images)
    if layout == "list":
        source = read_list_file(list_file or root, root if list_file else "")
    elif layout == "cifar10":
        source = read_cifar10(root)
    elif layout == "name":
        names = [record["file_name"] for record in get_dataset(root).records]
        source = ImageFolder(Path(), name_table(names), Path(root))
    else:
        source = find_images(_training_split(Path(root), layout), layout=layout, arrays=arrays)
    if num_images not in (0, len(source)):
        raise InputError(
            f"DATA.NUM_IMAGES is {num_images}, but there are {len(source)} images. It is for tar"
            " shards; set it to 0."
        )
    return source


def open_indexed(root: str, *, split: str = "train", arrays: bool = False) -> IndexedSource:
    """Find images that can be read in any order; of CIFAR-10 the given split. Errors are those of
    :func:`open_source`, and InputError for a stream of shards.
    """
    if os.path.exists(root) and looks_like_cifar10(root):
        return read_cifar10(root, split=split)
    source = open_source(root, arrays=arrays)
    if isinstance(source, ShardStream):
        raise InputError(
            f"{root} is a stream of tar shards, expected images that can be read in any order. Copy"
            " the shards to a local folder, uncompressed."
        )
    return source


def _recognize(root: str) -> str:
    """Return how ``root`` is laid out; ``find_images`` tells folders from flat, and reports what
    does not exist.
    """
    path, name = Path(root), root.lower()
    if scheme_of(root) or "{" in root and not path.exists():
        return "shards"
    if not path.exists():
        return "name" if root in dataset_names() else "auto"
    if path.is_file() and not name.endswith(_TAR):
        if is_image(root):
            raise InputError(f"DATA.ROOT {root} is one image. Give a folder, a list or tar shards.")
        return "shards" if name.endswith(".json") else "list"
    if looks_like_cifar10(path):
        return "cifar10"
    names = os.listdir(path) if path.is_dir() else [path.name]
    return "shards" if any(map(_is_tar, names)) and not any(map(is_image, names)) else "auto"


def _is_tar(name: str) -> bool:
    return name.lower().endswith(_TAR) and not name.startswith(".")


def _training_split(root: Path, layout: str) -> Path:
    """Return the folder of training images where the root is a data set's: COCO's, VOC's, or
    train/ next to val/; else the root.
    """
    found = root
    if layout != "auto":
        return root
    if (root / "annotations").is_dir():
        years = [root / "train2017", root / "train2014", root]
        found = next(folder for folder in years if folder.is_dir())
    elif (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        found = root / "JPEGImages"
    elif (root / "train").is_dir():
        # Other splits next to it show that the root's folders are no classes.
        others = ("val", "test", "valid", "validation")
        found = root / "train" if any((root / name).is_dir() for name in others) else root
    if found != root:
        logger.info("%s holds the splits of a data set; images are read from %s", root, found)
    return found


def _open_shards(root: str, num_images: int) -> LocalShards | ShardStream:
    """List shards; local ones are indexed, or trusted to hold ``num_images``."""
    is_index = root.lower().endswith(".json")
    names, counts = _read_index_file(Path(root)) if is_index else _list_shards(root)
    missing = [name for name in names if not scheme_of(name) and not os.path.isfile(name)]
    if missing:
        raise MissingFileError(
            f"DATA.ROOT {root}: shard {missing[0]} does not exist ({len(missing)} of {len(names)}"
            " do not)."
        )
    if len(set(names)) < len(names):
        raise InputError(f"{root} names {len(names) - len(set(names))} shards twice.")
    is_remote = any(map(scheme_of, names))
    if is_remote:
        _need_webdataset(root)
    if is_remote or num_images:
        total = int(counts.sum()) or num_images
        if not total:
            raise InputError(
                f"{root}: the number of images in its {len(names)} shards is not known. For shards"
                " by URL set DATA.NUM_IMAGES, or give an index file (made by `widsindex create`)."
            )
        if num_images not in (0, total):
            raise InputError(f"DATA.NUM_IMAGES is {num_images}, but {root} counts {total} images.")
        return ShardStream(root, tuple(names), total, counts)
    source = open_local_shards(root, [Path(name) for name in names])
    held = np.array([len(shard) for shard in source.shards], np.int64)
    if not len(source) or len(counts) and counts.tolist() != held.tolist():
        raise InputError(
            f"{root}: its shards hold {len(source)} images, expected"
            f" {counts.sum() if len(counts) else 'images named such as 000017.jpg'}."
        )
    if all(name.lower().endswith(".tar") for name in names):
        return source
    classes = source.class_names  # below: compressed
    return ShardStream(root, tuple(names), len(source), held, class_names=classes)


def _list_shards(root: str) -> tuple[list[str], np.ndarray]:
    path, names = Path(root), [root]
    if path.is_dir():
        names = [str(path / name) for name in sorted(filter(_is_tar, os.listdir(path)))]
        if not names:
            raise InputError(f"Data folder {root} holds no shard ({', '.join(_TAR)}).")
    elif "{" in root and not path.exists():
        _need_webdataset(root)
        import braceexpand

        try:
            names = list(braceexpand.braceexpand(root))
        except ValueError as error:
            raise InputError(f"DATA.ROOT {root}: {error}.") from error
    return names, np.zeros(0, np.int64)


def _need_webdataset(root: str) -> None:
    if importlib.util.find_spec("webdataset") is None:
        raise InputError(
            f"DATA.ROOT {root} needs webdataset. Install it: pip install 'moco-transfer[shards]'."
        )


def _read_index_file(file: Path) -> tuple[list[str], np.ndarray]:
    """Return the shards that an index in webdataset's format lists, and their images."""
    try:
        entries = load_json(file)["shardlist"]
        urls = [str(entry["url"]) for entry in entries]
        counts = np.array([int(entry["nsamples"]) for entry in entries], np.int64)
        if not urls or counts.min() < 0:
            raise ValueError("no shard, or a negative number of images")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file} is not an index of shards ({error!r}). Expected {{"shardlist": [{{"url": …,'
            ' "nsamples": …}, …]}.'
        ) from error
    programs = [url for url in urls if scheme_of(url) == "pipe"]
    if programs:  # an index may come from a stranger, and a stranger's file runs no program
        raise InputError(
            f"{file} asks to run a program: {programs[0]!r}. Give such shards in DATA.ROOT itself,"
            " with DATA.NUM_IMAGES."
        )
    return [url if scheme_of(url) else os.path.join(file.parent, url) for url in urls], counts
