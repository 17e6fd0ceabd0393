"""A run that is told to stop saves at once, whatever it waits for, and a resumed one has what an
uninterrupted one has.

Went red under: see each test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moco_transfer.data.scenes import write_pool
from moco_transfer.pretrain import build, knn, trainer
from moco_transfer.pretrain.build import pretrain

from .small_runs import (
    SmallEncoder,
    assert_same_state,
    config,
    labelled_images_end,
    last_state,
    rows_of,
    training_images_end,
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
    monkeypatch.setattr(build, "build_encoder", SmallEncoder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(pool, tmp_path_factory) -> Path:
    """The run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_encoder", SmallEncoder)
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
    time.sleep(0.5)  # until the training process waits too
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
def test_sigterm_to_the_whole_job_while_it_waits_for_images__saved_and_resumed_bit_for_bit(
    kind, pool, whole, tmp_path
):
    """Red under: ``next`` for ``stop.next_of`` (RuntimeError, DataLoader worker exited
    unexpectedly); no ``until_told`` in features.py.
    """
    overrides = words(pool, tmp_path / "run", KNN__TEST=pool, DATA__NUM_WORKERS=2)
    script = [
        sys.executable,
        str(REPOSITORY / "tests" / "pretrain" / "starved_run.py"),
        kind,
        str(tmp_path / "mark"),
    ]

    def waits() -> bool:
        measured = tmp_path / "run" / "metrics.json"
        return (tmp_path / "mark").exists() and (
            kind == "monitor" or measured.exists() and "knn_top1" in measured.read_text()
        )

    status, seconds, printed = stop_when_it_waits([*script, *overrides], waits)
    assert status == 143 and seconds < 20, printed
    assert (
        "Told to stop (SIGTERM): saved after iteration 3. Continue with --resume." in printed
        and "Traceback" not in printed
    )
    assert last_state(tmp_path / "run")["iteration"] == 3
    pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True)
    assert_equal_runs(tmp_path / "run", whole)


def test_sigterm_to_two_processes_while_they_wait_for_images__saved(pool, tmp_path):
    """Neither has a batch to take a step with, and torchrun sends the signal once more."""
    overrides = words(pool, tmp_path / "run", DATA__NUM_WORKERS=1)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    script = [
        *torchrun,
        str(REPOSITORY / "tests" / "pretrain" / "starved_run.py"),
        "training",
        str(tmp_path / "mark"),
    ]
    _, seconds, printed = stop_when_it_waits([*script, *overrides], (tmp_path / "mark").exists)
    assert "Told to stop (SIGTERM): saved after iteration 3." in printed and seconds < 30, printed
    assert last_state(tmp_path / "run")["iteration"] == 3


def test_told_while_it_waits_in_one_process__the_log_period_goes_on(
    pool, whole, tmp_path, monkeypatch
):
    """Red under: ``meter.go_on`` left out; the sums left out of ``go_on``; ``knn_top1`` not looked
    for in metrics.json.
    """
    with monkeypatch.context() as patch:
        training_images_end(patch, epoch=2)
        assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool)) is None
    stopped = last_state(tmp_path / "run")
    assert (
        stopped["iteration"] == 6 and stopped["period"]["count"] == 2
    )  # the period of iterations 5 to 8
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == [3, 4, 6]
    pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True)
    assert_equal_runs(tmp_path / "run", whole)
    assert [row["iteration"] for row in rows_of(whole)] == [3, 4, 6, 8, 9, 9]


def test_told_in_the_last_iteration_of_an_epoch__measured_on_resume(
    pool, whole, tmp_path, monkeypatch
):
    """Red under: ``run.monitored = run.iteration`` on each resume."""
    step = trainer.step

    def told(run, batch):
        if run.iteration == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", told)
        assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool)) is None
    assert last_state(tmp_path / "run")["iteration"] == 6
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == [
        3,
        4,
    ]  # the second measurement is due
    pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True)
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize("end", ["told", "killed"])
def test_ended_during_the_last_measurement__measured_on_resume_and_only_once(
    end, pool, whole, tmp_path, monkeypatch
):
    """Red under: ``while run.iteration < run.max_iterations`` around the monitor too;
    ``run.monitored`` left at -1.
    """
    with monkeypatch.context() as patch:
        if end == "told":
            labelled_images_end(
                patch, before=2 * 2 * 24 + 30
            )  # twice both sets, then in the middle of the test images
            assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool)) is None
        else:
            accuracy = knn.knn_accuracy
            patch.setattr(
                knn,
                "knn_accuracy",
                lambda *args, left=[1, 1], **more: left.pop() and accuracy(*args, **more),
            )  # noqa: B006
            with pytest.raises(IndexError):
                pretrain(config(pool, tmp_path / "run", KNN__TEST=pool))
    assert (
        last_state(tmp_path / "run")["iteration"] == 9
        and "knn_top1" not in rows_of(tmp_path / "run")[-1]
    )
    for _ in range(2):
        assert pretrain(config(pool, tmp_path / "run", KNN__TEST=pool), resume=True) is not None
        assert_equal_runs(tmp_path / "run", whole)
