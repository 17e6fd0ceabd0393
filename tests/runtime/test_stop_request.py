"""SIGTERM and Ctrl-C set a flag while the block runs; the handler is restored; no worker hangs.

Seen red under: the handler not restored; the flag set for a request that was not sent; workers that
ignore SIGTERM left to multiprocessing at exit; SIGTERM not held back while workers start;
SIGINT neither held back nor ignored by them; a second Ctrl-C that is a flag too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from moco_transfer.runtime.stop import StopRequest


def test_sigterm__sets_the_flag_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested and not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and stop.agreed()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("pause", "waits", "ends"), [(0, 0, 0), (1.1, 0, 1), (1.1, 1, 0)])
def test_ctrl_c__saves_first_and_the_second_ends_at_once(pause, waits, ends, capfd):
    before, ended = signal.getsignal(signal.SIGINT), False
    with StopRequest(waits=bool(waits)) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() and stop.name == "SIGINT"
        time.sleep(pause)  # torchrun sends one press a second time at once
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            ended = True
    assert ended == bool(ends) and signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().err.count("Ctrl-C") == 1 - waits


def test_another_thread__works_without_signals():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) == before


UNFINISHED_LOADER = """
import sys
from torch.utils.data import DataLoader
from moco_transfer.runtime.stop import prepare_worker
loader = DataLoader(range(10**6), num_workers=1, worker_init_fn=prepare_worker)
sys.modules["held"] = held = iter(loader)  # outlives this module
next(held)
"""


def test_prepare_worker__a_process_with_an_unfinished_loader_ends():
    command = [sys.executable, "-c", UNFINISHED_LOADER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


# Each forked worker is sent the signal before its first line runs, and again while it works.
SIGNALLED = """
import os, signal
from moco_transfer.data.batches.loader import test_loader
send = lambda: os.kill(os.getpid(), signal.{signal})
os.register_at_fork(after_in_child=send)
records = [{{"image_id": number}} for number in range(6)]
batches = test_loader(records, lambda r: send() or r, rank=0, world_size=1, num_workers=2)
print([record["image_id"] for batch in batches for record in batch])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_workers__that_get_a_signal_go_on(name):
    command = [sys.executable, "-c", SIGNALLED.format(signal=name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2, 3, 4, 5]\n"), done.stderr


@pytest.mark.parametrize(("error", "is_told"), [("EOFError", False), ("ValueError", True)])
def test_prepare_worker__a_thread_is_silent_about_a_main_process_that_is_gone(error, is_told):
    code = (
        f"from moco_transfer.runtime.stop import prepare_worker; prepare_worker(0); raise {error}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (error in done.stderr) == is_told
