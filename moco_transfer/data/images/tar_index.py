"""Where each image lies in local tar shards: read once from their headers and kept next to them.

A shard is a tar file of samples as webdataset reads them: successive files that share their name up
to the first dot are one sample, such as 000017.jpg and 000017.cls. A sample's image is its first
file whose extension is an image's, or a ``.npy`` file of uint8 (H, W, 3). Its label is the number
in ``.cls``.

    moco_transfer_index.json   number of images of each shard, in webdataset's index format
    moco_transfer_index.npz    offset, size, label and name of each image
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
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ...runtime.distributed import (
    broadcast_object,
    gather_object,
    get_rank,
    get_world_size,
    is_main_process,
)
from ...runtime.errors import InputError
from ...runtime.files import atomic_path, atomic_write_text, sha256_of
from .image_source import EXTENSIONS, Table, decode_name, is_image, name_table

logger = logging.getLogger(__name__)

INDEX_FILE = "moco_transfer_index.json"
BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error, ValueError)
"""What reading a damaged tar file raises."""

# webdataset's rules: names that it keeps for itself, and a sample's key.
_META = re.compile(r"__[^/]*__($|/)")
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_FIELDS = ("offsets", "sizes", "labels", "name_ends", "names")

Content = TypeVar("Content")


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard.

    Attributes:
        filesize: Size of the shard, bytes.
        mtime_ns: When the shard was changed last.
        offsets, sizes: int64 (number of images,), bytes.
        labels: int64 (number of images,), -1 without.
        names: Names of the members.
    """

    filesize: int
    mtime_ns: int
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: Table[str]

    def __len__(self) -> int:
        return len(self.labels)


def index_shards(files: list[Path]) -> list[ShardIndex]:
    """Index local shards, each process its part of those that are not indexed yet. Collective.

    Raises:
        InputError: If a shard is damaged; names it.
    """
    # Every process indexes: while one did it alone, the process group of the others would time out.
    known: dict[Path, ShardIndex] = {}
    if is_main_process():
        for folder in {file.parent for file in files}:
            known |= _read_index(folder)
    fresh = broadcast_object(
        [file for file in files if file not in known or not _is_current(known[file], file)]
    )
    if fresh and is_main_process():
        logger.info("reading the headers of %d shards", len(fresh))
    own = tqdm(
        fresh[get_rank() :: get_world_size()],
        desc="indexing shards",
        unit="shard",
        disable=None if is_main_process() else True,
        leave=False,
    )
    for part in gather_object({file: index_shard(file) for file in own}) or ():
        known |= part
    if is_main_process():
        for folder in {file.parent for file in fresh}:
            _write_index(folder, {f.name: known[f] for f in sorted(known) if f.parent == folder})
    return broadcast_object([known[file] for file in files] if is_main_process() else None)


def _is_current(index: ShardIndex, file: Path) -> bool:
    status = file.stat()
    return (index.filesize, index.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _read_index(folder: Path) -> dict[Path, ShardIndex]:
    file, indices, first = folder / INDEX_FILE, {}, 0
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if "sha256" not in content:
            return {}  # an older index, without offsets
        if content["sha256"] != sha256_of(file.with_suffix(".npz")):
            raise ValueError("its .npz file is of another version")
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
            columns = [arrays[name] for name in _FIELDS]
        *numbers, name_ends, names = columns
        for entry in content["shardlist"]:
            rows = slice(first, first + entry["nsamples"])
            ends = name_ends[rows.start : rows.stop + 1]
            table = Table.of_arrays(ends - ends[0], names[ends[0] : ends[-1]], decode_name)
            parts = [column[rows] for column in numbers]
            indices[folder / entry["url"]] = ShardIndex(
                entry["filesize"], entry["mtime_ns"], parts[0], parts[1], parts[2], table
            )
            first = rows.stop
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("%s cannot be read (%s); the shards are indexed again", file, error)
        return {}
    return indices


def _write_index(folder: Path, indices: dict[str, ShardIndex]) -> None:
    file = folder / INDEX_FILE
    shards = indices.values()
    numbers = {
        name: np.concatenate([getattr(shard, name) for shard in shards]) for name in _FIELDS[:3]
    }
    lengths = np.concatenate([np.diff(shard.names.ends) for shard in shards])
    names = np.concatenate([shard.names.data for shard in shards])
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    try:
        with atomic_path(file.with_suffix(".npz")) as temporary, open(temporary, "wb") as out:
            np.savez(out, name_ends=ends, names=names, **numbers)  # type: ignore[arg-type]
        content: dict[str, Any] = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": folder.name,
            "sha256": sha256_of(file.with_suffix(".npz")),
            "shardlist": [
                {
                    "url": name,
                    "nsamples": len(index),
                    "filesize": index.filesize,
                    "mtime_ns": index.mtime_ns,
                }
                for name, index in indices.items()
            ],
        }
        atomic_write_text(file, json.dumps(content, indent=1) + "\n")
    except (InputError, OSError) as error:  # a data folder may be read-only
        logger.info("the index is not kept, the next run makes it again (%s)", error)


def index_shard(file: Path) -> ShardIndex:
    """Index one tar file by its headers.

    Raises:
        InputError: If it is damaged or cut off.
    """
    status, rows, names, unclear = file.stat(), [], [], []
    try:
        with tarfile.open(file) as archive:
            members = ((member.name, member) for member in _members(archive))
            for sample in group_samples(members):
                image = image_of(sample)
                if image is None:
                    unclear += [name for name, _ in sample.values() if is_image(name)]
                    continue
                name, member = sample[image]
                label = -1
                if "cls" in sample:
                    opened = archive.extractfile(sample["cls"][1])
                    label = label_of(opened.read()) if opened is not None else -1
                rows.append((member.offset_data, member.size, label))
                names.append(name)
            end = archive.offset
            assert archive.fileobj is not None
            if archive.fileobj.seek(end) != end or archive.fileobj.read(512) != bytes(512):
                raise ValueError(f"no end of archive after {end} bytes, {len(rows)} images")
    except BROKEN as error:
        raise InputError(
            f"Shard {file} cannot be read ({error}): it is damaged, cut off or no tar file. Write"
            " or download it again."
        ) from error
    if unclear:
        logger.warning(
            "%s: %d images are left out, the first is %s: webdataset takes what follows the first"
            " dot of a name as its extension. Rename them.",
            file,
            len(unclear),
            unclear[0],
        )
    offsets, sizes, labels = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    table = name_table(names)
    return ShardIndex(status.st_size, status.st_mtime_ns, offsets, sizes, labels, table)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
        if member.isreg():
            yield member


def group_samples(
    members: Iterable[tuple[str, Content]],
) -> Iterator[dict[str, tuple[str, Content]]]:
    """Group a shard's members, (name, content) in the order of the tar file, as webdataset does.

    Yields:
        Per sample, its members by extension.

    Raises:
        ValueError: If a sample has two members of one extension.
    """
    key: str | None = None
    sample: dict[str, tuple[str, Content]] = {}
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
    """Return a sample's extension that is an image's, in upper or lower case, None if there is
    none.
    """
    found = [extension for extension in extensions if f".{extension.lower()}" in EXTENSIONS]
    return found[0] if found else "npy" if "npy" in extensions else None


def label_of(content: bytes) -> int:
    """Return the class number that a ``.cls`` file holds, -1 if it holds something else."""
    text = content.strip()
    return int(text) if text.isdigit() else -1
