"""Files that are either whole or not there: write beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, MissingFileError


@contextlib.contextmanager
def atomic_path(dst: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``dst`` that replaces ``dst`` only when the block ends without
    an exception.

    A reader sees the old file or the new one, never a half, also after SIGKILL or a power cut: the
        data are flushed to
    the disk before the rename, and the folder after it.

    Args:
        dst: The file to write. Its folder is made when it is missing.

    Yields:
        Path of an empty temporary file in the same folder (so that the rename stays inside one file
        system).

    Raises:
        InputError: If the folder cannot be written to or ``dst`` is a folder.
    """
    dst = Path(dst)
    if dst.is_dir():
        raise InputError(
            f"{dst} is a folder, expected the name of a file to write; name a file inside it."
        )
    mode = 0o666 & ~_umask()
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{dst.name}.", suffix=".tmp", dir=dst.parent)
    except OSError as error:
        raise InputError(
            f"Cannot write {dst}: {error.strerror or error}. Choose a folder that can be"
            " written to."
        ) from error
    os.close(handle)
    tmp = Path(name)
    try:
        os.chmod(tmp, mode)
        yield tmp
        with open(tmp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(tmp, dst)
        _fsync_folder(dst.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def atomic_write_bytes(dst: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``dst`` through :func:`atomic_path`."""
    with atomic_path(dst) as tmp:
        tmp.write_bytes(data)


def atomic_write_text(dst: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``dst`` through :func:`atomic_path`."""
    atomic_write_bytes(dst, text.encode("utf-8"))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        MissingFileError: If the file does not exist.
    """
    try:
        with open(path, "rb") as file:
            return (
                hashlib.file_digest(file, "sha256").hexdigest()
                if hasattr(hashlib, "file_digest")
                else _digest(file)
            )
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error


def _digest(file) -> str:
    # hashlib.file_digest came with Python 3.11.
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    # mkstemp makes files private; the final file gets what the user's umask says, as open() would
    # give it.
    current = os.umask(0)
    os.umask(current)
    return current


def _fsync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows; there the rename alone must do
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse to sync folders
        pass
    finally:
        os.close(handle)
