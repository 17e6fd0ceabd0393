"""A matrix that is stopped and killed, in processes of its own.

Seen red under: the children left alive by SIGKILL; jobs stopped one after the other; the first
failure ending the matrix.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli.conftest import environment

from moco_transfer.benchmark.launch import LocalLauncher, output_lock
from moco_transfer.benchmark.matrix import Initialisation, Matrix, Task
from moco_transfer.benchmark.run import run_cells
from moco_transfer.runtime.errors import InputError


def files_of(folder) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def counts(stdout) -> list[str]:
    """Return the numbers of complete, interrupted and missing runs that the overview shows."""
    (line,) = [line for line in stdout.splitlines() if line.startswith("  demo_R_18_FPN ")]
    return line.split()[2:5]


def last_state(folder) -> dict:
    return torch.load(folder / (folder / "last_checkpoint").read_text().strip(), weights_only=True)


def assert_same(one, other, where=""):
    """Assert that two checkpoints hold the same tensors and numbers, to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    else:
        assert one == other, where


@pytest.mark.slow
def test_benchmark__killed_and_continued_is_the_uninterrupted_matrix(
    whole, matrix_words, benchmark, tmp_path, capsys
):
    for attempt in range(3):
        output = tmp_path / f"runs{attempt}"
        first, second = (
            output / "demo_R_18_FPN" / name / "seed0" for name in ("random", "supervised")
        )
        command = [sys.executable, "-m", "moco_transfer", "benchmark", "--output", str(output)]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*command, *matrix_words], env=environment(), **silent)
        until = time.monotonic() + 240
        while not (second / "last_checkpoint").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.kill()
        process.wait()
        with output_lock(output):  # until its run has ended
            if not (second / "results.json").exists():
                break
    else:
        pytest.fail("three times the run had ended before it could be interrupted")
    before = files_of(first)
    assert "results.json" in before

    capsys.readouterr()
    assert benchmark("--output", output) == 0
    assert counts(capsys.readouterr().out) == ["1", "1", "0"]
    # The table adds what it drew from the run's matches.
    after = {n: file for n, file in files_of(first).items() if not n.endswith("_bootstrap.json")}
    assert after == before, "a complete run was run again"
    assert "resumed from" in (second / "log.txt").read_text()
    for folder in (first, second):
        uninterrupted = whole / folder.relative_to(output)
        states = [last_state(path) for path in (uninterrupted, folder)]
        assert states[0]["iteration"] == 6
        for key in ("model", "optimizer", "iteration"):
            assert_same(states[0][key], states[1][key], f"{folder.parent.name}.{key}")
        one, other = (
            json.loads((path / "results.json").read_text()) for path in (uninterrupted, folder)
        )
        assert one["metrics"] == other["metrics"]
        assert one["last_losses"] == other["last_losses"]  # means of the last log period


@pytest.mark.slow
def test_benchmark__is_watched_by_a_report_in_the_same_folder(matrix_words, tmp_path):
    output, pages = tmp_path / "runs", []
    program = [sys.executable, "-m", "moco_transfer"]
    command = [*program, "benchmark", "--output", str(output), *matrix_words]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*command], env=environment(), **how)
    until = time.monotonic() + 240
    while not (output / "matrix.yaml").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    period = (
        "import moco_transfer.benchmark.watch as w, moco_transfer.cli.main as m; w.PERIOD_SEC = 1"
    )
    words = [sys.executable, "-c", f"{period}; raise SystemExit(m.main())"]
    watch = subprocess.Popen([*words, "report", str(output), "--watch"], env=environment(), **how)
    page = output / "report.html"
    while watch.poll() is None:
        assert time.monotonic() < until
        if page.exists() and (text := page.read_text()) not in pages[-1:]:
            pages.append(text)
        time.sleep(0.05)
    assert (watch.returncode, process.wait(60)) == (0, 0), watch.communicate()[0]
    assert any('class="running"' in text for text in pages)
    last = page.read_text()
    assert last.count('class="complete"') in (0, 2)  # 0: the page that the benchmark itself writes
    assert 'id="reload"' not in last and 'src="data:image/' in last  # with the sheet


def test_benchmark__child_of_a_killed_parent_saves_ends_and_holds_the_lock_until_then(tmp_path):
    # The child takes a second to "save" when it is told to end.
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(143)))\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    program = (
        "import sys, time; from pathlib import Path\n"
        "from moco_transfer.benchmark.launch import LocalLauncher, output_lock\n"
        "output = Path(sys.argv[1]); command = [sys.executable, str(output / 'child.py')]\n"
        "with output_lock(output, wait_sec=0.1) as lock:\n"
        "    job = LocalLauncher(lanes=1, lock=lock).start(command, output / 'run', 0)\n"
        "    print(job.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    until = time.monotonic() + 60
    while "ready" not in (tmp_path / "run" / "console.txt").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        until = time.monotonic() + 30
        while Path(f"/proc/{child}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_output_lock__is_held_by_one(tmp_path):
    with (
        output_lock(tmp_path),
        pytest.raises(InputError, match="is in use by another benchmark"),
        output_lock(tmp_path, wait_sec=0),
    ):
        pass


def test_run_cells__continues_past_a_failed_run_and_names_it(tmp_path, results, monkeypatch):
    monkeypatch.setattr("moco_transfer.benchmark.run._POLL_SEC", 0.02)
    matrix = Matrix(tmp_path, (Task("t", "c"),), (Initialisation("random"),), seeds=(0, 1))
    broken, good = matrix.cells()
    (tmp_path / "results.json").write_text(json.dumps(results(task="t", seed=1)))
    source = str(tmp_path / "results.json")
    programs = {
        broken: "print('reading'); print('it broke'); raise SystemExit(3)",
        good: f"import shutil; shutil.copy({source!r}, {str(good.folder)!r})",
    }
    finished = []
    (failure,) = run_cells(
        [(cell, 10) for cell in programs],
        LocalLauncher(lanes=1),
        lambda cell: [sys.executable, "-c", programs[cell]],
        on_finished=finished.append,
    )
    assert finished == [good]
    assert (failure.cell, failure.status, failure.last_words) == (broken, 3, "it broke")
    assert str(broken.folder / "console.txt") in str(failure)


# Two runs that take a second to save, and a program that runs them.
CHILD = """
import pathlib, signal, sys, time
def save(*_):
    told = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: None)
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text(str(told))
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text('runs')
time.sleep(600)
"""
PROGRAM = """
import sys
from moco_transfer.benchmark.launch import LocalLauncher
from moco_transfer.benchmark.matrix import Initialisation, Matrix, Task
from moco_transfer.benchmark.run import Stopped, run_cells
from pathlib import Path
folder = Path(sys.argv[1])
matrix = Matrix(folder, (Task('t', 'c'),), (Initialisation('random'),), seeds=(0, 1, 2))
cells = [(cell, 10) for cell in matrix.cells()]
command = lambda cell: [sys.executable, str(folder / 'child.py'), str(cell.folder / 'state.txt')]
try:
    run_cells(cells, LocalLauncher(lanes=2), command, on_finished=print)
except Stopped as stop:
    print(stop.signum, stop.num_running, stop.num_killed, flush=True)
"""


def test_run_cells__ctrl_c_stops_all_runs_together_and_a_second_signal_waits(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    states = [tmp_path / "t" / "random" / f"seed{seed}" / "state.txt" for seed in range(2)]
    until = time.monotonic() + 120
    while not all(state.exists() and state.read_text() == "runs" for state in states):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == "2 2 0\n" and process.returncode == 0  # by SIGINT, two running, none killed
    # When each was told; "runs" still would be one that was not let save.
    told = [float(state.read_text()) for state in states]
    assert abs(told[0] - told[1]) < 0.9, "one after the other"
    assert not states[0].parents[1].joinpath("seed2").exists(), "a run was started after the signal"
