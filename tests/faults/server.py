"""A process that has imported the program, and forks one for each trial: a run of a verb then
starts in milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_STOPPING = (signal.SIGTERM, signal.SIGINT)
TIMEOUT = 120.0  # s; a run takes seconds


class Run:
    """A verb in a process of its own, the first of a session."""

    def __init__(
        self, argv: Sequence[object], log: Path, before: Callable[[], object] | None = None
    ) -> None:
        from moco_transfer.cli.main import main

        self.log, self.status, self.has_ended = log, 0, False
        sys.stdout.flush()
        with open(log, "ab", buffering=0) as file:  # here, where the launcher opens it too
            self.pid = os.fork()
            if not self.pid:
                for fd in (1, 2):
                    os.dup2(file.fileno(), fd)
        if self.pid:
            return
        status = 70
        try:
            os.setsid()
            if before is not None:
                before()
            status = main([str(word) for word in argv])
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float = TIMEOUT) -> bool:
        """Wait for the end; return whether it came."""
        if self.has_ended:
            return True
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status, self.has_ended = os.waitstatus_to_exitcode(status), True
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.002)

    def end(self, signum: int) -> None:
        """Send a signal and wait; SIGKILL what does not end."""
        if not self.has_ended:
            os.kill(self.pid, signum)
        if not self.wait():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
            raise AssertionError(f"process {self.pid} did not end by signal {signum}")

    def orphans(self, seconds: float = 20.0) -> list[int]:
        """Return the processes of the session that are still there after ``seconds``."""
        until = time.monotonic() + seconds
        while (left := session(self.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        return left

    def children(self) -> list[int]:
        """Return the processes that the run has started."""
        return [pid for pid in session(self.pid) if pid != self.pid]


class Child(Run):
    """In place of the Popen of a benchmark's run: a fork of the benchmark."""

    def __init__(self, launcher: Any, command: Sequence[str], folder: Path, lane: int) -> None:
        from moco_transfer.benchmark import launch

        own = launch.run_environment(lanes=launcher.lanes, lane=lane, num_gpus=launcher.num_gpus)

        def before() -> None:
            launch._end_with_parent()
            os.environ.update(own)
            for signum in _STOPPING:
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

        launch.make_folder(folder)
        # No signal may meet the benchmark's handlers in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        super().__init__(command[command.index("train") :], folder / launch.CONSOLE, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    def poll(self) -> int | None:
        """As Popen's."""
        return self.status if super().wait(0) else None

    def wait(self, timeout: float = TIMEOUT) -> bool:
        """As Popen's."""
        if not super().wait(timeout):
            raise subprocess.TimeoutExpired("a run", timeout)
        return True

    def terminate(self) -> None:
        """As Popen's."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """As Popen's."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found
