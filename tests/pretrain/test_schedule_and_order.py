"""Learning rate and order of pictures.

Should go red under (not yet tried): cosine over epochs - 1; milestones with > for >=; ranks that take overlapping slices.
"""

from __future__ import annotations

import math

import pytest

from moco_transfer.data.samplers import EpochBatches
from moco_transfer.pretrain.schedule import effective_lr, lr_factor
from moco_transfer.runtime.errors import InputError


def test_effective_lr__linear_rule():
    assert effective_lr(0.03, batch_size_total=128, reference_batch_size=256) == pytest.approx(0.015)  # the authors' 4-GPU recipe


@pytest.mark.parametrize(
    ("epoch", "factor"),
    # facebookresearch/moco@7397dfe main_moco.py: lr *= 0.1 if epoch >= milestone, milestones 120 and 160
    [(0, 1.0), (119, 1.0), (120, 0.1), (159, 0.1), (160, 0.01), (199, 0.01)],
)
def test_lr_factor__step(epoch, factor):
    got = lr_factor(epoch, 3, schedule="step", epochs=200, iterations_per_epoch=10, steps=(120, 160))
    assert got == pytest.approx(factor)


@pytest.mark.parametrize("epoch", [0, 1, 100, 199])
def test_lr_factor__cosine(epoch):
    expected = 0.5 * (1.0 + math.cos(math.pi * epoch / 200))  # main_moco.py --cos; constant within an epoch
    for step in (0, 9):
        assert lr_factor(epoch, step, schedule="cosine", epochs=200, iterations_per_epoch=10) == pytest.approx(expected)


def test_lr_factor__warmup_ends_at_one():
    values = [lr_factor(0, step, schedule="step", epochs=2, iterations_per_epoch=10, warmup_epochs=0.5) for step in range(6)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def batches(**kwargs):
    settings = {"batch_size_total": 4, "epochs": 2, "seed": 0} | kwargs
    return EpochBatches(11, **settings)


def test_epoch_batches__each_picture_at_most_once_per_epoch_and_the_last_part_left_out():
    everything = list(batches())
    assert len(everything) == len(batches()) == 4  # 11 // 4 = 2 per epoch
    for epoch in (0, 1):
        seen = [place for batch in everything[2 * epoch : 2 * epoch + 2] for place in batch]
        assert {e for e, _ in seen} == {epoch}
        assert len({i for _, i in seen}) == 8
    assert everything[0] != [(0, i) for i in range(4)]


def test_epoch_batches__resume_continues_in_the_middle_of_an_epoch():
    assert list(batches(start_iteration=1)) == list(batches())[1:]
    assert list(batches(start_iteration=3)) == list(batches())[3:]


def test_epoch_batches__two_processes_share_the_pictures_of_one():
    parts = [list(batches(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == list(batches())


def test_epoch_batches__sizes_that_do_not_fit__error():
    with pytest.raises(InputError, match="DATA.BATCH_SIZE_TOTAL 4 does not divide among 3 processes. Use 3 or 6."):
        batches(world_size=3)
    with pytest.raises(InputError, match="holds 11 pictures, less than one batch of 12"):
        batches(batch_size_total=12)
