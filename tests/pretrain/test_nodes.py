"""Two nodes: torchrun's agents at two loopback addresses, a process each. A node is lost, and a
process stops for longer than the time-out.

Seen red under: gloo's message on a time-out as a traceback; the heartbeat of the lost node left in
the folder. The time-out itself: tests/runtime/test_meeting.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .small_runs import assert_same_state, last_state, rows_of, words

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
MIDDLE = "checkpoint_0001_iter00000004.pth"
# The other agent is missed after seconds, not after a minute. Which one is the host an agent tells
# by its address, and on this machine has both.
CONF = "--rdzv_conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,is_host="


def node(number: int, port: int, *options: str) -> list[str]:
    """Return torchrun's options for a node, as docs/scaling.md has them."""
    where = f"--rdzv_endpoint=127.0.0.1:{port}", f"--local_addr=127.0.0.{number + 1}"
    return [
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_id=run",
        *where,
        f"{CONF}{not number}",
        *options,
    ]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def start(pool, tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts an agent, whose words go into a log file of its own."""
    agents = []

    def started(launch: list[str], out: Path, log: str, *, seconds=0.0, **environment: str):
        changes = {"TRAIN__CHECKPOINT_PERIOD_ITERS": 1, "SOLVER__EPOCHS": 5}
        command = [sys.executable, "-m", "torch.distributed.run", *launch, HERE / "node_run.py"]
        paths = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))
        variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with open(tmp_path / log, "a") as file:
            agents.append(
                subprocess.Popen(
                    [*command, str(seconds), *words(pool, out, **changes)],
                    env={**os.environ, **variables, **environment},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        return agents[-1]

    yield started
    for agent in agents:
        if agent.poll() is None:
            agent.terminate()
            agent.wait(60)


def process_of(out: Path, rank: int) -> int:
    """Return the number of a run's process."""
    return json.loads((out / ("heartbeat.json" + f".rank{rank}" * rank)).read_text())["pid"]


def kill_node(agent: subprocess.Popen, out: Path) -> None:
    """SIGKILL to the second agent and its process, as when a machine is lost."""
    process = process_of(out, 1)
    agent.kill()
    os.kill(process, signal.SIGKILL)
    agent.wait()


def reach(file: Path, agents: list[subprocess.Popen]) -> None:
    """Wait until a run has written a file."""
    until = time.monotonic() + 200
    while not file.exists():
        assert time.monotonic() < until and all(agent.poll() is None for agent in agents)
        time.sleep(0.05)


def same_as_one_node(start, out: Path, whole: Path) -> None:
    launch = ["--standalone", "--nproc_per_node=2"]
    assert start(launch, whole, "whole.txt").wait(200) == 0
    assert_same_state(last_state(out), last_state(whole))
    assert rows_of(out) == rows_of(whole)


def test_two_nodes__equal_two_processes_of_one(start, port, tmp_path):
    out = tmp_path / "out"
    agents = [start(node(n, port, "--nnodes=2"), out, f"{n}.txt") for n in range(2)]
    assert [agent.wait(200) for agent in agents] == [0, 0], (tmp_path / "0.txt").read_text()
    same_as_one_node(start, out, tmp_path / "whole")


def test_lost_node__the_other_ends_with_a_sentence_and_can_be_resumed(start, port, tmp_path):
    out = tmp_path / "out"
    launch = [node(n, port, "--nnodes=2") for n in range(2)]
    agents = [start(launch[n], out, f"{n}.txt", seconds=0.4) for n in range(2)]
    reach(out / MIDDLE, agents)
    kill_node(agents[1], out)
    assert agents[0].wait(100) == 1
    said = (tmp_path / "0.txt").read_text()
    assert "Another process of the run has ended" in said and "--resume" in said
    agents = [start(launch[n], out, f"{n}.txt") for n in range(2)]
    assert [agent.wait(200) for agent in agents] == [0, 0]
    same_as_one_node(start, out, tmp_path / "whole")


def test_lost_node__an_elastic_run_continues_on_the_other(start, port, tmp_path):
    out, elastic = tmp_path / "out", ("--nnodes=1:2", "--max_restarts=3")
    agents = [start(node(n, port, *elastic), out, f"{n}.txt", seconds=0.4) for n in range(2)]
    reach(out / MIDDLE, agents)
    saved = sorted(out.glob("checkpoint_*.pth"))
    kill_node(agents[1], out)
    assert agents[0].wait(200) == 0
    said = (tmp_path / "0.txt").read_text()
    assert f"resumed from {out / 'checkpoint_0001'}" in said and "was 2 and is 1" in said
    assert all(file.exists() for file in saved) and last_state(out)["iteration"] == 15
    assert not list(out.glob("heartbeat*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_process__the_other_ends_after_the_timeout(start, tmp_path, rank):
    out, launch = tmp_path / "out", ["--standalone", "--nproc_per_node=2"]
    run = start(launch, out, "run.txt", seconds=0.3, MOCO_TRANSFER_TIMEOUT="5")
    reach(out / MIDDLE, [run])
    os.kill(process_of(out, rank), signal.SIGSTOP)
    assert run.wait(100) == 1  # torchrun gives the stopped one 30 s to end
    said = (tmp_path / "run.txt").read_text()
    assert "not answered within MOCO_TRANSFER_TIMEOUT seconds (5)" in said
    assert "in shuffle_rows" not in said
    assert start(launch, out, "run.txt").wait(200) == 0
    same_as_one_node(start, out, tmp_path / "whole")
