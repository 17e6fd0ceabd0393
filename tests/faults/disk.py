"""A disk that refuses (disk.c), around the runs of a process that was started with it."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
_NEVER = 1 << 60


def load() -> None:
    """Build the library and start this program again with it; do nothing where it is loaded, or
    where there is no C compiler.
    """
    if is_loaded() or sys.platform != "linux" or not (compiler := shutil.which("cc")):
        return
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = Path(tempfile.gettempdir()) / f"faults_disk_{os.getuid()}_{digest}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(made), "-ldl"], check=True
        )
        made.rename(library)
    os.environ["LD_PRELOAD"] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def is_loaded() -> bool:
    """Return whether this process has the library."""
    return hasattr(ctypes.CDLL(None), "disk_arm")


def arm(folder: Path, changes: int, error: int) -> None:
    """Let ``changes`` pass below a folder and refuse all after them with ``error``; 0 ends the
    process.
    """
    ctypes.CDLL(None).disk_arm(os.fsencode(folder), ctypes.c_long(changes), error)


def counting(folder: Path, target: Path) -> Callable[[], None]:
    """Return what counts, in the process that calls it and in those that it forks, and writes the
    largest number at their ends.
    """

    def write() -> None:
        count = ctypes.CDLL(None).disk_changes
        count.restype = ctypes.c_long
        known = int(target.read_text()) if target.exists() else 0
        target.write_text(str(max(known, count())))

    def before() -> None:
        target.unlink(missing_ok=True)
        arm(folder, _NEVER, 0)
        atexit.register(write)

    return before
