"""What is seen of the data workers from the side, while the loop waits or works: a loader that
stalls, and memory that grows. Linux alone tells, in /proc; elsewhere only a stall is seen.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.process
import os
import re
import time
from pathlib import Path
from typing import Any

from ..progress import Meter

logger = logging.getLogger(__name__)

LEAST_STALL_SEC = 30.0  # and TIMES the usual iteration
FIRST_STALL_SEC = 120.0  # before the first batch: workers start, and shards are opened
TIMES = 20
WARM_UP_SEC = 300.0  # until a worker has the buffers that it keeps
LEAST_GROWTH = 256e6  # bytes, of all workers together; and a tenth of what is free
MEMORY_PERIOD_SEC = 60.0  # between two looks at it, for which the system walks all pages
_PROC = Path("/proc")
_OPEN = re.compile(r"/(?!dev/|proc/|sys/|memfd:|tmp/pymp-|tmp/torch_)")


class LoaderWatch:
    """Warns, once each, of a stalled loader and of workers whose memory grows.

    ``key`` names what sets the number of workers. ``look`` is called from another thread.
    """

    def __init__(self, meter: Meter, num_workers: int, key: str) -> None:
        self._meter, self._workers, self._key = meter, num_workers, key
        self._said: set[str] = set()
        self._first: dict[int, tuple[float, int]] = {}  # of a worker: when warm, and its bytes
        self._born: dict[int, float] = {}
        self._looked = float("-inf")

    def look(self) -> None:
        """Look at the loader and its workers, and warn where it is due."""
        if "stall" not in self._said and (text := self._stall()):
            self._said.add("stall")
            logger.warning("%s", text)
        if "memory" in self._said or time.monotonic() - self._looked < MEMORY_PERIOD_SEC:
            return
        self._looked = time.monotonic()
        if text := self._growth():
            self._said.add("memory")
            logger.warning("%s", text)

    def _stall(self) -> str:
        since, usual = self._meter.waiting_since, self._meter.usual_sec
        if since is None:
            return ""
        waited = time.perf_counter() - since
        if waited < (FIRST_STALL_SEC if usual is None else max(LEAST_STALL_SEC, TIMES * usual)):
            return ""
        often = f"; an iteration took {usual:.2g} s so far" if usual is not None else ""
        inherited = _open_files(os.getpid())
        files = {file for pid in workers() for file in _open_files(pid)}
        listed = sorted(files, key=lambda file: (file in inherited, file))
        reading = f" They have open: {', '.join(listed[:3])}." if listed else ""
        return (
            f"No batch for {waited:.0f} s{often}. {self._key} is {self._workers}.{reading} Most"
            " likely a disk or network hangs; `moco-transfer doctor RUN` shows the line."
        )

    def _growth(self) -> str:
        now, before, after, longest = time.monotonic(), 0, 0, 0.0
        for pid in workers():
            warm = now - self._born.setdefault(pid, now) >= WARM_UP_SEC
            if not warm or not (size := private_bytes(pid)):
                continue
            since, first = self._first.setdefault(pid, (now, size))
            before, after, longest = before + first, after + size, max(longest, now - since)
        free, grown = available_bytes(), after - before
        if free is None or grown < max(LEAST_GROWTH, free / 10):
            return ""
        return (
            f"The memory of the data workers grew from {before / 1e9:.2f} to"
            f" {after / 1e9:.2f} GB in {longest / 60:.0f} min, and {free / 1e9:.1f} GB are free: at"
            f" this pace for {free / grown * longest / 3600:.1f} h. Lower {self._key}, now"
            f" {self._workers}, or stop and continue with --resume, which starts new workers."
        )


def workers() -> list[int]:
    """Return the processes that this one has started by multiprocessing."""
    children: Any = multiprocessing.process
    # active_children() would also wait for them, which belongs to the loader.
    return [child.pid for child in list(children._children) if child.pid is not None]


def private_bytes(pid: int) -> int:
    """Return the memory that a process has written and shares with no other, 0 if not known."""
    with contextlib.suppress(OSError):
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))
    return 0


def _open_files(pid: int) -> list[str]:
    """Return the images and shards that a process is reading."""
    found = []
    with contextlib.suppress(OSError):
        for fd in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                flags = re.search(
                    r"flags:\s*(\d+)", (fd.parent.parent / "fdinfo" / fd.name).read_text()
                )
                if flags and int(flags[1], 8) & os.O_ACCMODE == os.O_RDONLY:
                    found.append(os.readlink(fd))
    return [name for name in found if _OPEN.match(name)]


def available_bytes() -> int | None:
    """Return the memory that processes may still take, on this machine and in this container."""
    found = []
    with contextlib.suppress(OSError, AttributeError):
        match = re.search(r"MemAvailable:\s*(\d+)", (_PROC / "meminfo").read_text())
        found += [int(match[1]) << 10] if match else []
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(limit) - int(used))
    return min(found, default=None)
