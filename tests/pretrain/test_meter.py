"""The share of time spent waiting for pictures is said in words, once, and only when it stays high.

Went red under: a single period taken for a state; the sentence repeated; the share compared the other way round; the missing
loops said for a GPU too.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace

from moco_transfer.data import native
from moco_transfer.pretrain.announce import announce_pipeline
from moco_transfer.pretrain.meter import Meter, advice_when_starved


def test_advice__only_when_three_periods_in_a_row_wait_more_than_a_fifth():
    settings = {"num_workers": 4, "pipeline": "fast"}
    assert advice_when_starved([0.9, 0.9], **settings) is None
    assert advice_when_starved([0.9, 0.9, 0.1], **settings) is None
    assert advice_when_starved([0.3, 0.2, 0.3], **settings) is None
    text = advice_when_starved([0.0, 0.3, 0.5, 0.4], **settings)
    assert "40% of the time" in text and "DATA.NUM_WORKERS (now 4" in text and "PIPELINE" not in text and text.count("\n") == 0
    assert "DATA.PIPELINE fast" in advice_when_starved([0.3, 0.3, 0.3], num_workers=1, pipeline="reference")


def test_meter__says_it_once(caplog):
    meter = Meter(SimpleNamespace(num_workers=2, pipeline="fast"))
    with caplog.at_level(logging.WARNING):
        for share in (0.5, 0.1, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.0, 0.9, 0.9, 0.9):
            meter._advise(share)
            if share == 0.5 and not caplog.records:
                assert len(meter._waited) < 4
    assert len(caplog.records) == 1 and "50% of the time" in caplog.text


def test_announce_pipeline__says_when_the_compiled_loops_are_missing(caplog, monkeypatch):
    cases = (("fast", "cpu", False, 1), ("fast", "cpu", True, 0), ("reference", "cpu", False, 0), ("fast", "cuda", False, 0))
    for pipeline, device, built, expected in cases:
        caplog.clear()
        monkeypatch.setattr(native, "available", lambda built=built: built)
        announce_pipeline(SimpleNamespace(pipeline=pipeline, device=SimpleNamespace(type=device)))
        assert len(caplog.records) == expected, (pipeline, device, built)
