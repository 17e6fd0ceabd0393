"""Local tar shards, whose images are read in any order from a memory map."""

from __future__ import annotations

import functools
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ..annotations.coco import load_json
from .image_source import IndexedSource, printable
from .tar_index import ShardIndex, index_shards

PACK_FILE = "pack.json"
"""Written by ``pack``: what happened to the pixels, and size and SHA-256 of each shard."""
PACK_FORMAT = "moco_transfer.pack/2"


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
    shards = index_shards(files)
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
