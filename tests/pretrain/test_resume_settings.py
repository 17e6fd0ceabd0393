"""``--resume`` with other settings: refused where they make nonsense of the state, named and
applied elsewhere, and nothing is overwritten.

Went red under: config.yaml written by ``open_run_folder``; the optimiser's settings taken from the
    checkpoint; SEED, MOCO.SYMMETRIC or the class
names left out of the comparison; ``scaler.load_state_dict`` of an empty state; no comparison with
the end of the run.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from moco_transfer.pretrain import plan
from moco_transfer.runtime.errors import InputError

from .small_runs import SmallEncoder, config, last_state, pretrain


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(plan, "build_encoder", SmallEncoder)


@pytest.fixture
def cut(pool, tmp_path) -> Path:
    """A run of one epoch of three iterations, with the config of a run of three."""
    pretrain(config(pool, tmp_path / "run", SOLVER__EPOCHS=1))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"SEED": 1}, "was made with SEED 0, the run to resume has 1"),
        (
            {"MOCO__SYMMETRIC": True},
            "was made with MOCO.SYMMETRIC False, the run to resume has True",
        ),
        ({"MOCO__QUEUE_SIZE": 24}, "was made with MOCO.QUEUE_SIZE 20, the run to resume has 24"),
        ({"MOCO__MLP": False}, "was made with MOCO.MLP True, the run to resume has False"),
        (
            {"MODEL__ARCH": "resnet34"},
            "was made with MODEL.ARCH resnet18, the run to resume has resnet34",
        ),
        (
            {"MECHANISM": "end_to_end"},
            "was made with MECHANISM moco, the run to resume has end_to_end",
        ),
        ({"SOLVER__MAX_ITER": 2}, "is after iteration 3, beyond the end of this run after 2"),
    ],
)
def test_resume__refused_and_nothing_is_overwritten(changes, sentence, pool, cut):
    before = {
        name: (cut / name).read_bytes()
        for name in ("config.yaml", "env.txt", "metrics.json", "last_checkpoint")
    }
    (cut / "env.txt").write_bytes(b"of another day\n")
    before["env.txt"] = b"of another day\n"
    with pytest.raises(InputError, match=sentence):
        pretrain(config(pool, cut, **changes), resume=True)
    assert {name: (cut / name).read_bytes() for name in before} == before


def test_resume__other_classes_are_refused(pool, tmp_path):
    shutil.copytree(pool, tmp_path / "pool")
    settings = {"MECHANISM": "supervised", "DATA__AUGMENTATION": "supervised", "SOLVER__EPOCHS": 1}
    pretrain(config(tmp_path / "pool", tmp_path / "run", **settings))
    first = sorted(folder.name for folder in (tmp_path / "pool").iterdir())[0]
    (tmp_path / "pool" / first).rename(tmp_path / "pool" / "aardvark")
    with pytest.raises(
        InputError,
        match=(
            f"was made with class number 0 in DATA.ROOT '{first}', the run to resume has 'aardvark'"
        ),
    ):
        pretrain(config(tmp_path / "pool", tmp_path / "run", **settings), resume=True)


def test_resume__what_may_change_is_applied_and_named(pool, cut, caplog):
    changes = {
        "SOLVER__MOMENTUM": 0.8,
        "SOLVER__WEIGHT_DECAY": 0.01,
        "MOCO__TEMPERATURE": 0.1,
        "DATA__AUGMENTATION": "v1",
        "KNN__K": 7,
    }
    with caplog.at_level(logging.WARNING):
        run = pretrain(
            config(
                pool, cut, SOLVER__EPOCHS=2, TRAIN__LOG_PERIOD=1, DATA__NUM_WORKERS=1, **changes
            ),
            resume=True,
        )
    said = [
        record.getMessage() for record in caplog.records if "from here on" in record.getMessage()
    ]
    assert [sentence.split(" ")[0] for sentence in said] == [
        "DATA.AUGMENTATION",
        "KNN.K",
        "MOCO.TEMPERATURE",
        "SOLVER.EPOCHS",
        "SOLVER.MOMENTUM",
        "SOLVER.WEIGHT_DECAY",
    ]
    assert (
        "SOLVER.MOMENTUM was 0.9 and is 0.8 from here on: the run equals none that had either"
        " throughout." in said
    )
    assert (
        "KNN.K was 5 and is 7 from here on: figures from before and after may not be comparable."
        in said
    )
    group = run.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.01) and run.iteration == 6
    assert "MOMENTUM: 0.8" in (cut / "config.yaml").read_text()


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp16"), ("fp16", "fp32")])
def test_resume__in_another_precision(before, after, pool, tmp_path, caplog, fp16_on_the_cpu):
    pretrain(config(pool, tmp_path / "run", SOLVER__EPOCHS=1, TRAIN__PRECISION=before))
    with caplog.at_level(logging.WARNING):
        run = pretrain(
            config(pool, tmp_path / "run", SOLVER__EPOCHS=2, TRAIN__PRECISION=after), resume=True
        )
    assert f"TRAIN.PRECISION was '{before}' and is '{after}' from here on" in caplog.text
    assert run.iteration == 6 and bool(last_state(tmp_path / "run")["scaler"]) == (after == "fp16")
