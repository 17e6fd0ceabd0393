"""How many images local shards hold: read once from the tar headers and kept beside the shards.

The file ``moco_transfer_index.json`` is in webdataset's index format, so its tools read it too; an
entry is used again only while its shard's size and time of change are the same.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...runtime.distributed import (
    broadcast_object,
    gather_object,
    get_rank,
    get_world_size,
    is_main_process,
)
from ...runtime.errors import InputError
from ...runtime.files import atomic_write_text
from .folder import EXTENSIONS, is_image

logger = logging.getLogger(__name__)

INDEX_FILE = "moco_transfer_index.json"
PICTURE_EXTENSIONS = tuple(extension[1:] for extension in EXTENSIONS)

_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset keeps for itself
_KEY = re.compile(
    r"^((?:.*/|)[^.]+)[.]([^/]*)$"
)  # its rule for a sample's key: up to the first dot of the file's name


@dataclass(frozen=True)
class ShardCount:
    """What a shard holds.

    Attributes:
        num_images: Number of images.
        num_classes: Largest label + 1; 0 unless every image has one.
    """

    num_images: int
    num_classes: int


def count_shards(files: list[Path]) -> list[ShardCount]:
    """Count the images in local shards, each process its part of those whose number is not kept.
    Collective.

    Raises:
        InputError: If a shard is damaged; names it.
    """
    # An error on one process ends it, and torchrun then ends the others, which wait here. Every
    # process counts, because one that counted alone would let the others wait for longer than a
    # process group does.
    known = _kept_entries(files) if is_main_process() else None
    fresh: list[Path] = broadcast_object(
        [file for file in files if not _is_current(known[file.parent].get(file.name), file)]
        if known
        else None
    )
    if fresh and is_main_process():
        logger.info("counting the images in %d shards", len(fresh))
    parts = gather_object({file: _entry_of(file) for file in _own_part(fresh)})
    if known is None:
        return broadcast_object(None)
    for file, entry in (item for part in parts for item in part.items()):
        known[file.parent][file.name] = entry
    for folder in {file.parent for file in fresh}:
        _write_index(folder / INDEX_FILE, known[folder])
    entries = [known[file.parent][file.name] for file in files]
    return broadcast_object(
        [ShardCount(entry["nsamples"], entry["num_classes"]) for entry in entries]
    )


def _own_part(files: list[Path]) -> Iterable[Path]:
    own = files[get_rank() :: get_world_size()]
    return tqdm(
        own,
        desc="counting images",
        unit="shard",
        disable=None if is_main_process() else True,
        leave=False,
    )


def _kept_entries(files: list[Path]) -> dict[Path, dict[str, dict]]:
    return {folder: _read_index(folder / INDEX_FILE) for folder in {file.parent for file in files}}


def _entry_of(file: Path) -> dict[str, str | int]:
    found, status = count_images(file), file.stat()
    return {
        "url": file.name,
        "nsamples": found.num_images,
        "filesize": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "num_classes": found.num_classes,
    }


def _read_index(file: Path) -> dict[str, dict]:
    try:
        return {
            entry["url"]: entry
            for entry in json.loads(file.read_text(encoding="utf-8"))["shardlist"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s); the shards are counted again", file, error)
        return {}


def _is_current(entry: dict | None, file: Path) -> bool:
    status = file.stat()
    needed = ("nsamples", "num_classes")
    if entry is None or any(not isinstance(entry.get(key), int) for key in needed):
        return False
    return (entry.get("filesize"), entry.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)


def _write_index(file: Path, entries: dict[str, dict]) -> None:
    content = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": file.parent.name,
        "shardlist": [entries[name] for name in sorted(entries)],
    }
    try:
        atomic_write_text(file, json.dumps(content, indent=1) + "\n")
        logger.info("kept the numbers of images in %s", file)
    except InputError as error:  # a data folder that cannot be written to is no reason not to train
        logger.info("the numbers of images are not kept, the next run counts again (%s)", error)


def count_images(file: Path) -> ShardCount:
    """Count the images in one tar file by its headers.

    Raises:
        InputError: If it is damaged or cut off.
    """
    unclear: list[str] = []
    try:
        with tarfile.open(file) as archive:
            images, labelled, highest = 0, 0, -1
            for names in samples_of(_members(archive), unclear):
                if image_of(names) is None:
                    continue
                images += 1
                label = (
                    label_of(archive.extractfile(names["cls"]).read()) if "cls" in names else None
                )
                if label is not None:
                    labelled, highest = labelled + 1, max(highest, label)
            end = archive.offset
            whole = archive.fileobj.seek(end) == end and archive.fileobj.read(512) == bytes(512)
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise InputError(
            f"Shard {file} cannot be read ({error}): it is damaged or no tar file. Write or fetch"
            " it again."
        ) from error
    if not whole:
        where = f"after {end} bytes, {images} images"
        raise InputError(
            f"Shard {file} is damaged or cut off {where}: no end of archive there. Write or fetch"
            " it again."
        )
    if unclear:
        logger.warning(
            "%s: %d images are left out, the first is %s: webdataset takes what follows the first"
            " dot of a name as its extension. Rename them.",
            file,
            len(unclear),
            unclear[0],
        )
    return ShardCount(images, highest + 1 if labelled == images else 0)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members = []  # or the list would hold every header of the shard
        if member.isreg():
            yield member


def samples_of(
    members: Iterable[tarfile.TarInfo], unclear: list[str]
) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Group a shard's members as webdataset does.

    Args:
        members: Regular files, in the order of the tar file.
        unclear: The names of what looks like an image in samples that have none are appended: a
            further dot hides it.

    Yields:
        Per sample, its members by extension.

    Raises:
        ValueError: If a sample has two members of one extension.
    """
    key, sample = None, {}
    for member in members:
        match = _KEY.match(member.name)
        if _META.match(member.name) or match is None:
            continue
        if match[1] != key:
            if sample:
                yield _checked(sample, unclear)
            key, sample = match[1], {}
        if match[2] in sample:
            raise ValueError(f"{member.name} is there twice in a row")
        sample[match[2]] = member
    if sample:
        yield _checked(sample, unclear)


def _checked(sample: dict[str, tarfile.TarInfo], unclear: list[str]) -> dict[str, tarfile.TarInfo]:
    if image_of(sample) is None:
        unclear += [member.name for member in sample.values() if is_image(member.name)]
    return sample


def image_of(extensions: Iterable[str]) -> str | None:
    """Return the first extension that is an image's, in upper or lower case, None if there is
    none.
    """
    return next(
        (extension for extension in extensions if extension.lower() in PICTURE_EXTENSIONS), None
    )


def label_of(content: bytes) -> int | None:
    """Return the class number that a ``.cls`` file holds, None if it holds something else."""
    text = content.strip()
    return int(text) if text.isdigit() else None
