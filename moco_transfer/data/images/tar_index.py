"""Where each image lies in local tar shards: read once from their headers and kept next to them.

A shard is a tar file of samples as webdataset reads them: successive files that share their name up
to the first dot are one sample, such as 000017.jpg and 000017.cls. A sample's image is its first
file whose extension is an image's, or a ``.npy`` file of uint8 (H, W, 3). Its label is the number
in ``.cls``. The index of SHARD.tar is SHARD.tar.index.npz.
"""

from __future__ import annotations

import logging
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime import distributed
from ...runtime.errors import InputError
from ...runtime.files import atomic_path
from .image_source import EXTENSIONS, Table, is_image, name_table

logger = logging.getLogger(__name__)

BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error, ValueError)
"""What reading a damaged tar file raises."""

# webdataset's rules: names that it keeps for itself, and a sample's key.
_META = re.compile(r"__[^/]*__($|/)")
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard."""

    state: tuple[int, int]  # size of the shard, bytes, and when it was changed last, ns
    offsets: np.ndarray  # int64 (number of images,), bytes
    sizes: np.ndarray
    labels: np.ndarray  # int64 (number of images,), -1 without
    names: Table[str]  # of the members

    def __len__(self) -> int:
        return len(self.labels)


def index_shards(files: list[Path]) -> list[ShardIndex]:
    """Index local shards, each process its part of those that are not indexed yet. Collective.
    InputError names a damaged shard.
    """
    # Every process indexes: while one did it alone, the process group of the others would time out.
    is_main = distributed.is_main_process()
    fresh = [file for file in files if _read(file) is None] if is_main else []
    fresh = distributed.broadcast_object(fresh)
    if fresh and is_main:
        logger.info("reading the headers of %d shards", len(fresh))
    own = fresh[distributed.get_rank() :: distributed.get_world_size()]
    made: dict[Path, ShardIndex] = {}
    for part in distributed.all_gather_object({file: _index_and_keep(file) for file in own}):
        made |= part
    return [made.get(file) or _read(file) or index_shard(file) for file in files]


def _state_of(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read(shard: Path) -> ShardIndex | None:
    """Return a shard's index if it is kept and the shard has not changed since."""
    file = Path(f"{shard}.index.npz")
    try:
        with np.load(file, allow_pickle=False) as kept:
            names = name_table(())
            names.ends, names.data = map(torch.from_numpy, (kept["ends"], kept["names"]))
            state = tuple(kept["state"].tolist())
            index = ShardIndex(state, kept["offsets"], kept["sizes"], kept["labels"], names)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s cannot be read (%s) and is made again", file, error)
        return None
    return index if index.state == _state_of(shard) else None


def _index_and_keep(shard: Path) -> ShardIndex:
    index, file = index_shard(shard), Path(f"{shard}.index.npz")
    arrays = vars(index) | {"ends": index.names.ends, "names": index.names.data}
    try:
        with atomic_path(file) as temporary, open(temporary, "wb") as out:
            np.savez(out, **arrays)
    except (InputError, OSError) as error:  # a data folder may be read-only
        logger.info("%s is not kept, the next run makes it again (%s)", file, error)
    return index


def index_shard(file: Path) -> ShardIndex:
    """Index one tar file by its headers; InputError if it is damaged or cut off."""
    state, rows, names, unclear = _state_of(file), [], [], []
    try:
        with tarfile.open(file) as archive:
            for sample in group_samples((member.name, member) for member in files_of(archive)):
                image = image_of(sample)
                if image is None:
                    unclear += [name for name, _ in sample.values() if is_image(name)]
                    continue
                name, member = sample[image]
                opened = archive.extractfile(sample["cls"][1]) if "cls" in sample else None
                label = label_of(opened.read()) if opened is not None else -1
                rows.append((member.offset_data, member.size, label))
                names.append(name)
            end = archive.offset
            assert archive.fileobj is not None
            if archive.fileobj.seek(end) != end or archive.fileobj.read(512) != bytes(512):
                raise ValueError(f"no end of archive after {end} bytes, {len(rows)} images")
    except BROKEN as error:
        raise InputError(
            f"Shard {file} cannot be read ({error}). Write or download it again."
        ) from error
    if unclear:
        logger.warning(
            "%s: %d images are left out, the first is %s: rename those with a further dot",
            *(file, len(unclear), unclear[0]),
        )
    offsets, sizes, labels = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    return ShardIndex(state, offsets, sizes, labels, name_table(names))


def files_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield an archive's files, without keeping their headers."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        if member.isreg():
            yield member


def group_samples(members: Iterable[tuple[str, Any]]) -> Iterator[dict[str, tuple[str, Any]]]:
    """Group a shard's members, (name, content), as webdataset does; yields each sample's members by
    extension. ValueError if a sample has two of one extension.
    """
    key: str | None = None
    sample: dict[str, tuple[str, Any]] = {}
    for name, content in members:
        match = _KEY.match(name)
        if _META.match(name) or match is None:
            continue
        if match[1] != key:
            if sample:
                yield sample
            key, sample = match[1], {}
        if match[2] in sample:
            raise ValueError(f"{name} is there twice in a row")
        sample[match[2]] = name, content
    if sample:
        yield sample


def image_of(extensions: Iterable[str]) -> str | None:
    """Return a sample's first extension that is an image's, None if there is none."""
    found = [extension for extension in extensions if f".{extension.lower()}" in EXTENSIONS]
    return found[0] if found else "npy" if "npy" in extensions else None


def label_of(content: bytes) -> int:
    """Return the class number that a ``.cls`` file holds, -1 if it holds something else."""
    text = content.strip()
    return int(text) if text.isdigit() else -1
