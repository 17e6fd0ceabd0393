"""A pack: images in a few large files that are mapped into memory; ``pack.py`` writes it.

    DST/pack.json           what it is: form, what happened to the pixels, classes, number of
    images, shards with their SHA-256 DST/shard-00000.bin     the images one behind the other:
    encoded, or rows of RGB bytes DST/shard-00000.npz     where each begins and ends, its size,
    label and name

Any number of processes may read it at once: the system holds each page in memory once. A pack knows
    what it did to the pixels
(``pixel_change``), so that a run's config can say so.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...runtime.errors import InputError, MissingFileError
from ...runtime.files import sha256_of
from .decode import Region, decode_pixels
from .folder import printable

FORMAT = "moco_transfer.pack/1"
INDEX = "pack.json"
FORMS = ("original", "jpeg", "raw")


@dataclass(frozen=True)
class Shard:
    """One shard's index.

    Attributes:
        ends: int64 (number of images + 1,), bytes.
        sizes: int32 (number of images, 2), height and width, px; of encoded images 0.
        labels: int64 (number of images,), -1 without.
        names: The names' bytes one behind the other, uint8.
        name_ends: int64 (number of images + 1,).
    """

    ends: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray

    def name(self, place: int) -> str:
        """Return an image's name."""
        return os.fsdecode(self.names[self.name_ends[place] : self.name_ends[place + 1]].tobytes())


@dataclass
class Pack:
    """The images of a pack; a source as ``sources.py`` describes it.

    Attributes:
        root: The folder.
        form: One of :data:`FORMS`.
        pixel_change: What packing did to the pixels, in words; empty for nothing.
        labels: int64 (number of images,); empty where there are no classes.
        class_names: Names of the classes; empty where there are none.
        shards: The shards' indices.
        files: The shards' files.
        starts: int64 (number of shards + 1,), number of each shard's first image.
    """

    root: Path
    form: str
    pixel_change: str
    labels: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    shards: list[Shard] = field(repr=False)
    files: list[Path] = field(repr=False)
    starts: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        self._maps: list[np.ndarray | None] = [None] * len(self.files)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is started afresh maps the files itself.
        return self.__dict__ | {"_maps": [None] * len(self.files)}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        number, place = self._place(index)
        return f"{self.root}: {printable(self.shards[number].name(place))}"

    def read(self, index: int) -> Image.Image:
        """Return image ``index``; raises one of ``decode.UNREADABLE`` if that fails."""
        return Image.fromarray(self.decode(index))

    def decode(
        self, index: int, buffer: np.ndarray | None = None, region: Region | None = None
    ) -> np.ndarray:
        """Return image ``index`` as ``decode.decode_pixels``; of a raw pack the whole, not a
        copy, and not to be written to.
        """
        number, place = self._place(index)
        shard = self.shards[number]
        if self._maps[number] is None:
            self._maps[number] = np.memmap(self.files[number], np.uint8, mode="r").view(np.ndarray)
        data = self._maps[number][shard.ends[place] : shard.ends[place + 1]]
        return (
            data.reshape(*shard.sizes[place], 3)
            if self.form == "raw"
            else decode_pixels(data.tobytes(), buffer, region)
        )

    def describe(self) -> str:
        """Return in words how many images there are, where, and what happened to their pixels."""
        classes = f" in {len(self.class_names)} classes" if self.class_names else ""
        return (
            f"{len(self)} images{classes} packed in {self.root}; pixels:"
            f" {self.pixel_change or 'as in the original files'}"
        )

    def _place(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return number, index - int(self.starts[number])


def is_pack(root: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a pack."""
    return (Path(root) / INDEX).is_file()


def open_pack(root: str | os.PathLike[str]) -> Pack:
    """Open a pack; the indices are checked by their hash, of the images the size alone (see
    :func:`check_pack`).

    Raises:
        MissingFileError: If a file is missing.
        InputError: If a file is not what was written.
    """
    root = Path(root)
    about = read_index(root)
    shards, files = [], []
    for entry in about["shards"]:
        index, file = root / f"{entry['name']}.npz", root / f"{entry['name']}.bin"
        if sha256_of(index) != entry["index_sha256"]:
            raise _changed(index)
        if not file.is_file():
            raise MissingFileError(
                f"{file} does not exist, but {root / INDEX} lists it. Pack again; what is there is"
                " kept."
            )
        if file.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{file} has {file.stat().st_size} bytes, {root / INDEX} says {entry['bytes']}."
                " Remove it and pack again."
            )
        with np.load(index, allow_pickle=False) as arrays:
            shards.append(Shard(**{name: arrays[name] for name in arrays.files}))
        files.append(file)
    class_names = tuple(about["class_names"])
    labels = (
        np.concatenate([shard.labels for shard in shards]) if class_names else np.zeros(0, np.int64)
    )
    starts = np.cumsum([0] + [len(shard.labels) for shard in shards])
    return Pack(
        root, about["form"], about["pixel_change"], labels, class_names, shards, files, starts
    )


def read_index(root: Path) -> dict[str, Any]:
    """Return what pack.json says.

    Raises:
        InputError: If it is none of this version.
    """
    path = root / INDEX
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path} does not exist: {root} is no finished pack. Finish it with moco-transfer pack."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}). Remove it and pack again; finished shards are kept."
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {about.get('format') if isinstance(about, dict) else about!r},"
            f" expected {FORMAT!r}."
        )
    return about


def check_pack(root: str | os.PathLike[str]) -> int:
    """Compare every byte with what was written.

    Returns:
        Number of images.

    Raises:
        InputError: Naming the first shard that differs.
    """
    root = Path(root)
    pack = open_pack(root)
    for entry, file in zip(read_index(root)["shards"], pack.files, strict=True):
        if sha256_of(file) != entry["sha256"]:
            raise _changed(file)
    return len(pack)


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} is not what was written: its SHA-256 differs from {INDEX}. Remove it and pack"
        " again; whole shards are kept."
    )
