"""The share of time spent waiting for images is said in words, once, and only when it stays high.

Went red under: a single period taken for a state; the sentence repeated; the share compared the
    other way round; the missing
loops said for a GPU too; more workers advised on a CPU; packing advised for packed pixels; the sum
of the shares for the largest.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from moco_transfer.data.views import native
from moco_transfer.pretrain.announce import announce_pipeline
from moco_transfer.pretrain.meter import Meter, advice_when_starved
from moco_transfer.runtime.distributed import max_over_processes

from .two_processes import run_in_two_processes


def test_advice__only_when_three_periods_in_a_row_wait_more_than_a_fifth():
    settings = {"num_workers": 4, "pipeline": "fast"}
    assert advice_when_starved([0.9, 0.9], **settings) is None
    assert advice_when_starved([0.9, 0.9, 0.1], **settings) is None
    assert advice_when_starved([0.3, 0.2, 0.3], **settings) is None
    text = advice_when_starved([0.0, 0.3, 0.5, 0.4], **settings)
    assert (
        "40% of the time" in text
        and "a higher DATA.NUM_WORKERS (now 4" in text
        and "PIPELINE" not in text
        and text.count("\n") == 0
    )
    assert "pack --as raw" in text and "pack" not in advice_when_starved(
        [0.3, 0.3, 0.3], **settings, decoded=True
    )
    assert "DATA.PIPELINE fast" in advice_when_starved(
        [0.3, 0.3, 0.3], num_workers=1, pipeline="reference"
    )


def test_advice__on_a_cpu_never_more_workers():
    starved = [0.3, 0.3, 0.3]
    none = advice_when_starved(starved, num_workers=0, pipeline="fast", on_cpu=True)
    assert "NUM_WORKERS" not in none and "in this order: images packed" in none
    assert "in this order: DATA.NUM_WORKERS 0 (now 2" in advice_when_starved(
        starved, num_workers=2, pipeline="fast", on_cpu=True
    )
    nothing_left = advice_when_starved(
        starved, num_workers=0, pipeline="fast", on_cpu=True, decoded=True
    )
    assert "in this order" not in nothing_left and "DATA.IMAGE_SIZE" in nothing_left


def share_of_waiting(rank: int) -> torch.Tensor:
    return torch.tensor(max_over_processes([0.1, 0.7][rank]))


def test_share_of_waiting__is_the_longest_of_all_processes(tmp_path):
    assert [float(found) for found in run_in_two_processes(share_of_waiting, tmp_path)] == [
        pytest.approx(0.7)
    ] * 2


def test_meter__says_it_once(caplog):
    meter = Meter(
        SimpleNamespace(num_workers=2, pipeline="fast", decoded=False, device=torch.device("cuda"))
    )
    with caplog.at_level(logging.WARNING):
        for share in (0.5, 0.1, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.0, 0.9, 0.9, 0.9):
            meter._advise(share)
            if share == 0.5 and not caplog.records:
                assert len(meter._waited) < 4
    assert len(caplog.records) == 1 and "50% of the time" in caplog.text


def test_announce_pipeline__says_when_the_compiled_loops_are_missing(caplog, monkeypatch):
    cases = (
        ("fast", "cpu", False, 1),
        ("fast", "cpu", True, 0),
        ("reference", "cpu", False, 0),
        ("fast", "cuda", False, 0),
    )
    for pipeline, device, built, expected in cases:
        caplog.clear()
        monkeypatch.setattr(native, "available", lambda built=built: built)
        announce_pipeline(SimpleNamespace(pipeline=pipeline, device=SimpleNamespace(type=device)))
        assert len(caplog.records) == expected, (pipeline, device, built)
