"""How runs are started and stopped: what they see of the machine, what is kept of the launcher,
what a signal does.

Seen red under: the lane's number taken for a GPU's; jobs stopped one after the other. Written
    against, and not tried: OMP_NUM_THREADS of the
user overwritten; the launcher's words not saved; the handlers taken away before the runs have
ended; Slurm's jobs said to have saved.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.conftest import environment

from moco_transfer.benchmark.launch import (
    LaunchSettings,
    LocalLauncher,
    run_environment,
    visible_gpus,
)
from moco_transfer.benchmark.matrix import Initialisation, Task, build_matrix
from moco_transfer.benchmark.run import Stopped
from moco_transfer.benchmark.state import difference_from_checkpoint
from moco_transfer.cli import benchmark as verb
from moco_transfer.runtime.checkpoint import CheckpointFolder
from moco_transfer.runtime.errors import InputError


@pytest.mark.parametrize(
    ("mask", "num_gpus", "seen"),
    [
        (None, 2, ["0", "1", "0"]),
        ("4,5", 2, ["4", "5", "4"]),
        ("5", 1, ["5", "5", "5"]),
        ("GPU-aa, GPU-bb,GPU-cc", 2, ["GPU-aa", "GPU-bb", "GPU-aa"]),
        ("6,7", 0, ["6,7"] * 3),  # 0: left alone
        (None, 0, [None] * 3),
    ],
)
def test_run_environment__gpus_of_the_users_mask(monkeypatch, mask, num_gpus, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert [
        run_environment(lanes=3, lane=lane, num_gpus=num_gpus).get("CUDA_VISIBLE_DEVICES")
        for lane in range(3)
    ] == seen
    assert visible_gpus(0) == []


def test_local_launcher__a_run_sees_its_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    launcher = LocalLauncher(lanes=2, num_gpus=2)
    command = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    jobs = [launcher.start(command, tmp_path / str(lane), lane) for lane in range(2)]
    assert all(job.wait_until_stopped(time.monotonic() + 60) for job in jobs)
    assert [(tmp_path / str(lane) / "console.txt").read_text() for lane in range(2)] == [
        "4\n",
        "5\n",
    ]


def test_run_environment__cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_environment(lanes=3, lane=0, num_gpus=0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run_environment(lanes=3, lane=0, num_gpus=0)["OMP_NUM_THREADS"] == "5"


def _arguments(*words):
    import argparse

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args(["--output", "runs", *words])


def test_settings__are_those_of_the_first_call_where_only_the_output_is_given(tmp_path):
    words = ["--launcher", "slurm", "--slurm", "partition=gpu", "gpus_per_node=4"]
    first = verb._settings(_arguments(*words), None)
    first.save(tmp_path)
    assert (
        verb._settings(_arguments(), tmp_path)
        == first
        == LaunchSettings("slurm", None, None, ("partition=gpu", "gpus_per_node=4"))
    )
    assert verb._processes(first) == (4, 1, 0)
    assert verb._settings(_arguments("--no-timing", "--baseline", "a"), tmp_path) == first
    # Another matrix, or another way to run: as the options say.
    assert verb._settings(_arguments(), None) == LaunchSettings()
    assert verb._settings(_arguments("--jobs", "2"), tmp_path) == LaunchSettings("local", 2)


def test_settings__torchruns_processes_are_kept_as_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "_gpus", lambda: 8)
    verb._settings(_arguments("--launcher", "torchrun"), None).save(tmp_path)
    monkeypatch.setattr(verb, "_gpus", lambda: 2)
    assert verb._processes(verb._settings(_arguments(), tmp_path)) == (8, 1, 0)


DAMAGED = (
    "",
    "[]",
    '{"launcher": "local"}',
    '{"launcher": "magic", "slurm": []}',
    '{"jobs": "2", "slurm": []}',
    '{"x": 1, "slurm": []}',
)


@pytest.mark.parametrize("text", DAMAGED)
def test_settings__damaged(tmp_path, text):
    (tmp_path / "launcher.json").write_text(text)
    with pytest.raises(InputError, match="launcher.json is damaged"):
        LaunchSettings.read(tmp_path)


class _Launcher:
    goes_on_alone = False


def test_stopped__says_what_is_true(tmp_path):
    launcher = _Launcher()
    said = verb._stopped(Stopped(15, num_running=2, num_killed=0), launcher, Path("runs"))
    assert said == "Stopped; every run has saved. Go on with: moco-transfer benchmark --output runs"
    assert "1 run(s) did not end in time and were killed" in verb._stopped(
        Stopped(15, num_running=2, num_killed=1), launcher, Path("runs")
    )
    launcher.goes_on_alone = True
    said = verb._stopped(Stopped(2, num_running=5, num_killed=0), launcher, Path("runs"))
    assert "5 job(s) stay in Slurm's queue" in said and "saved" not in said


# Two runs that take two seconds to save, and a program that runs them.
CHILD = """
import pathlib, signal, sys, time
def save(*_):
    told = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: None)
    time.sleep(2)
    pathlib.Path(sys.argv[1]).write_text(str(told))
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text('runs')
time.sleep(600)
"""
PROGRAM = """
import sys
from moco_transfer.benchmark.launch import LocalLauncher
from moco_transfer.benchmark.matrix import Cell, Initialisation, Task
from moco_transfer.benchmark.run import Stopped, run_cells
from pathlib import Path
folder = Path(sys.argv[1])
cells = [(Cell(Task('t', 'c'), Initialisation('random'), seed, 1.0, folder / f'seed{seed}'), 10) for seed in range(3)]
command = lambda cell: [sys.executable, str(folder / 'child.py'), str(cell.folder / 'state.txt')]
try:
    run_cells(cells, LocalLauncher(lanes=2), command, on_finished=print)
except Stopped as stop:
    print('stopped by', stop.signum, 'running', stop.num_running, 'killed', stop.num_killed, flush=True)
"""


def test_run_cells__ctrl_c_stops_all_runs_together_and_a_second_signal_waits(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    states = [tmp_path / f"seed{seed}" / "state.txt" for seed in range(2)]
    until = time.monotonic() + 120
    while not all(state.exists() and state.read_text() == "runs" for state in states):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert said == "stopped by 2 running 2 killed 0\n" and process.returncode == 0
    told = [
        float(state.read_text()) for state in states
    ]  # when; "runs" still would be one that was not let save
    assert abs(told[0] - told[1]) < 1.5, "one after the other, two seconds apart"
    assert not (tmp_path / "seed2").exists(), "a run was started after the signal"


def test_difference_from_checkpoint(tmp_path):
    matrix = build_matrix(tmp_path, tasks=[Task("t", "c")], inits=[Initialisation("random")])
    (cell,) = matrix.cells()
    cell.folder.mkdir(parents=True)
    now = {
        "config_hash": "h",
        "engine": "torchvision",
        "weights_sha256": "w",
        "label_subset_sha256": None,
    }
    same = {**now, "seed": 0, "init": "random", "iteration": 5}

    def found(**header):
        CheckpointFolder(cell.folder, keep=1).save(header, "0000005")
        return difference_from_checkpoint(cell, **now)

    assert found(**same) is None
    assert (
        found(iteration=5, config_hash="h", engine="torchvision") is None
    )  # of an earlier version
    names = {
        "config_hash": "config hash",
        "weights_sha256": "sha256 of the weights",
        "label_subset_sha256": "sha256 of the label subset",
    }
    for key, name in names.items():
        assert f"{cell.folder} holds another run ({name} 'other', now {now[key]!r})" in found(
            **(same | {key: "other"})
        )
    assert "(seed 3, now 0)" in found(**(same | {"seed": 3}))
    next(cell.folder.glob("checkpoint_*.pth")).write_bytes(b"damaged")
    assert difference_from_checkpoint(cell, **now) is None


def test_matrix__saved_paths_hold_in_any_folder(tmp_path, monkeypatch):
    from moco_transfer.benchmark.build import save_matrix
    from moco_transfer.benchmark.matrix import read_matrix

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("")
    (tmp_path / "classes.txt").write_text("a\n")
    flags = ("a=voc:VOC:train:classes.txt", "b=voc:VOC:test:x,y:year=2007", "c=coco:c.json:images")
    tasks = [Task("t", "own.yaml", datasets=flags), Task("coco_R_50_C4_1x", "coco_R_50_C4_1x")]
    rows = [Initialisation("random"), Initialisation("moco", "moco.pkl")]
    matrix = build_matrix("runs", tasks=tasks, inits=rows, baseline="moco", datasets=flags[2:])
    file = save_matrix(matrix)
    save_matrix(matrix)  # the same again is no other matrix
    monkeypatch.chdir("/")
    saved = read_matrix(tmp_path / file, tmp_path / "runs")
    at = str(tmp_path)
    assert [(task.config, task.datasets) for task in saved.tasks] == [
        (
            f"{at}/own.yaml",
            (
                f"a=voc:{at}/VOC:train:{at}/classes.txt",
                f"b=voc:{at}/VOC:test:x,y:year=2007",
                f"c=coco:{at}/c.json:{at}/images",
            ),
        ),
        ("coco_R_50_C4_1x", ()),
    ]
    assert [init.weights for init in saved.inits] == [
        "",
        f"{at}/moco.pkl",
    ] and saved.baseline == "moco"
    assert saved.datasets == (f"c=coco:{at}/c.json:{at}/images",)
    assert json.dumps(saved.dump()) == json.dumps(saved.with_absolute_paths().dump())
