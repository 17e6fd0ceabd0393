"""Tar shards: local ones, whose images are read in any order from a memory map, and streams.

A shard is a tar file of samples as webdataset reads them: successive files that share their name up
to the first dot are one sample, such as 000017.jpg and 000017.cls. A sample's image is its first
file whose extension is an image's, or a ``.npy`` file of uint8 (H, W, 3). Its label is the number
in ``.cls``. Where each image of a local shard lies is read once from the headers and kept in
SHARD.tar.index.npz.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import mmap
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime import distributed
from ...runtime.errors import InputError, MissingFileError, printable
from ...runtime.files import atomic_path, regular
from ..annotations.coco import load_json
from .image_source import EXTENSIONS, ImageSource, IndexedSource, Table, is_image, name_table

logger = logging.getLogger(__name__)

PACK_FILE = "pack.json"
"""Written by ``pack``: what happened to the pixels, and size and SHA-256 of each shard."""
PACK_FORMAT = "moco_transfer.pack/2"

_BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error, ValueError)
"""What reading a damaged tar file raises."""

_ATTEMPTS = 3  # openings of a shard by URL; curl itself retries for minutes

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


@dataclass(frozen=True)
class LocalShards(IndexedSource):
    """The images of tar shards, in the order of the shards."""

    root: str  # what was named, for messages
    files: list[Path] = field(repr=False)
    shards: list[ShardIndex] = field(repr=False)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Path, ShardIndex, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.files[shard], self.shards[shard], index - int(self._starts[shard])

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        file, shard, place = self._place(index)
        return printable(f"{file}: {shard.names[place]}")

    def content(self, index: int) -> memoryview:
        """Return the encoded image."""
        file, shard, place = self._place(index)
        offset = int(shard.offsets[place])
        return _mapped(str(file), shard.state)[offset : offset + int(shard.sizes[place])]

    def _where(self) -> str:
        pixels = f"; pixels: {self.pixel_change}" if self.pixel_change else ""
        return f" in {len(self.files)} shards of {self.root}{pixels}"


@dataclass(frozen=True)
class ShardStream(ImageSource):
    """Shards that are read as a stream: by URL, from a program, compressed, or uncounted."""

    root: str  # what was named, for messages
    urls: tuple[str, ...]
    num_images: int
    counts: np.ndarray  # int64 (number of shards,); empty where only their sum is known

    def __len__(self) -> int:
        return self.num_images

    @property
    def is_counted(self) -> bool:
        """Whether each shard's number of images is known, and so each image's number in all."""
        return len(self.counts) > 0

    def number_of(self, shard: int, position: int) -> int:
        """Return an image's number: in the whole set where the shards are counted, else one that
        no other image has.
        """
        first = int(self.counts[:shard].sum()) if self.is_counted else shard << 32
        return first + position

    def _where(self) -> str:
        where = f" in {len(self.urls)} shards of {self.root}, read as a stream"
        return f"{where}; the first is {self.urls[0]}"


@functools.lru_cache(maxsize=256)  # each holds a file descriptor
def _mapped(file: str, state: tuple[int, int]) -> memoryview:
    """Map a shard; by ``state`` too, because the map of a replaced file shows the old one."""
    with open(file, "rb") as opened:
        return memoryview(mmap.mmap(opened.fileno(), state[0], access=mmap.ACCESS_READ))


def open_local_shards(root: str, files: list[Path]) -> LocalShards:
    """Open local shards; those that ``pack`` wrote are checked by their size. Collective.
    InputError if a shard is damaged or not what was packed, or if the pack was interrupted.
    """
    about: dict[str, Any] = {}
    folder = files[0].parent
    if (folder / PACK_FILE).is_file():
        about = read_pack_file(folder)
        expected = {entry["url"]: entry["filesize"] for entry in about["shardlist"]}
        names = {file.name for file in files}
        if not about["finished"] or Path(root) == folder and set(expected) - names:
            raise MissingFileError(
                f"{folder} holds {len(names)} shards of an unfinished pack. Run moco-transfer pack."
            )
        for file in files:
            if file.stat().st_size != expected.get(file.name):
                raise InputError(
                    f"{file} has {file.stat().st_size} bytes, {PACK_FILE} says"
                    f" {expected.get(file.name)}. Remove it and run moco-transfer pack again."
                )
    shards = _index_shards(files)
    labels = np.concatenate([shard.labels for shard in shards])
    if not len(labels) or labels.min() < 0:
        labels = np.zeros(0, np.int64)
    classes = about.get("class_names") or map(str, range(labels.max(initial=-1) + 1))
    known, pixels = tuple(classes), about.get("pixel_change", "")
    return LocalShards(root, files, shards, labels=labels, class_names=known, pixel_change=pixels)


def read_pack_file(folder: Path) -> dict[str, Any]:
    """Return what a folder's pack.json holds; InputError if there is none, or it is damaged."""
    about = load_json(folder / PACK_FILE)
    found = about.get("format") if isinstance(about, dict) else None
    if found != PACK_FORMAT:
        raise InputError(
            f"{folder / PACK_FILE}: format is {found!r}, expected {PACK_FORMAT!r}. Pack into a new"
            " folder."
        )
    return about


def _index_shards(files: list[Path]) -> list[ShardIndex]:
    """Index shards, each process its part of those whose index is not kept. Collective."""
    known = {file: _read(file) for file in files}
    # Every process indexes: while one did it alone, the process group of the others would time out.
    fresh = distributed.broadcast_object([file for file in files if known[file] is None])
    if fresh and distributed.is_main_process():
        logger.info("reading the headers of %d shards", len(fresh))
    own = fresh[distributed.get_rank() :: distributed.get_world_size()]
    for part in distributed.all_gather_object({file: _index_and_keep(file) for file in own}):
        known |= part
    return [known[file] or index_shard(file) for file in files]


def _state_of(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


# RuntimeError: encrypted, or of a later version, as a changed byte says.
_DAMAGED_INDEX = (
    *(OSError, ValueError, LookupError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def _read(shard: Path) -> ShardIndex | None:
    """Return a shard's index if it is kept and the shard has not changed since."""
    file = Path(f"{shard}.index.npz")
    try:
        with np.load(regular(file), allow_pickle=False) as kept:
            names = name_table(())
            names.ends, names.data = map(torch.from_numpy, (kept["ends"], kept["names"]))
            state = tuple(kept["state"].tolist())
            index = ShardIndex(state, kept["offsets"], kept["sizes"], kept["labels"], names)
    except FileNotFoundError:
        return None
    except _DAMAGED_INDEX as error:
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
        with tarfile.open(regular(file)) as archive:
            members = ((member.name, member) for member in _files_of(archive))
            for sample, image in _samples(members):
                if image is None:
                    unclear += [name for name, _ in sample.values() if is_image(name)]
                    continue
                name, member = sample[image]
                opened = archive.extractfile(sample["cls"][1]) if "cls" in sample else None
                label = _label_of(opened.read()) if opened is not None else -1
                rows.append((member.offset_data, member.size, label))
                names.append(name)
            end = archive.offset
            assert archive.fileobj is not None
            if archive.fileobj.seek(end) != end or archive.fileobj.read(512) != bytes(512):
                raise ValueError(f"no end of archive after {end} bytes, {len(rows)} images")
    except _BROKEN as error:
        # tarfile adds a line for each form of compression that it tried.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise InputError(
            f"Shard {file} cannot be read ({reason}). Write or download it again."
        ) from error
    if unclear:
        logger.warning(
            "%s: %d images are left out, the first is %s: rename those with a further dot",
            *(file, len(unclear), unclear[0]),
        )
    offsets, sizes, labels = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    return ShardIndex(state, offsets, sizes, labels, name_table(names))


def _files_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield an archive's files, without keeping their headers."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        if member.isreg():
            yield member


def _samples(
    members: Iterable[tuple[str, Any]],
) -> Iterator[tuple[dict[str, tuple[str, Any]], str | None]]:
    """Group a shard's members, (name, content), as webdataset does; yields each sample's members by
    extension, and the first extension that is an image's. ValueError if a sample has two of one
    extension.
    """
    keyed = ((_KEY.match(name), name, content) for name, content in members)
    named = (member for member in keyed if member[0] and not _META.match(member[1]))
    for _, group in itertools.groupby(named, lambda member: member[0] and member[0][1]):
        sample: dict[str, tuple[str, Any]] = {}
        for match, name, content in group:
            extension = match[2] if match else ""
            if extension in sample:
                raise ValueError(f"{name} is there twice in a row")
            sample[extension] = name, content
        images = [extension for extension in sample if f".{extension.lower()}" in EXTENSIONS]
        yield sample, images[0] if images else "npy" if "npy" in sample else None


def _label_of(content: bytes) -> int:
    """Return the class number that a ``.cls`` file holds, -1 if it holds something else."""
    text = content.strip()
    return int(text) if text.isdigit() else -1


def scheme_of(name: str) -> str:
    """Return the scheme of a URL, such as ``https`` or ``pipe``; empty for a path."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", name)  # two letters at least: C: is a drive
    return match[1].lower() if match else ""


def read_shard(url: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield (shard and member, encoded image, label or -1) for each image of a shard, in order.

    A shard by URL whose transfer breaks off is opened again; what came already is skipped.
    InputError if it cannot be read to its end.
    """
    done = 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            for number, image in enumerate(_images(url)):
                if number >= done:
                    yield image
                    done = number + 1
            return
        except _BROKEN as error:
            reason = f"{type(error).__name__}: {error.args[0] if error.args else error}"
            if not scheme_of(url) or attempt == _ATTEMPTS:
                raise InputError(
                    f"Shard {url} cannot be read after {done} images ({reason}). Repair it or"
                    " leave it out, then --resume."
                ) from error
            logger.warning("shard %s broke off after %d images (%s); retrying", url, done, reason)
            time.sleep(attempt)


def _images(url: str) -> Iterator[tuple[str, bytes, int]]:
    webdataset = importlib.import_module("webdataset.gopen") if scheme_of(url) else None
    stream = webdataset.gopen(url) if webdataset else open(regular(url), "rb")  # noqa: SIM115
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            members = ((m.name, archive.extractfile(m)) for m in _files_of(archive))
            for sample, image in _samples((name, file.read()) for name, file in members if file):
                if image is not None:
                    name, data = sample[image]
                    label = _label_of(sample["cls"][1]) if "cls" in sample else -1
                    yield printable(f"{url}: {name}"), data, label
    except BaseException:
        with contextlib.suppress(OSError):  # an unwanted transfer ends with an error of its own
            stream.close()
        raise
    # Raises if the program that fetched the shard failed although tar saw a clean end.
    stream.close()
