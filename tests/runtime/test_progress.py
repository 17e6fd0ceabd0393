"""What long work shows of itself on stderr, with a terminal and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from moco_transfer.runtime import progress as module
from moco_transfer.runtime.progress import logged, progress

WORK = """
import time
from moco_transfer.runtime import progress as module
module.LINE_PERIOD_SEC = 0.2
for _ in module.progress(range(30), "fitting", unit="images"):
    time.sleep(0.03)
"""


def test_lines__tell_count_and_time_left_at_least_every_period():
    done = subprocess.run([sys.executable, "-c", WORK], stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) <= 5 and "\r" not in done.stderr
    assert all("fitting" in line and "/30 images" in line and "left" in line for line in lines)


def test_terminal__has_one_bar_that_is_overwritten():
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.Popen([sys.executable, "-c", WORK], stderr=child)
    os.close(child)
    seen = b""
    try:
        while part := os.read(parent, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    assert done.wait() == 0
    assert seen.count(b"\r") > 3 and seen.count(b"\n") == 1


def test_short_work__prints_nothing(capfd: pytest.CaptureFixture):
    assert list(progress(range(3), "short")) == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_log_line__defers_the_next_one(capfd: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setattr(module, "LINE_PERIOD_SEC", 1.0)
    bar = progress(None, "training", total=100)
    for _ in range(30):
        time.sleep(0.05)
        bar.update()
        logged(bar)
    bar.close()
    assert capfd.readouterr().err == ""
