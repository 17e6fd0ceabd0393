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
import sys
import time
from pathlib import Path

import pytest

from moco_transfer.benchmark.launch import LaunchSettings, LocalLauncher, run_environment
from moco_transfer.benchmark.run import Stopped
from moco_transfer.cli import benchmark as verb
from moco_transfer.cli.options import add_options
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


def test_local_launcher__a_run_sees_its_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    launcher = LocalLauncher(lanes=2, num_gpus=2)
    command = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    jobs = [launcher.start(command, tmp_path / str(lane), lane) for lane in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
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
    add_options(parser, "benchmark")
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
    assert (first.num_processes(), first.lanes(8)) == (4, 1)
    assert verb._settings(_arguments("--baseline", "a"), tmp_path) == first
    # Another matrix, or another way to run: as the options say.
    assert verb._settings(_arguments(), None) == LaunchSettings()
    assert verb._settings(_arguments("--jobs", "2"), tmp_path) == LaunchSettings("local", 2)


def test_settings__torchruns_processes_are_kept_as_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "_num_gpus", lambda: 8)
    verb._settings(_arguments("--launcher", "torchrun"), None).save(tmp_path)
    monkeypatch.setattr(verb, "_num_gpus", lambda: 2)
    saved = verb._settings(_arguments(), tmp_path)
    assert (saved.num_processes(), saved.lanes(2)) == (8, 1)
    assert verb._settings(_arguments("--num-gpus", "4"), None) == LaunchSettings(
        "torchrun", None, 4
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--launcher", "local", "--num-gpus", "2"),
        ("--launcher", "slurm", "--jobs", "2"),
        ("--num-gpus", "2", "--slurm", "partition=gpu"),
    ],
)
def test_settings__refuses_options_of_another_launcher(words):
    with pytest.raises(InputError, match="is for --launcher"):
        verb._settings(_arguments(*words), None)


DAMAGED = ("", "[]", '{"launcher": "local"}', '{"x": 1, "slurm": []}')


@pytest.mark.parametrize("text", DAMAGED)
def test_settings__damaged(tmp_path, text):
    (tmp_path / "launcher.json").write_text(text)
    with pytest.raises(InputError, match="launcher.json is damaged"):
        LaunchSettings.read(tmp_path)


def test_stopped__says_what_is_true():
    said = Stopped(15, num_running=2, num_killed=0).advice(Path("runs"))
    assert "every run has saved" in said and "moco-transfer benchmark --output runs" in said
    killed = Stopped(15, num_running=2, num_killed=1).advice(Path("runs"))
    assert "1 run(s) did not end in time and were killed" in killed
    said = Stopped(2, num_running=5, num_killed=0, outlives=True).advice(Path("runs"))
    assert "5 job(s) stay in Slurm's queue" in said and "saved" not in said


def test_slurm_launcher__runs_through_submitit_and_finds_its_jobs_again(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    from moco_transfer.benchmark.launch import SlurmLauncher

    launcher = SlurmLauncher(tmp_path / "slurm", {"timeout_min": "5"}, cluster="local")
    command = [sys.executable, "-c", "print('ran'); raise SystemExit(3)"]
    job = launcher.start(command, tmp_path / "run", 0)
    until = time.monotonic() + 60
    while (status := job.poll()) is None and time.monotonic() < until:
        time.sleep(0.1)
    assert status == 3 and (tmp_path / "run" / "console.txt").read_text() == "ran\n"
    known = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert known == {str(tmp_path / "run"): job.job.job_id}


def test_slurm_launcher__without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = LaunchSettings("slurm", slurm=("partition=gpu",))
    with pytest.raises(InputError, match="--launcher slurm"):
        settings.make(tmp_path, num_gpus=0)
    with pytest.raises(InputError, match="nodes"):
        LaunchSettings("slurm", slurm=("nodes=2",)).make(tmp_path, num_gpus=0)
