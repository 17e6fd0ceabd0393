"""heartbeat.json: how far a process of a run is, and at which line, so that a hang is seen from
outside.

A thread writes it every 10 s: it costs the loop nothing, and continues where the loop hangs.
Each process has a file, as each has a log: in a hang all wait for one, and ``at`` names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ..distributed import get_rank, get_world_size
from ..errors import InputError
from ..files import atomic_write_text
from ..progress import Counted, last_counted
from .hangs import FILE
from .loader_watch import LoaderWatch

PERIOD_SEC = 10.0
_PACKAGE = __name__.partition(".")[0]


class Heartbeat:
    """Writes ``heartbeat.json`` (``heartbeat.json.rank1``, ...) into a run's folder between
    ``__enter__`` and ``__exit__``, which removes it: one that is left is of a killed process.
    ``watch`` is asked to look as often.
    """

    def __init__(self, folder: str | Path, watch: LoaderWatch | None = None) -> None:
        self._watch = watch
        name = FILE if get_rank() == 0 else f"{FILE}.rank{get_rank()}"
        self._path = Path(folder) / name
        self._facts = {
            "rank": get_rank(),
            "world_size": get_world_size(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if get_rank() == 0:  # of a run with more processes, of which some were lost
            ours = {f"{FILE}.rank{rank}" for rank in range(get_world_size())}
            for path in self._path.parent.glob(f"{FILE}.rank*"):
                if path.name not in ours:
                    path.unlink(missing_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._over.set()
        self._thread.join(PERIOD_SEC)  # a disk that hangs holds the run's own files up as well
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _go(self) -> None:
        while not self._over.wait(PERIOD_SEC):
            self._write()
            if self._watch is not None:
                self._watch.look()

    def _write(self) -> None:
        counted = last_counted()
        beat: dict[str, Any] = {"time": time.time(), **self._facts, **_progress(counted)}
        frame = sys._current_frames().get(self._watched)
        beat["at"] = _place(frame) if frame is not None else ""
        with contextlib.suppress(InputError, OSError):  # a full disk stops the run elsewhere
            atomic_write_text(self._path, json.dumps(beat) + "\n")


def _progress(counted: Counted | None) -> dict[str, Any]:
    if counted is None:
        return {"work": "starting", "iteration": 0, "total": None, "idle_sec": 0.0}
    return {
        "work": counted.work,
        "iteration": counted.done,
        "total": counted.total,
        "idle_sec": round(time.monotonic() - counted.at, 1),
    }


def _place(frame: FrameType) -> str:
    """Return the innermost line of a stack and, if that is a library's, the line of this package
    that called it: ``torch.utils.data.dataloader:1275 from moco_transfer.pretrain.run:178``.
    """
    inner = _line(frame)
    outer: FrameType | None = frame
    while outer is not None and outer.f_globals.get("__name__", "").split(".")[0] != _PACKAGE:
        outer = outer.f_back
    return inner if outer in (None, frame) else f"{inner} from {_line(outer)}"


def _line(frame: FrameType | None) -> str:
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}" if frame is not None else ""
