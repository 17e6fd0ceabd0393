"""bench-data measures every stage, feeds on, and says how many workers are needed; bad input is one
sentence.

Went red under: the needed number not rounded up; the sentence for too few cores where workers are
    enough; the step and the images of a CPU
taken for concurrent.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.data import bench
from moco_transfer.data.bench import StageCosts, describe_cpu, describe_measurement


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.jpg"
        )
    return tmp_path


@pytest.mark.parametrize("pipeline", ["fast", "reference"])
@pytest.mark.parametrize("num_workers", ["0", "1"])
def test_bench_data__measures_each_stage(folder, capsys, pipeline, num_workers):
    words = ["DATA.ROOT", str(folder), "DATA.NUM_WORKERS", num_workers, "DATA.PIPELINE", pipeline]
    words += [
        "DATA.IMAGE_SIZE",
        "16",
        "DATA.BATCH_SIZE_TOTAL",
        "4",
        "MODEL.ARCH",
        "resnet18",
        "MOCO.QUEUE_SIZE",
        "16",
    ]
    assert (
        main(
            [
                "bench-data",
                "--config-file",
                "moco_v2_R_50_200ep",
                "--seconds",
                "0.4",
                *words,
                "TRAIN.DEVICE",
                "cpu",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert all(
        stage in out
        for stage in ("read ", "decode ", "views ", "finish on the device", "images/s together")
    )
    patterns = (
        r"the training step takes ([\d.]+) images/s on \d+ threads",
        r"about ([\d.]+) images/s with",
    )
    step, both = (float(re.search(pattern, out)[1]) for pattern in patterns)
    assert 0 < both <= step and "DATA.NUM_WORKERS 0, which is the faster choice on a CPU" in out


def test_bench_data__refuses(folder, tmp_path, capsys):
    for words in (
        ["--seconds", "0", "DATA.ROOT", str(folder)],
        ["DATA.ROOT", str(tmp_path / "nowhere")],
    ):
        assert main(["bench-data", "--config-file", "moco_v2_R_50_200ep", *words]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_describe_measurement__the_number_of_workers(monkeypatch):
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 8)
    costs = StageCosts(
        read=0.1, decode=1.4, views=0.5, finish=0.2, images=100
    )  # 2 ms: 500 images/s each
    said = [
        describe_measurement(costs, fed, num_workers=2, wanted=wanted)[-1]
        for fed, wanted in ((1000, 700), (1000, 1001), (1000, 9000))
    ]
    assert said[0] == "enough for 700 images/s; 2 would do"  # 1.2 x 700 / 500 = 1.68
    assert said[1] == "too little for 1001 images/s: set DATA.NUM_WORKERS 3"  # 2.4024
    assert said[2].startswith(
        "too little for 9000 images/s: 22 workers are needed, and 8 cores feed 3333; pack the"
        " images"
    )


def test_describe_cpu__the_cores_do_one_after_the_other():
    costs = StageCosts(read=0.1, decode=1.4, views=0.5, finish=0.2, images=100)  # 2 ms
    said = describe_cpu(costs, 400, num_workers=1, step=125, said="the step")  # 8 ms
    assert said[-2] == "the step" and said[-1].startswith(
        "the same cores do both: about 100.0 images/s with DATA.NUM_WORKERS 0"
    )
