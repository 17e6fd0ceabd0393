"""The watch over data workers: real workers of a DataLoader that stall, or whose memory grows.

Seen red under: no wait noted by the meter; the usual time left out; a second warning; the open
files of this process in place of the workers'; all of a worker's memory counted, also what it
shares; growth reported of which the machine has plenty.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from moco_transfer.runtime.health import loader_watch
from moco_transfer.runtime.health.heartbeat import Heartbeat
from moco_transfer.runtime.health.loader_watch import LoaderWatch
from moco_transfer.runtime.progress import Meter

REAL_AVAILABLE = loader_watch.available_bytes
SHARED = bytearray(150_000_000)  # of this process and its workers; zeros, but written


class Slow(IterableDataset):
    """After three items it holds a file open for 1.5 s."""

    def __init__(self, file) -> None:
        self.file = file

    def __iter__(self):
        for number in range(5):
            if number == 3:
                with open(self.file, "rb"):
                    time.sleep(1.5)
            time.sleep(0.01)
            yield number


class Leaks(IterableDataset):
    """Keeps 30 MB more with each item."""

    def __iter__(self):
        kept = []
        for number in range(8):
            kept.append(bytearray(b"x") * 30_000_000)
            yield number


def items_of(dataset):
    return iter(DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=1))


@pytest.fixture(autouse=True)
def logged(monkeypatch):
    monkeypatch.setattr(logging.getLogger("moco_transfer"), "propagate", True)


def test_stall__is_said_once_with_workers_and_file(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loader_watch, "LEAST_STALL_SEC", 0.4)
    monkeypatch.setattr(loader_watch, "TIMES", 0)
    monkeypatch.setattr("moco_transfer.runtime.health.heartbeat.PERIOD_SEC", 0.05)
    image, *inherited = (tmp_path / name for name in ("image.jpg", "1.jpg", "2.jpg", "3.jpg"))
    image.touch()
    held = [path.open("wb") and path.open("rb") for path in inherited]  # by the main process
    meter, source = Meter(torch.device("cpu")), items_of(Slow(image))
    with Heartbeat(tmp_path, LoaderWatch(meter, 1, "DATA.NUM_WORKERS")):
        for number in range(1, 6):
            with meter.waiting():
                next(source)
            meter.add({"loss": torch.zeros(())}, number)
    (said,) = caplog.messages
    assert "DATA.NUM_WORKERS is 1" in said and str(image) in said
    for file in held:
        file.close()


@pytest.mark.parametrize(("usual", "stalls"), [(0.001, True), (0.05, False)])
def test_stall__depends_on_the_usual_time(monkeypatch, caplog, usual, stalls):
    monkeypatch.setattr(loader_watch, "LEAST_STALL_SEC", 0.1)
    meter = Meter(torch.device("cpu"))
    for number in range(3):
        with meter.waiting():
            time.sleep(usual)
        meter.add({"loss": torch.zeros(())}, number)
    meter.reset()  # a log line
    watch = LoaderWatch(meter, 4, "K")
    watch.look()
    with meter.waiting():
        time.sleep(0.3)
        watch.look()
        watch.look()
    watch.look()
    assert len(caplog.messages) == stalls


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone tells")
@pytest.mark.parametrize(("free", "grows"), [(1e8, True), (1e15, False)])
def test_memory__that_grows_is_said_once(monkeypatch, caplog, free, grows):
    SHARED[::4096] = b"x" * len(SHARED[::4096])
    monkeypatch.setattr(loader_watch, "WARM_UP_SEC", 0.0)
    monkeypatch.setattr(loader_watch, "MEMORY_PERIOD_SEC", 0.0)
    monkeypatch.setattr(loader_watch, "LEAST_GROWTH", 50e6)
    monkeypatch.setattr(loader_watch, "available_bytes", lambda: free)
    source = items_of(Leaks())
    watch = LoaderWatch(Meter(torch.device("cpu")), 1, "DATALOADER.NUM_WORKERS")
    next(source)
    worker = max(loader_watch.workers())  # those of another test may be ending
    status = Path(f"/proc/{worker}/status").read_text()
    whole = int(status.split("VmRSS:")[1].split()[0]) * 1024
    assert loader_watch.private_bytes(worker) < whole - 0.9 * len(SHARED)
    for _ in range(7):
        next(source)
        time.sleep(0.1)
        watch.look()
    del source
    assert len(caplog.messages) == grows
    if grows:
        assert "DATALOADER.NUM_WORKERS, now 1" in caplog.messages[0]
    available = REAL_AVAILABLE()
    assert available is None or 10e6 < available < 100e12
