"""Files that are either whole or not there: write to a temporary file, fsync, rename.

A temporary file is locked while it is written. The kernel releases the lock with the process, so
what a killed one left behind is known by it, and removed when the folder is next written to.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from .errors import InputError, MissingFileError
from .machine import writing

try:
    import fcntl
except ImportError:  # Windows: temporary files of killed processes stay
    fcntl = None  # type: ignore[assignment]

Opened = TypeVar("Opened")
_UMASK = os.umask(0)  # read here: two threads that ask at a time could leave it at 0
os.umask(_UMASK)
_OURS = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp", re.DOTALL)


def regular(path: Opened) -> Opened:
    """Return what is to be opened to read; OSError for a path of a pipe, device or socket, at which
    a reader would wait, or never end. What is missing is for the opener to name.
    """
    try:
        mode = os.stat(path).st_mode  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):  # TypeError: an open file
        return path
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return path
    what = "it is a pipe, a device or a socket; expected a file"
    raise OSError(errno.EINVAL, what, str(path))


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
        make_folder(dst.parent)
        _remove_leftovers(dst.parent.resolve())
        handle, tmp = _locked_file(dst)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Cannot write {dst}: {reason}. Choose a writable folder.") from error
    try:
        os.chmod(tmp, 0o666 & ~_UMASK)  # mkstemp makes private files; open() would obey it
        yield tmp
        _fsync(tmp)
        os.replace(tmp, dst)
        _fsync_folder(dst.parent)
    except BaseException:
        written = tmp.stat().st_size if tmp.exists() else 0
        tmp.unlink(missing_ok=True)
        with writing(dst, f"; nothing was changed. {written:,} bytes had been written"):
            raise
    finally:
        os.close(handle)


def _locked_file(dst: Path) -> tuple[int, Path]:
    """Make and lock a temporary file next to ``dst``; return its descriptor and path."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{dst.name}.", suffix=".tmp", dir=dst.parent)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process took it for a leftover before it was locked


@functools.lru_cache(maxsize=1024)  # once in a process: a folder may hold 100,000 files
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # it may be writable and not readable
        names = [entry.name for entry in os.scandir(folder) if _OURS.fullmatch(entry.name)]
    for name in names if fcntl is not None else []:
        with contextlib.suppress(OSError):  # being written, not ours, or on a disk without locks
            handle = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
            finally:
                os.close(handle)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder and what is missing above it, so that a power cut leaves them there."""
    folder = Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _fsync_folder(each.parent)


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows and some network file systems refuse folders
        _fsync(folder)


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
