"""bench-data measures reading and says how many workers are needed; bad input is one sentence.

Went red under: the needed number not rounded up; too few cores not named.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from moco_transfer.cli.bench_data import advice
from moco_transfer.cli.main import main

CONFIG = ["bench-data", "--config-file", "moco_v2_R_50_200ep"]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.jpg"
        )
    return tmp_path


@pytest.mark.parametrize(("num_workers", "pipeline"), [(0, "reference"), (1, "fast")])
def test_bench_data__measures(folder, capsys, num_workers, pipeline):
    words = ["DATA.ROOT", folder, "DATA.NUM_WORKERS", num_workers, "DATA.PIPELINE", pipeline]
    words += ["DATA.IMAGE_SIZE", 16, "DATA.BATCH_SIZE_TOTAL", 4]
    options = ["--seconds", "0.2", "--gpu-images-per-sec", "1"]
    assert main([*CONFIG, *options, *map(str, words)]) == 0
    out = capsys.readouterr().out
    numbers = [float(number) for number in re.findall(r"(\d+) images/s", out)]
    assert len(numbers) == 3 and min(numbers) > 0
    assert "5 images below" in out and "set DATA.NUM_WORKERS 1" in out


def test_bench_data__refuses(folder, tmp_path, capsys):
    for words in (
        ["--seconds", "0", "DATA.ROOT", str(folder)],
        ["DATA.ROOT", str(tmp_path / "nowhere")],
    ):
        assert main([*CONFIG, *words]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_advice__the_number_of_workers():
    assert advice(700, 500, 8) == "for 700 images/s set DATA.NUM_WORKERS 2"  # 1.2 x 700 / 500: 1.68
    assert advice(1001, 500, 8) == "for 1001 images/s set DATA.NUM_WORKERS 3"  # 2.4024
    assert advice(9000, 500, 8).startswith("9000 images/s need 22 workers, and 8 cores feed 3333;")
