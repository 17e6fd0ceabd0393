"""A process of several ends with its verb's status, in order, and without the interpreter's
teardown, in which gloo's threads abort.

Went red under: ``main`` returning the status also in a process that joined a group;
    ``os._exit`` without the functions of atexit; a closed pipe taken for a dead data worker.
"""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from .conftest import environment

PROGRAM = """
import atexit, sys, types
from moco_transfer.cli import main
from moco_transfer.runtime.distributed import start_processes, stop_processes

def run(args):
    start_processes("cpu")
    stop_processes()
    return 3

class TornDown:
    def __del__(self):
        print("torn down")

held = TornDown()
atexit.register(print, "atexit")
verb = types.SimpleNamespace(run=run)
sys.modules["moco_transfer.cli.doctor"] = verb  # a verb of which only the name is taken
sys.exit(main.main(["doctor"]))
"""


@pytest.mark.parametrize(
    ("grouped", "message"), [(True, "atexit\n"), (False, "atexit\ntorn down\n")]
)
def test_exit__of_a_process_in_a_group_leaves_the_interpreter_as_it_is(grouped, message):
    env = environment()
    if grouped:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        env |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, env=env
    )
    assert (done.returncode, done.stdout) == (3, message), done.stderr


@pytest.mark.parametrize("word", ["reproduce", "--help"])
def test_exit__of_a_verb_whose_output_nobody_reads_is_silent(word):
    command = [sys.executable, "-m", "moco_transfer", word]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert (program.stderr.read(), program.wait(timeout=120)) == ("", 141)
