"""CIFAR-10 in each form that it comes in: folders of images, an archive of them, and the two
official sets of batches.

    train/<class>/*.{jpg,png}  test/<class>/…     as a folder, or in a .tar or .tar.gz
    cifar-10-batches-bin/data_batch_{1..5}.bin    "binary version": per image 1 byte of label and
                                                  3072 bytes of pixels
    cifar-10-batches-py/data_batch_{1..5}         "python version": pickles written by Python 2,
                                                  read without running code from them

Source:
    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html describes both sets of batches.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ...runtime.safe_pickle import read_pickle
from .decode import encode_npy
from .folder import ImageFolder, find_images
from .image_source import Table, is_image, name_table, printable

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_SUBFOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py", "")
_PIXELS = 3 * 32 * 32
_DAMAGED = (OSError, tarfile.TarError, EOFError, zlib.error)


@dataclass(frozen=True)
class HeldImages:
    """Small images that are held in memory, so that an archive need not be unpacked; an
    ``IndexedSource``.
    """

    root: str  # where they come from, for messages
    names: Table[str]
    images: Table[bytes]  # encoded, or .npy files
    labels: np.ndarray
    class_names: tuple[str, ...] = CIFAR10_CLASSES
    is_raw: bool = False
    pixel_change: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        return f"{self.root}: {printable(self.names[index])}"

    def content(self, index: int) -> bytes:
        """Return image ``index``, encoded."""
        return self.images[index]

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        classes = f" in {len(self.class_names)} classes" if self.class_names else ""
        return f"{len(self)} images{classes}, held in memory, from {self.root}"


def looks_like_cifar10(root: str | os.PathLike[str]) -> bool:
    """Return whether a folder or an archive holds CIFAR-10, by its first names alone."""
    root = Path(root)
    if root.is_dir():
        first = [root / sub / f"data_batch_1{end}" for sub in _SUBFOLDERS for end in ("", ".bin")]
        classes = all((root / "train" / name).is_dir() for name in CIFAR10_CLASSES)
        return classes or any(file.is_file() for file in first)
    try:
        with tarfile.open(root) as archive:
            names = [member.name for _, member in zip(range(30), archive, strict=False)]
    except _DAMAGED:
        return False
    return any(_batch_name(name) in _BATCHES["train"] for name in names) or any(
        _class_of(name, split) for name in names for split in _BATCHES
    )


def read_cifar10(root: str | os.PathLike[str], *, split: str = "train") -> ImageFolder | HeldImages:
    """Read CIFAR-10 from a folder or an archive, in the forms that the module's head lists.

    Args:
        root: Folder, or .tar, .tar.gz or .tgz file. A folder of images is read image by image,
            everything else is held in memory (160 MB).
        split: ``train`` or ``test``.

    Raises:
        MissingFileError: If the folder or a batch does not exist.
        InputError: If none of the forms is there, or a file is damaged.
    """
    root, batches = Path(root), _BATCHES[split]
    if not root.exists():
        raise MissingFileError(f"{root} does not exist. Give CIFAR-10's folder or archive.")
    if not root.is_dir():
        return _from_archive(root, split)
    if (root / split).is_dir():
        return find_images(root / split, layout="folders")
    for folder in (root / sub for sub in _SUBFOLDERS):
        for end in (".bin", ""):
            files = [folder / f"{name}{end}" for name in batches]
            missing = [file.name for file in files if not file.is_file()]
            if not missing:
                return _from_batches(str(folder), [(f.name, f.read_bytes()) for f in files])
            if len(missing) < len(files):
                raise MissingFileError(f"{folder} lacks {', '.join(missing)}. Unpack it again.")
    raise InputError(
        f"{root} does not hold CIFAR-10's {split} images: expected {split}/<class>/,"
        f" {batches[0]}.bin (binary version) or {batches[0]} (python version)."
    )


def _batch_name(member: str) -> str:
    return os.path.basename(member).removesuffix(".bin")


def _class_of(member: str, split: str) -> str | None:
    """Return the class of an archive's member SPLIT/CLASS/IMAGE, None for any other."""
    *_, folder, name, leaf = ("", "", *member.split("/"))
    return name if folder == split and name in CIFAR10_CLASSES and is_image(leaf) else None


def _from_archive(file: Path, split: str) -> HeldImages:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                wanted = _batch_name(member.name) in _BATCHES[split]
                if member.isreg() and (wanted or _class_of(member.name, split)):
                    opened = archive.extractfile(member)
                    found[member.name] = opened.read() if opened is not None else b""
    except _DAMAGED as error:
        raise InputError(
            f"Archive {file} cannot be read ({error}): it is damaged or no tar file. Download it"
            " again."
        ) from error
    batches = sorted((os.path.basename(name), data) for name, data in found.items())
    if [_batch_name(name) for name, _ in batches] == _BATCHES[split]:
        return _from_batches(str(file), batches)
    images = {name: data for name, data in found.items() if _class_of(name, split)}
    if not images or len(images) < len(found):
        raise InputError(
            f"Archive {file} does not hold CIFAR-10's {split} images: expected"
            f" {split}/<class>/*.jpg or {', '.join(_BATCHES[split])}."
        )
    # By class and name, the order of the unpacked folder: index i is the same image in both.
    names = sorted(images, key=lambda name: name.split("/")[-2:])
    labels = np.array([CIFAR10_CLASSES.index(name.split("/")[-2]) for name in names], np.int64)
    table = Table([images[name] for name in names], bytes)
    return HeldImages(str(file), name_table(names), table, labels)


def _from_batches(root: str, batches: list[tuple[str, bytes]]) -> HeldImages:
    parts = [
        (_parse_binary if name.endswith(".bin") else _parse_pickle)(content, f"{root}: {name}")
        for name, content in batches
    ]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(CIFAR10_CLASSES):
        raise InputError(f"{root}: a label is outside 0 to 9. Download CIFAR-10 again.")
    head = encode_npy(np.zeros((32, 32, 3), np.uint8))[:-_PIXELS]
    images = Table((head + image.tobytes() for image in pixels.transpose(0, 2, 3, 1)), bytes)
    names = name_table(f"image {i}" for i in range(len(labels)))
    return HeldImages(root, names, images, labels, is_raw=True)


def _parse_binary(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % (1 + _PIXELS):
        raise InputError(
            f"{where} has {len(content)} bytes, expected a multiple of {1 + _PIXELS} (label and"
            " pixels of an image). Download it again."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0]


def _parse_pickle(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(io.BytesIO(content), where)
    try:
        pixels, labels = batch["data"], np.array(batch["labels"], np.int64)
        return pixels.astype(np.uint8, casting="no").reshape(len(labels), _PIXELS), labels
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{where} is not a batch of CIFAR-10's python version ({error}). Download it again, or"
            " use the binary version."
        ) from error
