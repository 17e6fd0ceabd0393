"""CIFAR-10 as class folders (train/<class>/*.jpg, test/<class>/*.jpg) or as its official "python
version": the folder cifar-10-batches-py, or the .tar.gz with it.

Its pickles were written by Python 2 and are read without running code from them.

Source:
    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html describes the batches.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ...runtime.safe_pickle import read_pickle
from .decode import encode_npy
from .folder import ImageFolder, find_images
from .image_source import IndexedSource, Table

CIFAR10_CLASSES = (*"airplane automobile bird cat deer dog frog horse ship truck".split(),)

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True)
class HeldImages(IndexedSource):
    """Small images held in memory."""

    root: str  # where they come from, for messages
    files: Table[bytes]  # encoded images

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        return f"{self.root}: image {index}"

    def content(self, index: int) -> bytes:
        """Return the encoded image."""
        return self.files[index]

    def _where(self) -> str:
        return f", held in memory, from {self.root}"


def looks_like_cifar10(root: str | os.PathLike[str]) -> bool:
    """Return whether a folder or an archive holds CIFAR-10, by its first names alone. InputError
    for an archive of the class folders, which would be read as one tar shard.
    """
    root = Path(root)
    if root.is_dir():
        classes = all((root / "train" / name).is_dir() for name in CIFAR10_CLASSES)
        return classes or any((root / sub / "data_batch_1").is_file() for sub in (_FOLDER, ""))
    try:
        with tarfile.open(root) as archive:
            names = [member.name for _, member in zip(range(30), archive, strict=False)]
    except (OSError, tarfile.TarError, EOFError, zlib.error):
        return False
    if any(set(name.split("/")[:-1]) & set(CIFAR10_CLASSES) for name in names):
        raise InputError(f"{root} holds CIFAR-10's class folders. Unpack it and give the folder.")
    return any(os.path.basename(name) in _BATCHES["train"] for name in names)


def read_cifar10(root: str | os.PathLike[str], *, split: str = "train") -> ImageFolder | HeldImages:
    """Read the ``train`` or ``test`` split of CIFAR-10 from a folder or an archive; batches are
    held in memory (160 MB). InputError if a batch is missing or damaged.
    """
    root, names = Path(root), _BATCHES[split]
    if (root / split).is_dir():
        return find_images(root / split, layout="folders")
    found = _read_files(root, names)
    missing = sorted(set(names) - set(found))
    if missing:
        raise MissingFileError(
            f"{root} lacks {', '.join(missing)} of CIFAR-10's python version. Download it again."
        )
    batches = [_parse(found[name], f"{root}: {name}") for name in names]
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in batches])
    files = Table(map(encode_npy, pixels.transpose(0, 2, 3, 1)), bytes)
    return HeldImages(str(root), files, labels=labels, class_names=CIFAR10_CLASSES)


def _read_files(root: Path, names: list[str]) -> dict[str, bytes]:
    if root.is_dir():
        paths = [root / folder / name for folder in (_FOLDER, "") for name in names]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(root) as archive:
            for member in archive:
                opened = archive.extractfile(member) if member.isreg() else None
                if opened is not None and os.path.basename(member.name) in names:
                    found[os.path.basename(member.name)] = opened.read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"Archive {root} cannot be read ({error}). Download it again.") from error
    return found


def _parse(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(io.BytesIO(content), where)
    try:
        pixels, labels = batch["data"], np.array(batch["labels"], np.int64)
        pixels = pixels.astype(np.uint8, casting="no").reshape(len(labels), 3 * 32 * 32)
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError("a label is outside 0 to 9")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{where} is not a batch of CIFAR-10's python version ({error}). Download it again."
        ) from error
    return pixels, labels
