"""``--num-gpus N`` becomes torchrun's command line; contradictions are refused; what is wrong is
said once, and the exit status tells it.

Went red under: the options left in the words of the processes; ``--nnodes`` without an address;
torchrun itself; each process printing its sentence; 130, or torchrun's warning, after Ctrl-C.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.launch import torchrun_command


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_torchrun_command__one_machine():
    words = ["train", "--config-file", "a.yaml", "--num-gpus", "4", "SEED", "1"]
    assert torchrun_command("moco_transfer", words) == [
        *(sys.executable, "-m", "moco_transfer.runtime.launch", "--standalone"),
        "--nproc_per_node=4",
        *("-m", "moco_transfer", "train", "--config-file", "a.yaml", "SEED", "1"),
    ]


def test_torchrun_command__two_machines():
    words = ["train", "--num-gpus=8", "--num-machines=2", "--machine-rank=1"]
    command = torchrun_command("moco_transfer", [*words, "--dist-url", "tcp://[::1]:29500"])
    assert command is not None and command[3:] == [
        *("--nnodes=2", "--node_rank=1", "--master_addr=[::1]", "--master_port=29500"),
        *("--nproc_per_node=8", "-m", "moco_transfer", "train"),
    ]


def test_torchrun_command__one_process_needs_none():
    assert torchrun_command("moco_transfer", ["train", "--resume"]) is None


@pytest.mark.parametrize(
    "words",
    [
        ["--num-gpus", "0"],
        ["--num-machines", "2"],
        ["--num-machines", "2", "--machine-rank", "2", "--dist-url", "tcp://a:1"],
        ["--machine-rank", "1"],
    ],
)
def test_torchrun_command__refuses_contradictions(words):
    with pytest.raises(InputError, match="--num-"):
        torchrun_command("moco_transfer", words)


def test_torchrun_command__refuses_to_start_torchrun_twice(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE"):
        torchrun_command("moco_transfer", ["train", "--num-gpus", "2"])


def test_num_gpus__one_sentence_and_the_status_of_the_processes(tmp_path):
    command = [sys.executable, "-m", "moco_transfer", "pretrain", "--num-gpus", "2"]
    command += ["--config-file", "demo_moco", "DATA.ROOT", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(str(tmp_path / "nowhere")) == 1
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 4


def test_run_torchrun__names_the_signal_that_ended_a_process(tmp_path):
    (tmp_path / "ends.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    command = [sys.executable, "-m", "moco_transfer.runtime.launch", "--standalone"]
    command += ["--nproc_per_node=2", str(tmp_path / "ends.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 137, done.stderr
    assert "SIGKILL" in done.stderr and "Traceback" not in done.stderr


SAVES = """
import os, pathlib, time
from moco_transfer.runtime.stop import StopRequest
with StopRequest() as stop:
    pathlib.Path(f"started{os.environ['RANK']}").touch()
    while not stop.requested:
        time.sleep(0.05)
raise SystemExit(143)
"""


def test_run_torchrun__ctrl_c_at_a_terminal_reaches_all_and_ends_as_of_one_process(tmp_path):
    (tmp_path / "saves.py").write_text(SAVES)
    command = [sys.executable, "-m", "moco_transfer.runtime.launch", "--standalone"]
    command += ["--nproc_per_node=2", "saves.py"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    how = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        until = time.monotonic() + 100
        while len(list(tmp_path.glob("started?"))) < 2:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "Traceback" not in said and "death signal" not in said and "Ctrl-C again" in said
