"""What a plan refuses, warns of and prints, and that planning writes nothing.

Seen red under: the first fault raised alone; a folder made by ``--dry-run``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from generated_images import write_pool

from moco_transfer.cli.main import main
from moco_transfer.data.views import native
from moco_transfer.pretrain.describe import describe, warnings
from moco_transfer.pretrain.plan import plan_pretrain
from moco_transfer.runtime.distributed import all_gather_object
from moco_transfer.runtime.errors import InputError

from .small_runs import config, words
from .two_processes import run_in_two_processes


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, count=24, size=24, seed=0)
    return folder


def test_plan__reports_every_fault_at_once_and_writes_nothing(pool, tmp_path):
    faulty = config(
        pool, tmp_path / "run", SOLVER__ACCUMULATE=3, KNN__TEST=tmp_path / "nowhere", SEED=1
    )
    with pytest.raises(InputError) as raised:
        plan_pretrain(faulty)
    message = str(raised.value)
    assert "2 things to fix" in message and "SOLVER.ACCUMULATE 3" in message
    assert f"{tmp_path / 'nowhere'} does not exist" in message
    assert not (tmp_path / "run").exists()


def test_plan__a_bank_without_negatives_is_refused(pool, tmp_path):
    cfg = config(pool, tmp_path / "run", MECHANISM="memory_bank", DATA__BATCH_SIZE_TOTAL=24)
    with pytest.raises(InputError, match="all 24 images are in one batch"):
        plan_pretrain(cfg)


@pytest.mark.parametrize(
    ("batch", "accumulate", "fitting"), [(10, 4, "1, 2, 5, 10"), (9, 4, "1, 3, 9")]
)
def test_plan__uneven_micro_batches_are_refused(batch, accumulate, fitting, pool, tmp_path):
    changes = {"DATA__BATCH_SIZE_TOTAL": batch, "SOLVER__ACCUMULATE": accumulate}
    with pytest.raises(InputError, match=f"the {batch} images .* Use one of {fitting}, or"):
        plan_pretrain(config(pool, tmp_path / "run", **changes))


def test_dry_run__prints_the_plan_and_makes_no_folder(pool, tmp_path, capsys):
    overrides = words(tmp_path / "nowhere", tmp_path / "run", KNN__TEST=pool)
    overrides += [f"DATA.ROOT={pool}"]
    assert main(["pretrain", "--config-file", "demo_moco", *overrides, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for fact in (
        "data: 24 images in 8 classes",
        "weights: random",
        "3 epochs of 3 iterations; lr 0.001875 = SOLVER.BASE_LR 0.06 x 8 / 256, cosine by epoch",
        "precision: fp32",
        "norm: BN statistics over 2 groups of about 4 images",
        f"output: {tmp_path / 'run'}: config.yaml",
        "kNN: top-1 on 24 images, bank of 24, k 5",
    ):
        assert fact in printed, printed
    assert not (tmp_path / "run").exists()


def test_warnings__missing_compiled_loops(pool, tmp_path, monkeypatch):
    made = plan_pretrain(config(pool, tmp_path / "run"))
    for pipeline, device, built, expected in (
        ("fast", "cpu", False, 1),
        ("fast", "cpu", True, 0),
        ("reference", "cpu", False, 0),
        ("fast", "cuda", False, 0),
    ):
        monkeypatch.setattr(native, "available", lambda built=built: built)
        maker = dataclasses.replace(made.view_maker, pipeline=pipeline)
        changed = dataclasses.replace(made, view_maker=maker, device=torch.device(device))
        found = [text for text in warnings(changed) if "compiled loops" in text]
        assert len(found) == expected, (pipeline, device, built)
    assert describe(made)


def share_of_waiting(rank: int) -> torch.Tensor:
    return torch.tensor(max(all_gather_object([0.1, 0.7][rank])))


def test_share_of_waiting__is_the_longest_of_all_processes(tmp_path):
    found = run_in_two_processes(share_of_waiting, tmp_path)
    assert [float(share) for share in found] == [pytest.approx(0.7)] * 2
