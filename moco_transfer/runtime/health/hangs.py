"""What the heartbeats of a run's processes say, read from outside; imports no torch."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import regular
from ..text import parse_json

FILE = "heartbeat.json"
SILENT_SEC = 60.0  # without a heartbeat, of which there are six a minute
IDLE_SEC = 300.0  # without progress: scoring a large test set or compiling may take minutes


@dataclass(frozen=True)
class Beat:
    """What a process wrote last; seconds of this moment."""

    rank: int
    work: str  # pre-training, evaluating, ...
    iteration: int  # or image, of the work
    total: int | None
    idle_sec: float  # since the last progress
    silent_sec: float  # since it was written
    at: str  # line that the process was at
    process: str  # its number and host
    is_gone: bool  # it has ended without removing its heartbeat

    @property
    def hangs(self) -> bool:
        """Whether nothing was heard, or nothing done, for long."""
        return self.is_gone or self.silent_sec > SILENT_SEC or self.idle_sec > IDLE_SEC

    def __str__(self) -> str:
        total = f" of {self.total}" if self.total else ""
        text = f"process {self.rank} ({self.process}): {self.work}, {self.iteration}{total}"
        if self.is_gone:
            return f"{text}; was killed {duration(self.silent_sec)} ago. Continue with --resume."
        if self.silent_sec > SILENT_SEC:
            return f"{text}; stopped or cut off, silent for {duration(self.silent_sec)}"
        if self.idle_sec > IDLE_SEC:
            return f"{text}; no progress for {duration(self.idle_sec)}, at {self.at}"
        return f"{text}, {duration(self.idle_sec)} ago"


def duration(seconds: float) -> str:
    """Return seconds in one unit, such as ``12 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def read_beats(folder: str | Path) -> list[Beat]:
    """Return what the processes of a run wrote last, by rank; nothing of a run that has ended."""
    found = []
    for path in Path(folder).glob(f"{FILE}*"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # cut or removed
            found.append(_beat(parse_json(regular(path).read_bytes())))
    return sorted(found, key=lambda beat: beat.rank)


def _beat(row: dict[str, Any]) -> Beat:
    silent = max(0.0, time.time() - row["time"])
    is_here = row["host"] == socket.gethostname()
    return Beat(
        *(int(row["rank"]), str(row["work"]), int(row["iteration"])),
        total=row["total"],
        idle_sec=float(row["idle_sec"]) + silent,
        silent_sec=silent,
        at=str(row["at"]),
        process=f"{int(row['pid'])} on {row['host']}",
        is_gone=is_here and not _is_alive(int(row["pid"])),
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def hang(folder: str | Path) -> str:
    """Return what of a run seems to hang, or "": a process that is silent or, where no process goes
    on, one at the line where fewest are, for which the others wait.
    """
    beats = read_beats(folder)
    silent = [beat for beat in beats if beat.is_gone or beat.silent_sec > SILENT_SEC]
    if silent:
        return str(max(silent, key=lambda beat: (beat.is_gone, beat.silent_sec)))
    places = [beat.at for beat in beats if beat.hangs]
    if not places or len(places) < len(beats):  # one that has evaluated its share may wait long
        return ""
    return str(min(beats, key=lambda beat: places.count(beat.at)))


def running_below(root: str | Path) -> Iterator[Path]:
    """Yield the folders at ``root`` and below that hold heartbeats."""
    yield from sorted({path.parent for path in Path(root).rglob(f"{FILE}*")})
