"""Files that are either whole or not there: write to a temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, MissingFileError
from .machine import writing


@contextlib.contextmanager
def atomic_path(dst: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces ``dst`` when the block ends without an exception.

    A reader sees the old file or the new one, also after SIGKILL or a power cut. The temporary file
    is empty and in the folder of ``dst``, which is made when it is missing.

    Raises:
        InputError: If the folder cannot be written to, ``dst`` is a folder, or the disk is full.
    """
    dst = Path(dst)
    if dst.is_dir():
        raise InputError(f"{dst} is a folder, expected the name of a file to write.")
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{dst.name}.", suffix=".tmp", dir=dst.parent)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Cannot write {dst}: {reason}. Choose a writable folder.") from error
    os.close(handle)
    tmp = Path(name)
    try:
        umask = os.umask(0)  # mkstemp makes private files; open() would obey the umask
        os.umask(umask)
        os.chmod(tmp, 0o666 & ~umask)
        yield tmp
        _fsync(tmp)
        os.replace(tmp, dst)
        with contextlib.suppress(OSError):  # Windows and some network file systems refuse folders
            _fsync(dst.parent)
    except BaseException:
        written = tmp.stat().st_size if tmp.exists() else 0
        tmp.unlink(missing_ok=True)
        with writing(dst, f"; nothing was changed. {written:,} bytes had been written"):
            raise


def atomic_write_bytes(dst: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``dst`` through :func:`atomic_path`."""
    with atomic_path(dst) as tmp:
        tmp.write_bytes(data)


def atomic_write_text(dst: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``dst`` through :func:`atomic_path`."""
    atomic_write_bytes(dst, text.encode("utf-8"))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal; MissingFileError without a file."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
