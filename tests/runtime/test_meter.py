"""The meter of both training loops: means, the first iteration that is not finite, resumed sums.

Each test fails if the sums are not divided by the count, if the last bad iteration is kept in
place of the first, or if a resumed period forgets its sums.
"""

from __future__ import annotations

import time

import pytest
import torch

from moco_transfer.runtime.progress import Meter, eta

CPU = torch.device("cpu")


def test_means_are_sums_over_count() -> None:
    meter = Meter(CPU)
    for iteration, loss in enumerate((1.0, 2.0, 6.0), start=1):
        meter.add({"loss": torch.tensor(loss), "acc1": torch.tensor(2 * loss)}, iteration)
    assert meter.means() == {"loss": 3.0, "acc1": 6.0}
    meter.reset()
    assert meter.count == 0 and meter.sums == {}


def test_the_first_iteration_that_is_not_finite_is_named() -> None:
    meter = Meter(CPU)
    for iteration, loss in ((7, 1.0), (8, float("nan")), (9, float("inf"))):
        meter.add({"loss": torch.tensor(loss)}, iteration)
    assert meter.first_bad() == 8
    with pytest.raises(FloatingPointError, match="Iteration 8"):
        meter.means()


def test_a_resumed_period_continues_its_sums() -> None:
    whole, begun, resumed = Meter(CPU), Meter(CPU), Meter(CPU)
    for meter in (whole, begun):
        meter.add({"loss": torch.tensor(0.1)}, 1)
    resumed.resume(begun.state())
    for meter in (whole, resumed):
        meter.add({"loss": torch.tensor(0.7)}, 2)
    assert resumed.means() == whole.means()
    resumed.resume({})
    assert resumed.count == 2


def test_sums_of_another_number_of_processes_are_averaged() -> None:
    meter = Meter(CPU)
    meter.resume({"count": 2, "sums": [{"loss": torch.tensor(2.0)}, {"loss": torch.tensor(4.0)}]})
    assert meter.means() == {"loss": 1.5}


def test_waiting_is_counted_and_pauses_are_not() -> None:
    meter = Meter(CPU)
    with meter.waiting():
        time.sleep(0.02)
    with meter.paused():
        time.sleep(0.2)
    meter.add({"loss": torch.tensor(1.0)}, 1)
    timing = meter.timing()
    assert 0.02 <= timing["data_time"] <= timing["time"] < 0.2


def test_eta() -> None:
    assert eta(3600, 1.0) == "1:00:00"
    assert eta(86400 + 60, 1.0) == "1 day, 0:01:00"
