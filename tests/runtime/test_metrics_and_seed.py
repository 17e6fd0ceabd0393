"""metrics.json and seeds.

Went red under: not truncating on resume; using hash() (which differs between processes) for strings
    in derive_seed. Also: JSONDecodeError alone taken for damage.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.metrics import MetricsFile, read_metrics
from moco_transfer.runtime.seed import derive_seed, seed_everything


def test_metrics__resume_drops_what_is_done_again_and_a_cut_line(tmp_path):
    path = tmp_path / "metrics.json"
    metrics = MetricsFile(path)
    for iteration in (10, 20, 30):
        metrics.write(iteration, {"loss": 1.0 / iteration})
    metrics.close()
    with open(path, "a") as file:
        file.write('{"iteration": 40, "lo')  # a kill in the middle of a line
    assert [row["iteration"] for row in read_metrics(path)] == [10, 20, 30]
    metrics = MetricsFile(path, start_iteration=20)
    metrics.write(30, {"loss": float("nan")})
    metrics.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"iteration": 10, "loss": 0.1},
        {"iteration": 20, "loss": 0.05},
        {"iteration": 30, "loss": None},
    ]


def test_read_metrics__damaged_lines_are_left_out(tmp_path):
    good = b'{"iteration": 3, "loss": 1.0}\n'
    bad = (b"\0\0\n", b'{"iteration": "\xff"}\n', b"[" * 100_000, b"\n", b'{"iteration": "4"}\n')
    long = b'{"iteration": ' + b"9" * 5000 + b"}\n"
    (tmp_path / "metrics.json").write_bytes(b"".join((*bad, long, good)))
    assert read_metrics(tmp_path / "metrics.json") == [{"iteration": 3, "loss": 1.0}]


def test_derive_seed__same_in_another_process_and_different_by_place():
    here = derive_seed(3, "views", 1, 2)
    program = (
        "from moco_transfer.runtime.seed import derive_seed; print(derive_seed(3, 'views', 1, 2))"
    )
    assert (
        int(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout
        )
        == here
    )
    others = {
        derive_seed(4, "views", 1, 2),
        derive_seed(3, "order", 1, 2),
        derive_seed(3, "views", 2, 1),
        derive_seed(3, "views", 1, 2, 0),
    }
    assert here not in others and len(others) == 4
    with pytest.raises(InputError, match="SEED is -1"):
        derive_seed(-1)


def test_seed_everything__torch_draws_depend_on_the_place_only():
    seed_everything(0, "iteration", 5)
    first = torch.randperm(100)
    torch.rand(17)
    seed_everything(0, "iteration", 5)
    assert torch.equal(torch.randperm(100), first)
    seed_everything(0, "iteration", 6)
    assert not torch.equal(torch.randperm(100), first)
