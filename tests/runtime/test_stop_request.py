"""What waits is ended by SIGTERM, also where the first exception gets lost; what works is not.

Went red under: the helper thread not started; ``_waiting`` left True after ``next_of``; the flag
    not looked at before the wait.
"""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest
import torch

from moco_transfer.runtime.run_folder import StopRequest

CPU = torch.device("cpu")


def told() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def waiting(*, lost: bool = False):
    """Yield 0, then wait: for an exception, which it may drop as Python does in a callback, or in
    vain.
    """
    yield 0
    try:
        told()
        time.sleep(20)
    except BaseException:
        if not lost:
            raise
    time.sleep(20)
    yield 1


@pytest.mark.parametrize("lost", [False, True])
def test_next_of__ends_a_wait(lost):
    before = signal.getsignal(signal.SIGTERM)
    since = time.perf_counter()
    with StopRequest() as stop:
        assert list(stop.until_told(waiting(lost=lost))) == [0]
        assert stop.agreed(CPU) and time.perf_counter() - since < 15
    assert signal.getsignal(signal.SIGTERM) == before


def test_next_of__work_goes_on_and_nothing_is_fetched_afterwards():
    with StopRequest() as stop:
        items = itertools.count()
        assert stop.next_of(items) == 0 and not stop.agreed(CPU)
        told()  # while it works: no exception here
        assert stop.agreed(CPU) and stop.next_of(items) is None
    assert next(items) == 1


def test_next_of__workers_that_the_same_signal_ended_are_no_error():
    def fails():
        raise RuntimeError("DataLoader worker exited unexpectedly")
        yield

    with StopRequest() as stop:
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            stop.next_of(fails())
        with pytest.raises(StopIteration):
            stop.next_of(iter(()))
        stop._seen = True
        assert stop.next_of(fails()) is None
