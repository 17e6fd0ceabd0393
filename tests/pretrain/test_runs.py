"""Whole runs of ``pretrain`` on 24 generated images: every mechanism and precision, sizes that do
not divide, and going on.

Went red under: optimiser not restored; views drawn from the global generator; the bank not
    restored; chance of K for ln(K + 1); the queue's filling
counted in iterations; MAX_ITER not heeded; the watch not asked; SHUFFLE not handed on; chance of
two directions called that of one; CHANNELS_LAST or DETERMINISTIC not heeded, or not switched back.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from generated_images import write_pool

from moco_transfer.config import load_pretrain_config
from moco_transfer.models import build_encoder
from moco_transfer.pretrain import end_to_end, moco, plan
from moco_transfer.pretrain import run as run_module
from moco_transfer.pretrain.watch import Watch
from moco_transfer.runtime.checkpoint import load_checkpoint
from moco_transfer.runtime.errors import InputError

from .small_runs import SmallEncoder, pretrain

PICTURES = 24
TINY = {
    "DATA.IMAGE_SIZE": 24,
    "DATA.BATCH_SIZE_TOTAL": 8,
    "DATA.NUM_WORKERS": 0,
    "MOCO.QUEUE_SIZE": 20,  # no multiple of 8
    "MOCO.BN_GROUP_SIZE": 4,
    "SOLVER.EPOCHS": 1,
    "SOLVER.STEPS": "()",
    "SOLVER.BASE_LR": 0.06,
    "SOLVER.SCHEDULE": "step",
    "TRAIN.LOG_PERIOD": 1,
    "TRAIN.PRECISION": "fp32",
    "LOGGERS": "()",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """In place of a ResNet, whose checkpoints take seconds to write."""
    monkeypatch.setattr(plan, "build_encoder", SmallEncoder)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, count=PICTURES, size=32, seed=0)
    return folder


def config(pool: Path, out: Path, **changes):
    settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    words = [
        str(word)
        for pair in (settings | {"DATA.ROOT": pool, "OUTPUT_DIR": out}).items()
        for word in pair
    ]
    return load_pretrain_config("demo_moco", words)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "negatives"),
    [
        ({}, 20),
        ({"MOCO__SYMMETRIC": True}, 20),
        ({"SOLVER__ACCUMULATE": 2}, 20),
        ({"TRAIN__PRECISION": "bf16"}, 20),
        ({"TRAIN__PRECISION": "fp16"}, 20),
        ({"MECHANISM": "memory_bank"}, 16),  # the images that are not in the batch
        ({"MECHANISM": "end_to_end"}, 7),
        ({"MECHANISM": "supervised", "DATA__AUGMENTATION": "supervised"}, 0),
    ],
)
def test_run__each_mechanism_and_what_it_logs(changes, negatives, pool, tmp_path, fp16_on_the_cpu):
    pretrain(config(pool, tmp_path / "run", **changes))
    rows = rows_of(tmp_path / "run")
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert (
            math.isfinite(row["loss"])
            and row["images_per_sec"] > 0
            and 0 <= row["data_wait_share"] <= 1
        )
        assert row["lr"] == pytest.approx(0.06 * 8 / 256)
        if negatives:
            directions = 2 if changes.get("MOCO__SYMMETRIC") else 1
            assert row["chance"] == pytest.approx(directions * math.log(negatives + 1))
            assert (
                -1 <= row["cos_negative"] <= 1
                and -1 <= row["cos_positive"] <= 1
                and 0 < row["feature_spread"] <= 1
            )
            assert 0 <= row["contrast_acc1"] <= 100
    if "MECHANISM" not in changes:
        filled = [
            min(1.0, (1 + bool(changes.get("MOCO__SYMMETRIC"))) * 8 * i / 20) for i in (1, 2, 3)
        ]
        assert [row["queue_filled"] for row in rows] == pytest.approx(filled)
    state = load_checkpoint(tmp_path / "run" / "checkpoint_0001.pth")
    assert "encoder_q.conv1.weight" in state["state_dict"]


def test_run__queue_smaller_than_the_batch_and_a_partial_last_batch(pool, tmp_path):
    run = pretrain(config(pool, tmp_path / "run", DATA__BATCH_SIZE_TOTAL=7, MOCO__QUEUE_SIZE=5))
    assert run.iteration == 3  # 24 // 7; three images are left out
    assert int(run.model.queue_ptr) == 21 % 5
    torch.testing.assert_close(run.model.queue.norm(dim=0), torch.ones(5))


def test_run__sizes_that_are_worth_a_word(pool, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        pretrain(config(pool, tmp_path / "a", MOCO__QUEUE_SIZE=64, MOCO__BN_GROUP_SIZE=0))
    assert (
        "MOCO.QUEUE_SIZE 64 is larger than the number of images, 24" in caplog.text
        and "At most a quarter of the images, 6" in caplog.text
    )
    assert (
        "All 8 images share their BN statistics" in caplog.text
        and "Set MOCO.BN_GROUP_SIZE to at most 4" in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.INFO):
        pretrain(config(pool, tmp_path / "b"))
    assert (
        "BN statistics over 2 groups of about 4 images" in caplog.text
        and "share their BN" not in caplog.text
    )
    assert "filled by keys after 3 iterations" in caplog.text
    assert "lr 0.001875 = SOLVER.BASE_LR 0.06 x 8 / 256" in caplog.text


def test_run__a_bank_that_takes_all_other_images_says_so(pool, tmp_path, caplog):
    pretrain(config(pool, tmp_path / "a", MECHANISM="memory_bank"))
    assert (
        "MOCO.QUEUE_SIZE 20 is larger than the number of images outside a batch, 16 of 24"
        in caplog.text
        and "K is 16" in caplog.text
    )
    caplog.clear()
    pretrain(config(pool, tmp_path / "b", MECHANISM="memory_bank", MOCO__QUEUE_SIZE=16))
    assert "MOCO.QUEUE_SIZE" not in caplog.text


class Flat(torch.nn.Module):
    """An encoder whose features are the same for every image, whatever it learns."""

    def __init__(self, arch: str, *, num_classes: int, norm_layer=None, in_channels=3) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(1, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.ones(len(images), 1))


@pytest.mark.parametrize(("patience", "first_said"), [(5000, 5), (1, 4)])
def test_run__is_watched(patience, first_said, pool, tmp_path, caplog, monkeypatch):
    """The queue is full after 2 iterations and an epoch has 3; the watch speaks after three periods
    in a row from then on.
    """
    monkeypatch.setattr(plan, "build_encoder", Flat)
    monkeypatch.setattr(plan, "PATIENCE", patience)
    said = []
    look = Watch.look
    monkeypatch.setattr(
        Watch,
        "look",
        lambda self, iteration, row: said.extend(
            (iteration, s) for s in look(self, iteration, row) if "waiting for images" not in s
        ),
    )
    pretrain(config(pool, tmp_path / "run", SOLVER__EPOCHS=3))
    ((iteration, sentence),) = said
    assert (
        iteration == first_said
        and sentence.startswith("The features collapse: their spread over a batch is 0.000")
        and sentence in caplog.text
    )


def test_run__without_shuffle_says_what_leaks_and_does_not_permute(
    pool, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(
        moco, "draw_permutation", lambda *args: pytest.fail("a permutation was drawn")
    )
    run = pretrain(config(pool, tmp_path / "run", MOCO__SHUFFLE=False))
    assert run.model.shuffle is False
    assert (
        "MOCO.SHUFFLE is False: a key is encoded among the same images as its query, in each of 2"
        " groups" in caplog.text
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            end_to_end, "draw_permutation", lambda *args: pytest.fail("a permutation was drawn")
        )
        assert (
            pretrain(
                config(pool, tmp_path / "e", MECHANISM="end_to_end", MOCO__SHUFFLE=False)
            ).model.shuffle
            is False
        )


def test_run__micro_batches_that_do_not_divide_are_refused(pool, tmp_path):
    with pytest.raises(
        InputError,
        match=(
            "SOLVER.ACCUMULATE 3 does not divide the 8 images of a step on one process.* Use one"
            " of 1, 2, 4, 8"
        ),
    ):
        pretrain(config(pool, tmp_path / "run", SOLVER__ACCUMULATE=3))
    assert not (tmp_path / "run").exists()


def test_run__chance_of_the_symmetric_loss_is_named_as_what_it_is(
    pool, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(plan, "build_encoder", Flat)
    with caplog.at_level(logging.INFO):
        pretrain(config(pool, tmp_path / "a", MOCO__SYMMETRIC=True))
        pretrain(config(pool, tmp_path / "b"))
    lines = [record.getMessage() for record in caplog.records if "(chance " in record.getMessage()]
    assert len(lines) == 6
    assert all(f"(chance {2 * math.log(21):.3f})" in line for line in lines[:3])
    assert all(f"(chance {math.log(21):.3f})" in line for line in lines[3:])


def test_run__tensorboard_has_what_metrics_json_has(pool, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(plan, "build_encoder", Flat)
    pretrain(config(pool, tmp_path / "run", LOGGERS="tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = rows_of(tmp_path / "run")
    assert set(events.Tags()["scalars"]) == set().union(*rows) - {"iteration"} and {
        "loss",
        "chance",
        "images_per_sec",
    } <= set().union(*rows)
    for name in events.Tags()["scalars"]:
        written = [(row["iteration"], row[name]) for row in rows if name in row]
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in read] == [step for step, _ in written]
        assert [value for _, value in read] == pytest.approx(
            [value for _, value in written], rel=1e-6
        )
    assert len(rows) == 3
    pretrain(config(pool, tmp_path / "none", LOGGERS="()"))
    assert not (tmp_path / "none" / "tensorboard").exists()


def test_run__on_a_cpu_keeps_freed_memory(pool, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(plan, "build_encoder", Flat)
    monkeypatch.setattr(run_module, "keep_freed_memory", lambda: called.append(True))
    pretrain(config(pool, tmp_path / "run"))
    assert called


def test_run__fewer_images_than_a_batch(pool, tmp_path):
    with pytest.raises(InputError, match="24 images, less than one batch of 32"):
        pretrain(config(pool, tmp_path / "run", DATA__BATCH_SIZE_TOTAL=32))
    assert not (tmp_path / "run").exists()


def test_run__length_in_iterations(pool, tmp_path):
    halved = {
        "SOLVER__SCHEDULE": "exponential",
        "SOLVER__SCHEDULE_BY": "iteration",
        "SOLVER__GAMMA": 0.5,
        "SOLVER__DECAY_PERIOD": 2,
    }
    run = pretrain(config(pool, tmp_path / "run", SOLVER__MAX_ITER=5, **halved))
    assert run.iteration == 5
    assert [row["lr"] for row in rows_of(tmp_path / "run")] == pytest.approx(
        [0.001875 * f for f in (1, 1, 0.5, 0.5, 0.25)]
    )
    assert (
        tmp_path / "run" / "last_checkpoint"
    ).read_text().strip() == "checkpoint_0001_iter00000005.pth"


@pytest.mark.parametrize("asked", [True, False])
def test_run__layout_and_determinism_are_those_that_are_asked_for(
    asked, pool, tmp_path, monkeypatch
):
    seen, forward = set(), SmallEncoder.forward

    def noting(self, images):
        layout = images.is_contiguous(memory_format=torch.channels_last)
        seen.add((layout, images.is_contiguous(), torch.are_deterministic_algorithms_enabled()))
        return forward(self, images)

    monkeypatch.setattr(SmallEncoder, "forward", noting)
    changes = {"TRAIN__CHANNELS_LAST": asked, "TRAIN__DETERMINISTIC": asked}
    pretrain(config(pool, tmp_path / "run", SOLVER__MAX_ITER=1, **changes))
    assert seen == {(asked, not asked, asked)}
    assert not torch.are_deterministic_algorithms_enabled()


FP16_SYMMETRIC = {"TRAIN__PRECISION": "fp16", "MOCO__SYMMETRIC": True}


@pytest.mark.parametrize(
    "changes", [{}, {"MECHANISM": "memory_bank"}, {"MECHANISM": "end_to_end"}, FP16_SYMMETRIC]
)
def test_resume__from_any_iteration_is_bit_equal(changes, pool, tmp_path, fp16_on_the_cpu):
    settings = {
        "SOLVER__EPOCHS": 2,
        "TRAIN__CHECKPOINT_PERIOD_ITERS": 1,
        "TRAIN__KEEP_CHECKPOINTS": 0,
    } | changes
    pretrain(config(pool, tmp_path / "whole", **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in ("checkpoint_0001_iter00000005.pth", "checkpoint_0002.pth"):
        (tmp_path / "cut" / later).unlink()
    (tmp_path / "cut" / "last_checkpoint").write_text("checkpoint_0001_iter00000004.pth\n")
    pretrain(config(pool, tmp_path / "cut", **settings), resume=True)
    a, b = (load_checkpoint(tmp_path / name / "checkpoint_0002.pth") for name in ("whole", "cut"))
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    for mine, theirs in zip(
        a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
    assert a["scaler"] == b["scaler"]
    assert [row["loss"] for row in rows_of(tmp_path / "whole")] == [
        row["loss"] for row in rows_of(tmp_path / "cut")
    ]


def test_resume__another_batch_is_refused_even_where_the_iterations_per_epoch_agree(pool, tmp_path):
    pretrain(config(pool, tmp_path / "run"))
    with pytest.raises(
        InputError, match="was made with DATA.BATCH_SIZE_TOTAL 8, the run to resume has 7"
    ):  # 24 // 8 == 24 // 7
        pretrain(
            config(pool, tmp_path / "run", DATA__BATCH_SIZE_TOTAL=7, SOLVER__EPOCHS=2), resume=True
        )


def test_init_from__starts_a_new_run_from_the_weights_alone(pool, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(plan, "build_encoder", build_encoder)
    pretrain(config(pool, tmp_path / "first", MECHANISM="memory_bank"))
    with caplog.at_level(logging.INFO):
        run = pretrain(
            config(pool, tmp_path / "second"),
            init_from=str(tmp_path / "first" / "checkpoint_0001.pth"),
        )
    assert "memory_bank resnet18, epoch 1" in caplog.text and "head too" in caplog.text
    assert run.iteration == 3 and rows_of(tmp_path / "second")[0]["iteration"] == 1
    source = load_checkpoint(tmp_path / "first" / "checkpoint_0001.pth")["state_dict"][
        "encoder_q.conv1.weight"
    ]
    trained = run.model.encoder_q.conv1.weight.detach()
    assert (
        0 < (trained - source).abs().max() < 0.05
    )  # three small steps away from where the first run ended
