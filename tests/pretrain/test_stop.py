"""A run that is told to stop saves within an iteration, and a resumed one has what an
uninterrupted one has.

Went red under: see each test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from generated_images import write_pool

from moco_transfer.data.views import view_batch
from moco_transfer.pretrain import knn, plan
from moco_transfer.pretrain import run as run_module
from moco_transfer.runtime.health import heartbeat

from .small_runs import (
    SmallEncoder,
    assert_same_state,
    config,
    last_state,
    pretrain,
    rows_of,
    told_during_knn,
    told_during_training,
    words,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, count=24, size=24, seed=0)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small network, on one thread as in the processes that tests start."""
    monkeypatch.setattr(plan, "build_encoder", SmallEncoder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_heartbeat__is_there_while_it_trains_and_gone_when_it_ends(pool, tmp_path, monkeypatch):
    """Went red under: no heartbeat in pretrain; it stays where the run ends by an error."""
    monkeypatch.setattr(heartbeat, "PERIOD_SEC", 0.02)
    file, beats, read = tmp_path / "heartbeat.json", [], view_batch.Views.__getitem__

    def reading(self, places):
        time.sleep(0.1)
        beats.append(json.loads(file.read_text()))
        if len(beats) == 6:
            raise RuntimeError("broken")
        return read(self, places)

    monkeypatch.setattr(view_batch.Views, "__getitem__", reading)
    with pytest.raises(RuntimeError, match="broken"):
        pretrain(config(pool, tmp_path))
    assert not file.exists()
    assert [beat["iteration"] for beat in beats] == [0, 1, 2, 3, 4, 5]
    assert {(beat["total"], beat["work"]) for beat in beats} == {(9, "pre-training")}
    assert "moco_transfer" in beats[-1]["at"] or "test_stop" in beats[-1]["at"]


@pytest.fixture(scope="module")
def whole(pool, tmp_path_factory) -> Path:
    """The run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "build_encoder", SmallEncoder)
        torch.set_num_threads(1)
        pretrain(config(pool, out, KNN__TEST=pool))
    return out


def assert_equal_runs(out: Path, whole: Path) -> None:
    assert_same_state(last_state(out), last_state(whole))
    assert rows_of(out) == rows_of(whole)


def stop_when_it_waits(command: list[str], waits: Callable[[], bool]) -> tuple[int, float, str]:
    """Send SIGTERM to all processes of a job, as schedulers do; return the exit status, the seconds
    until then, and what was printed.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    deadline = time.time() + 120
    while not waits():
        assert job.poll() is None and time.time() < deadline, job.communicate(timeout=10)[0]
        time.sleep(0.05)
    since = time.time()
    os.killpg(job.pid, signal.SIGTERM)
    try:
        printed = job.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    with pytest.raises(ProcessLookupError):  # no data worker is left
        for _ in range(50):
            os.killpg(job.pid, 0)
            time.sleep(0.1)
    return job.returncode, time.time() - since, printed


@pytest.mark.parametrize("kind", ["training", "monitor"])
def test_sigterm_to_the_whole_job__saved_and_resumed_bit_for_bit(kind, pool, whole, tmp_path):
    """Red under: data workers that die of SIGTERM; ``stop`` not asked between batches of kNN."""
    overrides = words(pool, tmp_path / "run", KNN__TEST=pool, DATA__NUM_WORKERS=2)
    script = [
        sys.executable,
        str(REPOSITORY / "tests" / "pretrain" / "slow_run.py"),
        kind,
        str(tmp_path / "mark"),
    ]

    def waits() -> bool:
        measured = tmp_path / "run" / "metrics.json"
        return (tmp_path / "mark").exists() and (
            kind == "monitor" or measured.exists() and "knn_top1" in measured.read_text()
        )

    status, seconds, printed = stop_when_it_waits([*script, *overrides], waits)
    assert status == 143 and seconds < 40, printed
    assert "Told to stop (SIGTERM)" in printed and "Traceback" not in printed
    assert 3 <= last_state(tmp_path / "run")["iteration"] < 9
    pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True)
    assert_equal_runs(tmp_path / "run", whole)


def test_told_in_one_process__the_log_period_continues(pool, whole, tmp_path, monkeypatch):
    """Red under: ``meter.resume`` left out; its sums left out; ``knn_top1`` not looked for."""
    with monkeypatch.context() as patch:
        told_during_training(patch, epoch=2)
        assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool)) is None
    stopped = last_state(tmp_path / "run")
    assert (
        stopped["iteration"] == 7 and stopped["period"]["count"] == 3
    )  # the period of iterations 5 to 8
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == [3, 4, 6]
    pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True)
    assert_equal_runs(tmp_path / "run", whole)
    assert [row["iteration"] for row in rows_of(whole)] == [3, 4, 6, 8, 9, 9]


def test_told_in_the_last_iteration_of_an_epoch__measured_on_resume(
    pool, whole, tmp_path, monkeypatch
):
    """Red under: ``run.monitored = run.iteration`` on each resume."""
    step = run_module.step

    def told(run, batch):
        if run.iteration == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "step", told)
        assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool)) is None
    assert last_state(tmp_path / "run")["iteration"] == 6
    # The second measurement is due.
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == [3, 4]
    pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True)
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize("end", ["told", "killed"])
def test_ended_during_the_last_measurement__measured_on_resume_and_only_once(
    end, pool, whole, tmp_path, monkeypatch
):
    """Red under: a run without its last measurement taken for complete."""
    with monkeypatch.context() as patch:
        if end == "told":  # twice both sets, then in the middle of the test images
            told_during_knn(patch, before=2 * 2 * 24 + 30)
            assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool)) is None
        else:
            accuracy, left = knn.knn_accuracy, [1, 1]
            patch.setattr(
                knn, "knn_accuracy", lambda *args, **more: left.pop() and accuracy(*args, **more)
            )
            with pytest.raises(IndexError):
                pretrain(config(pool, tmp_path / "run", KNN__TEST=pool))
    assert last_state(tmp_path / "run")["iteration"] == 9
    assert "knn_top1" not in rows_of(tmp_path / "run")[-1]
    for _ in range(2):
        assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True) is not None
        assert_equal_runs(tmp_path / "run", whole)
