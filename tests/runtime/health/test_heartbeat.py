"""heartbeat.json: what each process writes, and what is said from outside of those that hang.

Seen red under: no thread; the file left at the end; ``iteration`` of a bar that is not shown; the
most frequent line named as the one waited for; the age of a heartbeat left out; a process of
another host looked for here; those of lost processes left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from moco_transfer.cli.main import main
from moco_transfer.runtime import progress as progress_module
from moco_transfer.runtime.health import hangs, heartbeat
from moco_transfer.runtime.health.heartbeat import Heartbeat
from moco_transfer.runtime.progress import progress

PROGRAM = """
import sys, time
from moco_transfer.runtime.health import heartbeat
from moco_transfer.runtime.progress import progress
heartbeat.PERIOD_SEC = 0.1
with heartbeat.Heartbeat(sys.argv[1]):
    for number in progress(range(9), "working"):
        if number == 4:
            print("there", flush=True)
            time.sleep(600)
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the heartbeat of a process of another host."""

    def beat(rank=0, *, silent=0.0, idle=0.0, at="a:1", **changes):
        name = "heartbeat.json" + f".rank{rank}" * bool(rank)
        facts = {"rank": rank, "world_size": 3, "host": "elsewhere", "pid": os.getpid()}
        facts |= {"time": time.time() - silent, "idle_sec": idle, "at": at}
        facts |= {"work": "pre-training", "iteration": 7, "total": 90}
        (tmp_path / name).write_text(json.dumps(facts | changes))

    return beat


def test_heartbeat__says_how_far_and_where_and_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD_SEC", 0.02)
    monkeypatch.setattr(progress_module, "is_main_process", lambda: False)  # its bar is not shown
    file = tmp_path / "heartbeat.json"
    with Heartbeat(tmp_path):
        bar = progress(None, "fine-tuning", total=50, initial=20)
        bar.update()
        time.sleep(0.3)
        found = json.loads(file.read_text())
        for _ in progress(range(8), "evaluating"):
            time.sleep(0.02)
        time.sleep(0.1)
        later = json.loads(file.read_text())
    assert [found[key] for key in ("work", "iteration", "total")] == ["fine-tuning", 21, 50]
    assert 0.1 < found["idle_sec"] < 5 and abs(found["time"] - time.time()) < 5
    assert (found["rank"], found["pid"], found["host"]) == (0, os.getpid(), socket.gethostname())
    assert __name__.split(".")[-1] in found["at"]
    assert [later[key] for key in ("work", "iteration", "total")] == ["evaluating", 8, 8]
    assert os.listdir(tmp_path) == []


def test_heartbeat__removes_those_of_processes_that_a_resumed_run_no_longer_has(tmp_path, write):
    write(1), write(12)
    with Heartbeat(tmp_path):
        assert [beat.rank for beat in hangs.read_beats(tmp_path)] == [0]


def test_doctor__finds_a_process_that_is_stopped_or_killed(tmp_path, monkeypatch, capsys):
    run = tmp_path / "out" / "run"
    words = [sys.executable, "-c", PROGRAM, str(run)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout.readline() == b"there\n"
        time.sleep(0.4)
        assert main(["doctor", str(tmp_path)]) == 0
        assert f"{process.pid} on {socket.gethostname()}" in capsys.readouterr().out
        monkeypatch.setattr(hangs, "IDLE_SEC", 0.3)
        assert main(["doctor", str(tmp_path)]) == 1
        said = capsys.readouterr().out
        assert "HANGS" in said and "working, 4 of 9" in said and "__main__:10" in said
        monkeypatch.setattr(hangs, "SILENT_SEC", 0.3)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        assert "stopped" in hangs.hang(run)
    finally:
        process.kill()
        process.wait()
    assert "killed" in hangs.hang(run) and main(["doctor", str(run)]) == 1
    (run / "heartbeat.json").write_text('{"rank": 0, "ti')  # of a disk that was cut off
    assert main(["doctor", str(run)]) == 0 and main(["doctor", str(run / "gone")]) == 2


def test_hang__names_the_process_that_the_others_wait_for(write, tmp_path):
    for rank in range(3):
        write(rank, idle=hangs.IDLE_SEC + 60, at="reader:5" if rank == 1 else "all_reduce:9")
    assert hangs.hang(tmp_path).startswith("process 1 ") and "reader:5" in hangs.hang(tmp_path)
    write(2, silent=hangs.SILENT_SEC + 600)
    assert hangs.hang(tmp_path).startswith("process 2 ") and "11 min" in hangs.hang(tmp_path)


def test_hang__waits_for_work_that_goes_on(write, tmp_path):
    write(0, idle=hangs.IDLE_SEC + 60)  # it has evaluated its share
    write(1, idle=2.0)
    assert hangs.hang(tmp_path) == ""
    write(1, idle=2.0, pid=2**22 + 1)  # of another host: nothing is known of the number
    assert hangs.hang(tmp_path) == ""
    write(1, idle=2.0, silent=-3600)  # the clock was set back
    assert hangs.hang(tmp_path) == ""
