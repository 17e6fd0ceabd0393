"""CIFAR-10 in each form it is met in: folders of images, an archive of them, and the two official
sets of batches.

    train/<class>/*.{jpg,png}  test/<class>/…          as a folder, or in a .tar or .tar.gz
    cifar-10-batches-bin/data_batch_{1..5}.bin         "binary version": per image 1 byte label,
    3072 bytes pixels cifar-10-batches-py/data_batch_{1..5}              "python version": pickles,
    read here without running what they ask for

Source:
    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html describes both sets of batches. The python version
    was written by Python 2.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from .folder import ImageFolder, PathList, find_images, is_image
from .packed import PackedImages, PixelImages

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_SUBFOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py", "")
_PIXELS = 3 * 32 * 32
_PEEK = 30  # members of an archive that are looked at to tell what it holds


def looks_like_cifar10(root: str | os.PathLike[str]) -> bool:
    """Return whether a folder or an archive holds CIFAR-10, by its first names alone."""
    root = Path(root)
    if root.is_dir():
        batches = any(
            (root / sub / f"data_batch_1{end}").is_file()
            for sub in _SUBFOLDERS
            for end in ("", ".bin")
        )
        return batches or all((root / "train" / name).is_dir() for name in CIFAR10_CLASSES)
    try:
        with tarfile.open(root) as archive:
            names = [member.name for _, member in zip(range(_PEEK), archive, strict=False)]
    except (OSError, tarfile.TarError, EOFError, zlib.error):
        return False
    return any(
        _batch_name(name) in _BATCHES["train"]
        or _class_of(name, "train")
        or _class_of(name, "test")
        for name in names
    )


def read_cifar10(
    root: str | os.PathLike[str], *, split: str = "train"
) -> ImageFolder | PackedImages | PixelImages:
    """Read CIFAR-10 from a folder or an archive (see the module's head for the forms).

    Args:
        root: Folder, or .tar, .tar.gz or .tgz file. A folder of images is read image by
            image, all else is held in memory (155 MB).
        split: ``train`` or ``test``.

    Raises:
        MissingFileError: If the folder or a batch does not exist.
        InputError: If none of the forms is there, or a file is damaged.
    """
    root = Path(root)
    if not root.exists():
        raise MissingFileError(
            f"{root} does not exist (DATA.ROOT). Give CIFAR-10's folder or archive."
        )
    if not root.is_dir():
        return _from_archive(root, split)
    if (root / split).is_dir():
        return find_images(root / split, layout="folders")
    for sub in _SUBFOLDERS:
        for end in (".bin", ""):
            if (root / sub / f"{_BATCHES[split][0]}{end}").is_file():
                return _from_batches(
                    str(root / sub),
                    {name: _read(root / sub / f"{name}{end}") for name in _BATCHES[split]},
                    end,
                )
    raise InputError(
        f"{root} does not hold CIFAR-10's {split} images: expected {split}/<class>/,"
        f" {_BATCHES[split][0]}.bin (binary version) or {_BATCHES[split][0]} (python version)."
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{file} does not exist: CIFAR-10 has five batches. Unpack the archive again."
        ) from error


def _batch_name(member: str) -> str:
    return os.path.basename(member).removesuffix(".bin")


def _class_of(member: str, split: str) -> str | None:
    parts = member.split("/")
    return (
        parts[-2]
        if len(parts) >= 3
        and parts[-3] == split
        and parts[-2] in CIFAR10_CLASSES
        and is_image(parts[-1])
        else None
    )


def _from_archive(file: Path, split: str) -> PackedImages | PixelImages:
    images: dict[str, bytes] = {}
    batches: dict[str, bytes] = {}
    ends = set()
    try:
        for name, content in _members(file, split):
            if _batch_name(name) in _BATCHES[split]:
                batches[_batch_name(name)] = content
                ends.add(".bin" if name.endswith(".bin") else "")
            else:
                images[name] = content
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"Archive {file} cannot be read ({error}): it is damaged or no tar file. Fetch it"
            " again."
        ) from error
    if batches:
        missing = sorted(set(_BATCHES[split]) - set(batches))
        if missing or len(ends) > 1:
            raise InputError(
                f"Archive {file} lacks CIFAR-10's"
                f" {', '.join(missing) or 'order: it mixes both versions'}. Fetch it again."
            )
        return _from_batches(
            str(file), {name: batches[name] for name in _BATCHES[split]}, ends.pop()
        )
    if not images:
        raise InputError(
            f"Archive {file} does not hold CIFAR-10's {split} images: expected"
            f" {split}/<class>/*.jpg or cifar-10-batches-bin/."
        )
    # By class and name, which is the order of the unpacked folder: index i is the same image in
    # both.
    names = sorted(images, key=lambda name: name.split("/")[-2:])
    encoded = [images[name] for name in names]
    labels = np.array([CIFAR10_CLASSES.index(_class_of(name, split)) for name in names], np.int64)
    sizes = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return PackedImages(
        str(file), PathList(names), b"".join(encoded), sizes, labels, CIFAR10_CLASSES
    )


def _members(file: Path, split: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isreg() and (
                _batch_name(member.name) in _BATCHES[split] or _class_of(member.name, split)
            ):
                yield member.name, archive.extractfile(member).read()


def _from_batches(root: str, batches: dict[str, bytes], end: str) -> PixelImages:
    parse = _parse_binary if end else _parse_pickle
    parts = [parse(content, f"{root}: {name}{end}") for name, content in batches.items()]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(CIFAR10_CLASSES):
        raise InputError(f"{root}: a label is outside 0 to 9. Fetch CIFAR-10 again.")
    return PixelImages(root, pixels, labels, CIFAR10_CLASSES)


def _parse_binary(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % (1 + _PIXELS):
        raise InputError(
            f"{where} has {len(content)} bytes, expected a multiple of {1 + _PIXELS} (label and"
            " pixels of an image). Fetch it again."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0]


class _Array:
    """What a pickled array turns into: its shape and its bytes, and nothing of numpy is called."""

    shape: tuple[int, ...] = ()
    content: bytes = b""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, _, _, self.content = state


class _Named:
    """Stand-in for numpy.ndarray and numpy.dtype, which an array's pickle names but which are not
    needed.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _BatchReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            return _Array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return _Named
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")


def _parse_pickle(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _BatchReader(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], np.array(batch[b"labels"], np.int64)
        if (
            not isinstance(data, _Array)
            or tuple(data.shape) != (len(labels), _PIXELS)
            or len(data.content) != len(labels) * _PIXELS
        ):
            raise ValueError(f"expected b'data' of shape ({len(labels)}, {_PIXELS}), uint8")
        return np.frombuffer(data.content, np.uint8).reshape(-1, _PIXELS), labels
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
    ) as error:
        raise InputError(
            f"{where} is not a batch of CIFAR-10's python version ({error}). Fetch it again, or"
            " take the binary version."
        ) from error
