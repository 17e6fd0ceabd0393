"""From what DATA.ROOT names to the images: folders, a list file, COCO's and VOC's folders,
CIFAR-10, tar shards.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ..annotations.catalog import builtin_datasets
from .cifar10 import HeldImages, looks_like_cifar10, read_cifar10
from .folder import ImageFolder, find_images
from .image_source import is_image, name_table
from .list_file import read_list_file
from .local_shards import LocalShards, open_local_shards
from .shard_stream import ShardStream, scheme_of

logger = logging.getLogger(__name__)

LAYOUTS = ("auto", "folders", "flat", "list", "cifar10", "shards")

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
# Folders next to train/ that show that the root holds the splits of a data set, not its classes.
_OTHER_SPLITS = ("val", "test", "valid", "validation")
_WHOLE_SPLITS = tuple(
    f"coco_{split}" for split in ("2014_train", "2014_val", "2017_train", "2017_val", "2017_test")
)


def open_source(
    root: str, *, layout: str = "auto", list_file: str = "", num_images: int = 0
) -> ImageFolder | HeldImages | LocalShards | ShardStream:
    """Find the images that a run trains on. Collective for tar shards.

    Args:
        root: Folder, list file, archive, shards (folder, brace pattern, URL, ``pipe:COMMAND``,
            index file), or the name of a data set (``coco_2017_train``) below the folder in
            DETECTRON2_DATASETS.
        layout: One of :data:`LAYOUTS`; ``auto`` goes by what is there, the others insist.
        list_file: List of the images; its paths are then relative to ``root``, or to its own
            folder when ``root`` is empty.
        num_images: Number of images in shards, taken on trust: they are then read as a stream,
            nothing is indexed, and labels are not looked for. 0 elsewhere.

    Raises:
        MissingFileError: If what is named does not exist.
        InputError: If it holds no images, is damaged, or does not fit ``layout``.
    """
    if list_file and layout not in ("auto", "list"):
        raise InputError(
            f"DATA.LIST_FILE is given and DATA.LAYOUT is {layout!r}. Set DATA.LAYOUT auto, or"
            " remove the list."
        )
    if not root and not list_file:
        raise InputError(
            "DATA.ROOT is not set. Give the folder with the images, e.g. DATA.ROOT"
            " /data/imagenet/train."
        )
    if layout == "auto" and not list_file:
        layout = _recognize(root)
    if layout == "shards":
        return _open_shards(root, num_images)
    source = read_list_file(list_file, root) if list_file else _open_files(root, layout)
    if num_images not in (0, len(source)):
        raise InputError(
            f"DATA.NUM_IMAGES is {num_images}, but there are {len(source)} images. It is for tar"
            " shards; set it to 0."
        )
    return source


def open_indexed(root: str, *, split: str = "train") -> ImageFolder | HeldImages | LocalShards:
    """Find images that can be read in any order.

    Args:
        root: As of :func:`open_source`.
        split: Of CIFAR-10, ``train`` or ``test``.

    Raises:
        MissingFileError, InputError: As :func:`open_source`, and for a stream of shards.
    """
    if os.path.exists(root) and looks_like_cifar10(root):
        return read_cifar10(root, split=split)
    source = open_source(root)
    if isinstance(source, ShardStream):
        raise InputError(
            f"{root} holds tar shards that are read as a stream, expected images that can be read"
            " in any order. Copy the shards to a local folder, uncompressed."
        )
    return source


def _open_files(root: str, layout: str) -> ImageFolder | HeldImages:
    if layout == "name":
        return _from_name(root)
    if layout == "list":
        return read_list_file(root)
    if layout == "cifar10":
        return read_cifar10(root)
    folder = _training_split(Path(root)) if layout == "splits" else None
    if folder is not None:
        logger.info("%s holds the splits of a data set; images are read from %s", root, folder)
        return find_images(folder)
    return find_images(root, layout=layout)


def _recognize(root: str) -> str:
    """Return how ``root`` is laid out; ``find_images`` tells folders from flat, and reports what
    does not exist.
    """
    path = Path(root)
    if scheme_of(root) or root.lower().startswith("file:") or "{" in root and not path.exists():
        return "shards"
    if path.is_file():
        if root.lower().endswith(TAR_EXTENSIONS):
            return "cifar10" if looks_like_cifar10(path) else "shards"
        if is_image(root):
            raise InputError(
                f"DATA.ROOT {root} is one image, expected a folder of images, a list file or"
                " tar shards."
            )
        return "shards" if root.lower().endswith(".json") else "list"
    if not path.exists():
        return "name" if root in builtin_datasets() else "auto"
    if looks_like_cifar10(path):
        return "cifar10"
    if _training_split(path) is not None:
        return "splits"
    names = os.listdir(path)
    return "shards" if any(map(_is_tar, names)) and not any(map(is_image, names)) else "auto"


def _is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_EXTENSIONS) and not name.startswith(".")


def _training_split(root: Path) -> Path | None:
    """Return the folder of training images where the root is a data set's: COCO's, VOC's, or
    train/ next to val/.
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


def _from_name(name: str) -> ImageFolder:
    datasets = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    source = builtin_datasets()[name]
    if source.kind != "coco":
        split = datasets / str(source.root) / "ImageSets" / "Main" / f"{source.split}.txt"
        _check_there(name, split, split.is_file())
        rows = split.read_text(encoding="utf-8").splitlines()
        names = name_table(f"{row.split()[0]}.jpg" for row in rows if row.strip())
        return ImageFolder(datasets / str(source.root) / "JPEGImages", names, listed_in=split)
    folder = datasets / str(source.image_root)
    if name.removeprefix("keypoints_") not in _WHOLE_SPLITS:
        raise InputError(
            f"DATA.ROOT {name} names a part of {folder}. Give a list file with its images"
            " (DATA.LIST_FILE)."
        )
    _check_there(name, folder, folder.is_dir())
    return find_images(folder, layout="flat")


def _check_there(name: str, path: Path, there: bool) -> None:
    if not there:
        raise MissingFileError(
            f"Data set {name}: {path} does not exist. Set DETECTRON2_DATASETS to the folder that"
            " holds coco, VOC2007 and VOC2012."
        )


def _open_shards(root: str, num_images: int) -> LocalShards | ShardStream:
    """List shards; local ones are indexed, or trusted to hold ``num_images``."""
    counts = np.zeros(0, np.int64)
    if root.lower().endswith(".json"):
        names, counts = _read_index_file(Path(root))
    else:
        names = _list_shards(root)
    local = [name for name in names if not scheme_of(name)]
    missing = [name for name in local if not os.path.isfile(name)]
    if missing:
        raise MissingFileError(
            f"DATA.ROOT {root}: shard {missing[0]} does not exist ({len(missing)} of {len(names)}"
            " do not)."
        )
    if len(set(names)) < len(names):
        raise InputError(f"{root} names {len(names) - len(set(names))} shards twice.")
    _check_schemes(names)
    if len(local) == len(names) and not num_images:
        source: LocalShards | ShardStream
        source = opened = open_local_shards(root, [Path(name) for name in names])
        if len(counts) and counts.tolist() != [len(shard) for shard in opened.shards]:
            raise InputError(f"{root} counts other images than its shards hold. Make it again.")
        if any(not name.lower().endswith(".tar") for name in names):  # compressed: no memory map
            counts = np.array([len(shard) for shard in opened.shards], np.int64)
            source = ShardStream(root, tuple(names), len(opened), counts, opened.class_names)
    else:
        source = ShardStream(root, tuple(names), int(counts.sum()) or num_images, counts)
    if not len(source):
        raise InputError(
            f"{root}: the number of images in its {len(names)} shards is 0 or not known; the first"
            f" is {names[0]}. Images are named such as 000017.jpg. For shards by URL set"
            " DATA.NUM_IMAGES, or give an index file (made by `widsindex create`)."
        )
    if num_images not in (0, len(source)):
        raise InputError(
            f"DATA.NUM_IMAGES is {num_images}, but the index {root} counts {len(source)} images."
            " Set it to 0."
        )
    return source


def _list_shards(root: str) -> list[str]:
    path = Path(root)
    if path.is_dir():
        found = [str(path / name) for name in sorted(filter(_is_tar, os.listdir(path)))]
        if not found:
            raise InputError(f"Data folder {root} holds no shard ({', '.join(TAR_EXTENSIONS)}).")
        return found
    if path.exists() or "{" not in root:
        return [_as_path(root)]
    _need_webdataset(root)
    import braceexpand

    try:
        return [_as_path(name) for name in braceexpand.braceexpand(root)]
    except braceexpand.UnbalancedBracesError as error:  # type: ignore[attr-defined]
        raise InputError(
            f"DATA.ROOT {root}: the braces do not match. Write a pattern such as"
            " train-{000..146}.tar."
        ) from error


def _as_path(name: str) -> str:
    return url2pathname(urlparse(name).path) if name.lower().startswith("file:") else name


def _need_webdataset(root: str) -> None:
    if importlib.util.find_spec("webdataset") is None:
        raise InputError(
            f"DATA.ROOT {root} needs webdataset. Install it: pip install 'moco-transfer[shards]'."
        )


def _check_schemes(names: list[str]) -> None:
    for name in filter(scheme_of, names):
        _need_webdataset(name)
        from webdataset.gopen import gopen_schemes

        if scheme_of(name) not in gopen_schemes:
            known = ", ".join(sorted(s for s in gopen_schemes if not s.startswith("_")))
            raise InputError(
                f"DATA.ROOT {name}: webdataset does not read this kind of URL, only {known}. A"
                " program that writes a shard to its standard output works too, e.g. 'pipe:aws s3"
                " cp s3://bucket/train-{000..146}.tar -'."
            )


def _read_index_file(file: Path) -> tuple[list[str], np.ndarray]:
    """Return the shards that an index in webdataset's format lists, and their images."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["shardlist"]
        urls = [_as_path(str(entry["url"])) for entry in entries]
        counts = np.array([int(entry["nsamples"]) for entry in entries], np.int64)
    except FileNotFoundError as error:
        raise MissingFileError(f"Index file {file} does not exist (DATA.ROOT).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file} is not an index of shards ({error!r}). Expected {{"shardlist": [{{"url": …,'
            ' "nsamples": …}, …]}.'
        ) from error
    if not urls or counts.min() < 0:
        raise InputError(f"{file} lists no shard, or a negative number of images.")
    programs = [url for url in urls if scheme_of(url) == "pipe"]
    if programs:  # an index may come from a stranger, and a stranger's file runs no program
        raise InputError(
            f"{file} asks to run a program: {programs[0]!r}. Give such shards in DATA.ROOT itself,"
            " with DATA.NUM_IMAGES."
        )
    return [url if scheme_of(url) else os.path.join(file.parent, url) for url in urls], counts
