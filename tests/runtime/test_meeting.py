"""Processes that were not started by torchrun: who is waited for, and what is wrong with their
environment, in one sentence.

Seen red under: torch's own rendezvous, silent for 30 minutes and with a traceback for a port in
use; RANK alone passed over.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist

from moco_transfer.runtime import distributed
from moco_transfer.runtime.errors import InputError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a process, and no others."""
    for name in (*VARIABLES, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)

    def set_variables(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_variables


@pytest.fixture
def port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def process(port: int, rank: int = 0, world_size: int = 2, host: str = "127.0.0.1") -> dict:
    values = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size}
    return values | {"MASTER_ADDR": host, "MASTER_PORT": port}


@pytest.mark.parametrize(("rank", "missing"), [(0, 1), (1, 0)])
def test_start__says_who_is_missing_and_where(
    environment, port, monkeypatch, caplog, rank, missing
):
    monkeypatch.setattr(distributed, "PATIENCE", 0.3)
    monkeypatch.setattr(distributed, "LONGEST_WAIT", 4.0)
    environment(**process(port, rank))
    # Not through caplog's own level: set_up_logging may have ended the propagation.
    monkeypatch.setattr(distributed.logger, "parent", None)
    distributed.logger.addHandler(caplog.handler)
    try:
        with pytest.raises(InputError, match=f"1 of 2 processes at 127.0.0.1:{port}.*{missing}"):
            distributed.start_processes("cpu")
    finally:
        distributed.logger.removeHandler(caplog.handler)
    assert f"waiting for 1 of 2 processes at 127.0.0.1:{port} (RANK {missing})" in caplog.text


def test_start__a_port_in_use(environment):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        environment(**process(port, world_size=1))
        with pytest.raises(InputError, match=f"MASTER_PORT {port} .*in use"):
            distributed.start_processes("cpu")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"WORLD_SIZE": 1, "RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 1}, "LOCAL_RANK"),
        ({"WORLD_SIZE": 2}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": 1}, "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        (process(1) | {"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        (process(1) | {"WORLD_SIZE": 0}, "WORLD_SIZE is '0'"),
        (process(1) | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (process(1, rank=2), "RANK 2, WORLD_SIZE 2"),
        (process(70000), "65536"),
    ],
)
def test_start__half_an_environment_or_one_that_makes_no_sense(environment, values, named):
    environment(**values)
    with pytest.raises(InputError, match=named):
        distributed.start_processes("cpu")


def test_start__two_processes_of_one_rank(environment, port, monkeypatch):
    monkeypatch.setattr(distributed, "LONGEST_WAIT", 3.0)
    environment(**process(port, world_size=3))
    errors: list[Exception] = []

    def meet(rank: int) -> None:
        try:
            distributed.meet(rank, 3)
        except InputError as error:
            errors.append(error)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (0, 1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any("Two processes with RANK 1" in str(error) for error in errors)


def test_start__both_come(port):
    program = (
        "from moco_transfer.runtime import distributed as d; d.start_processes('cpu');"
        "print(d.all_gather_object(d.get_rank())); d.stop_processes()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_USE_AGENT_STORE"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment | {k: str(v) for k, v in process(port, rank).items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    assert [p.communicate(timeout=60)[0] for p in started] == ["[0, 1]\n", "[0, 1]\n"]


@pytest.fixture
def two_gpus(environment, monkeypatch):
    """A machine with two GPUs; returns what is asked of torch."""
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.update(set_device=index))
    monkeypatch.setattr(dist, "init_process_group", lambda **how: asked.update(how))
    monkeypatch.setattr(distributed, "_joined_group", False)
    environment(**process(29500) | {"LOCAL_RANK": 1}, TORCHELASTIC_USE_AGENT_STORE="True")
    return asked


def test_start__each_process_has_the_gpu_of_its_local_rank(two_gpus, monkeypatch):
    """Red under: NCCL alone, its default time-out, ours alone, no device_id, one GPU for all."""
    assert distributed.start_processes("auto") == torch.device("cuda", 1)
    assert two_gpus["set_device"] == 1 and two_gpus["device_id"] == torch.device("cuda", 1)
    assert two_gpus["backend"] == "cpu:gloo,cuda:nccl"
    assert two_gpus["timeout"] >= datetime.timedelta(hours=1)
    two_gpus.clear()
    monkeypatch.setenv("MOCO_TRANSFER_TIMEOUT", "30")
    assert distributed.start_processes("cpu") == torch.device("cpu")
    assert two_gpus["timeout"] == datetime.timedelta(seconds=30)
    assert two_gpus.keys() == {"backend", "timeout"} and two_gpus["backend"] == "gloo"


def test_start__more_processes_than_gpus(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="Process 2 of this machine has no GPU of its own: 2 are"):
        distributed.start_processes("cuda")
