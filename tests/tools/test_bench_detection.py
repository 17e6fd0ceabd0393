"""What the detection benchmark makes of its measurements; nothing is measured here.

Seen red under: the ratio of memory upside down; the peak of the last step for the largest; a
    process's memory on a GPU.
"""

from __future__ import annotations

import importlib.util
import json

import pytest


@pytest.fixture
def bench(repository):
    spec = importlib.util.spec_from_file_location(
        "bench_detection", repository / "tools" / "bench_detection.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_summarise__speed_and_peak_memory_beside_detectron2s(bench, capsys):
    def replies(seconds, peaks):
        return {
            "train": [
                {"sec": sec, "cpu_sec": sec, "peak_mb": peak}
                for sec, peak in zip(seconds, peaks, strict=True)
            ]
        }

    rows = bench.summarise(
        "r50_c4",
        {
            "detectron2": replies([4.0, 5.0, 6.0], [900.0, 1000.0, 800.0]),
            "ours": replies([2.0, 2.5, 3.0], [600.0, 750.0, 700.0]),
            "detectron2-bf16": replies([3.0, 3.0, 3.0], [500.0, 500.0, 500.0]),
        },
    )
    (ours,) = (row for row in rows if row["engine"] == "ours")
    assert (ours["times_detectron2"], ours["memory_of_detectron2"]) == (2.0, 0.75)
    assert (ours["peak_mb"], ours["memory_of_detectron2-bf16"]) == (750, 1.5)
    assert "memory_of_detectron2 0.75" in capsys.readouterr().out
    assert not any(
        "memory_of" in key for row in rows for key in row if row["engine"].startswith("detectron2")
    )
    json.dumps(rows)


def test_peak_memory__is_the_tensors_on_a_gpu_and_the_processs_elsewhere(bench, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3e6)
    assert bench.peak_mb("cuda") == 3
    monkeypatch.setattr(bench, "memory_mb", lambda field: {"VmHWM": 70.0}[field])
    assert bench.peak_mb("cpu") == 70
