"""Several processes: stopped when one is told, resumed with as many or another number, and
agreed on what cannot be read.

One pair of processes does it all in turn (``story``), because starting it costs more than the runs.
The network has no BN, so that one process computes what two do.

Went red under: see each test.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moco_transfer.pretrain import plan, resume
from moco_transfer.runtime.checkpoint import load_checkpoint
from moco_transfer.runtime.errors import InputError, MissingFileError
from moco_transfer.runtime.stop import StopRequest

from .small_runs import (
    EncoderWithoutBN,
    assert_same_state,
    config,
    last_state,
    pretrain,
    rows_of,
    told_during_training,
)
from .two_processes import run_in_two_processes

SETTINGS = {"TRAIN__LOG_PERIOD": 5}  # a run that is told to stop is within a period


def refusal(function, *args: Any, **more: Any) -> str:
    try:
        function(*args, **more)
    except InputError as error:
        return str(error)
    return ""


def when_told(rank: int) -> list[Any]:
    """What ``agreed`` answers, of which process 1 comes late for the first and is told before the
    second; and how long the first took here.
    """
    with StopRequest() as stop:
        dist.barrier()
        time.sleep(rank)
        since = time.perf_counter()
        answers = [stop.agreed()]
        waited = time.perf_counter() - since
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        answers += [stop.agreed(), stop.agreed(), stop.agreed(now=True)]
    with StopRequest() as stop:
        dist.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        answers.append(stop.agreed(now=True))
    return [waited, *answers]


def two_processes(rank: int, folder: Path, pool: Path, damaged: Path) -> dict[str, Any]:
    """What two processes do; returns what this one saw."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"answers": when_told(rank)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "build_encoder", EncoderWithoutBN)
        pretrain(config(pool, folder / "whole", **SETTINGS, KNN__TEST=pool))
        with patch.context() as told:
            told_during_training(told, epoch=2, rank=1)
            found["stopped"] = (
                pretrain(config(pool, folder / "cut", **SETTINGS, KNN__TEST=pool), log=True) is None
            )
        if rank == 0:
            shutil.copytree(folder / "cut", folder / "cut_for_one")
        dist.barrier()
        pretrain(config(pool, folder / "cut", **SETTINGS, KNN__TEST=pool), resume=True)
        pretrain(
            config(pool, folder / "cut_of_one", **SETTINGS, KNN__TEST=pool), resume=True, log=True
        )
        found["learning rates"] = [
            row["lr"] for row in rows_of(folder / "cut_of_one") if "lr" in row
        ]

        def with_damaged(name: str, allowed: float):
            return config(
                damaged,
                folder / name,
                DATA__MAX_UNREADABLE=allowed,
                SOLVER__EPOCHS=1,
                TRAIN__LOG_PERIOD=3,
            )

        pretrain(with_damaged("damaged", 2 / 24), log=True)
        logging.getLogger("moco_transfer").handlers.clear()
        found["too many"] = refusal(pretrain, with_damaged("too_many", 1.9 / 24))
        dist.barrier()
        found |= _what_only_one_process_sees(rank, patch, folder, pool)
    return found


def _what_only_one_process_sees(
    rank: int, patch: pytest.MonkeyPatch, folder: Path, pool: Path
) -> dict[str, str]:
    found = {}
    settings = config(pool, folder / "cut", **SETTINGS, KNN__TEST=pool)

    def absent(path):
        raise MissingFileError(f"Checkpoint {path} does not exist.")

    def older(path):
        return load_checkpoint(path) | {"iteration": 6}

    for name, reading in (("absent", absent), ("older", older)):
        with patch.context() as mine:
            if rank == 1:
                mine.setattr(resume, "load_checkpoint", reading)
            found[name] = refusal(pretrain, settings, resume=True)
    with patch.context() as mine:
        if rank == 1:  # a file system that has not yet told of the newest checkpoint
            mine.setattr(resume.CheckpointFolder, "newest", lambda self: None)
        found["slow to tell"] = refusal(pretrain, settings, resume=True)
    if rank == 0:
        (folder / "gone").mkdir()
        (folder / "gone" / "last_checkpoint").write_text("checkpoint_9999.pth\n")
    dist.barrier()
    found["gone"] = refusal(pretrain, config(pool, folder / "gone"), resume=True)
    return found


@pytest.fixture(scope="module")
def small():
    """A small network, on one thread as in the other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "build_encoder", EncoderWithoutBN)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def story(small, pool, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all runs, and what either process saw."""
    folder = tmp_path_factory.mktemp("runs")
    damaged = folder / "damaged_pool"
    shutil.copytree(pool, damaged)
    # Images that different processes read first: each finds one alone.
    order = plan.plan_pretrain(config(pool, folder / "x")).batches
    first = [index for _, index in next(iter(order))]
    files = sorted(path for path in damaged.rglob("*") if path.is_file())
    for index in (first[0], first[-1]):
        files[index].write_bytes(files[index].read_bytes()[:40])
    pretrain(config(pool, folder / "one", **SETTINGS, KNN__TEST=pool))
    with pytest.MonkeyPatch.context() as patch:
        told_during_training(patch, epoch=1)
        assert pretrain(config(pool, folder / "cut_of_one", **SETTINGS, KNN__TEST=pool)) is None
    return folder, run_in_two_processes(two_processes, folder, folder, pool, damaged)


def assert_rows_agree(mine: list[dict], theirs: list[dict]) -> None:
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for a, b in zip(mine, theirs, strict=True):
        (
            a.pop("feature_spread", None),
            b.pop("feature_spread", None),
        )  # of a process's images: not a mean
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_two_processes__stopped_when_one_is_told_and_resumed_bit_for_bit(story):
    """Red under: process 0's sums on both in ``Meter.resume``."""
    folder, (first, second) = story
    assert first["stopped"] and second["stopped"]
    assert (
        "Told to stop (SIGTERM): saved after iteration 8"
        in (folder / "cut" / "log.txt").read_text()
    )
    stopped = last_state(folder / "cut_for_one")
    assert (
        stopped["iteration"] == 8
        and stopped["period"]["count"] == 3
        and len(stopped["period"]["sums"]) == 2
    )
    whole, cut = (
        load_checkpoint(folder / name / "checkpoint_0003.pth") for name in ("whole", "cut")
    )
    assert_same_state(cut, whole)
    assert rows_of(folder / "cut") == rows_of(folder / "whole")


def test_stop_request__travels_while_the_loop_works(story):
    """Red under: an all-reduce that is waited for at once; ``now`` that answers with the last one.

    Both must stop at the same call, and none has to wait for the other's.
    """
    for waited, *answers in (each["answers"] for each in story[1]):
        assert answers == [False, False, True, True, True] and waited < 0.5


def test_resume__with_one_process_after_two(story, pool, caplog):
    """Red under: the order of a process dependent on their number; the sum for the mean of two
    processes' sums.
    """
    folder, _ = story
    shutil.copytree(folder / "cut_for_one", folder / "for_one")
    with caplog.at_level(logging.WARNING):
        pretrain(config(pool, folder / "for_one", **SETTINGS, KNN__TEST=pool), resume=True)
    assert "number of processes was 2 and is 1 from here on: other groups" in caplog.text
    assert_rows_agree(rows_of(folder / "for_one"), rows_of(folder / "one"))
    assert_rows_agree(rows_of(folder / "for_one"), rows_of(folder / "whole"))


def test_resume__with_two_processes_after_one(story):
    """Red under: as the test before."""
    folder, (first, second) = story
    log = (folder / "cut_of_one" / "log.txt").read_text()
    assert "number of processes was 1 and is 2 from here on" in log
    assert_rows_agree(rows_of(folder / "cut_of_one"), rows_of(folder / "one"))
    assert (
        first["learning rates"]
        == second["learning rates"]
        == [row["lr"] for row in rows_of(folder / "one") if "lr" in row]
    )


def test_unreadable_images__of_all_processes_count(story):
    """Red under: each process counting its own alone; rank 0 not logging what others found."""
    folder, (first, second) = story
    assert len(last_state(folder / "damaged")["unreadable"]) == 2
    log = (folder / "damaged" / "log.txt").read_text()
    assert log.count("skipped unreadable image") == 2 and "(2 so far)" in log
    assert first["too many"] == second["too many"]
    assert first["too many"].startswith(
        "2 of 24 images cannot be read, more than DATA.MAX_UNREADABLE 0.0791667 allows"
    )


def test_resume__a_checkpoint_that_one_process_cannot_read_or_that_differs(story):
    """Red under: each process finding its checkpoint itself (which waits for ever where they
    differ).
    """
    folder, (first, second) = story
    path = folder / "cut" / "checkpoint_0003.pth"
    for name in ("absent", "older", "gone"):
        assert first[name] == second[name] != "", name
    assert first["absent"].startswith(
        f"Process 1 cannot resume from {path} as process 0 does, after iteration 9: Checkpoint"
        f" {path} does not exist."
    )
    assert "Put OUTPUT_DIR on a file system that every machine of the run sees" in first["absent"]
    assert first["older"].startswith(
        f"Process 1 cannot resume from {path} as process 0 does, after iteration 9: its copy is"
        " after iteration 6."
    )
    assert "names checkpoint_9999.pth, which is not in" in first["gone"]
    assert first["slow to tell"] == second["slow to tell"] == ""  # process 0 decides
