"""Learning rate and order of images.

Went red under: milestones with > for >=; cosine over length - 1; decay one period early.
"""

from __future__ import annotations

import math

import pytest

from moco_transfer.data.views.order import EpochBatches
from moco_transfer.pretrain.schedule import LearningRate
from moco_transfer.runtime.errors import InputError


def rate(schedule, **kwargs) -> LearningRate:
    settings = {"max_iterations": 2000, "iterations_per_epoch": 10} | kwargs
    return LearningRate(1.0, schedule, **settings)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    # facebookresearch/moco@7397dfe main_moco.py: lr *= 0.1 if epoch >= milestone, milestones 120
    # and 160
    [(0, 1.0), (119, 1.0), (120, 0.1), (159, 0.1), (160, 0.01), (199, 0.01)],
)
def test_learning_rate__step_by_epoch(epoch, factor):
    lr = rate("step", steps=(120, 160), gamma=0.1)
    assert lr(10 * epoch) == pytest.approx(factor) and lr(10 * epoch + 9) == pytest.approx(factor)


@pytest.mark.parametrize("epoch", [0, 1, 100, 199])
def test_learning_rate__cosine_by_epoch(epoch):
    expected = 0.5 * (
        1.0 + math.cos(math.pi * epoch / 200)
    )  # main_moco.py --cos; constant within an epoch
    for step in (0, 9):
        assert rate("cosine")(10 * epoch + step) == pytest.approx(expected)


def test_learning_rate__first_epoch_as_the_cifar10_demo_logs_it():
    lr = LearningRate(
        0.06, "cosine", max_iterations=200 * 97, iterations_per_epoch=97, first_epoch=1
    )
    assert round(lr(0), 6) == 0.059996 and lr(199 * 97) == pytest.approx(0, abs=1e-12)


def test_learning_rate__by_iteration():
    stepped = rate("step", steps=(15,), gamma=0.1, by_iteration=True)
    assert [stepped(i) for i in (0, 14, 15, 1999)] == pytest.approx([1, 1, 0.1, 0.1])
    cosine = rate("cosine", by_iteration=True)
    assert [cosine(i) for i in (0, 1000, 1500)] == pytest.approx(
        [1, 0.5, 0.5 * (1 - math.sqrt(0.5))]
    )


def test_learning_rate__exponential_is_the_ig_1b_recipe():
    """Sec. 4: lr 0.12, x 0.9 every 62.5 k iterations, 1.25 M iterations, so 0.12 x 0.9^19 at the
    end.
    """
    lr = LearningRate(
        0.12,
        "exponential",
        gamma=0.9,
        decay_period=62500,
        max_iterations=1250000,
        iterations_per_epoch=10**6,
        by_iteration=True,
    )
    assert [lr(i) for i in (0, 62499, 62500, 125000, 1249999)] == pytest.approx(
        [0.12, 0.12, 0.108, 0.0972, 0.12 * 0.9**19]
    )


def test_learning_rate__warmup_ends_at_one():
    lr = rate("step", warmup_iterations=5)
    assert [lr(i) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def batches(**kwargs):
    settings = {"batch_size_total": 4, "epochs": 2, "seed": 0} | kwargs
    return EpochBatches(11, **settings)


def test_epoch_batches__each_image_at_most_once_per_epoch_and_the_last_part_left_out():
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


def test_epoch_batches__two_processes_share_the_images_of_one():
    parts = [list(batches(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == list(batches())


def test_epoch_batches__sizes_that_do_not_fit__error():
    with pytest.raises(
        InputError, match="DATA.BATCH_SIZE_TOTAL 4 does not divide among 3 processes. Use 3 or 6."
    ):
        batches(world_size=3)
    with pytest.raises(InputError, match="holds 11 images, less than one batch of 12"):
        batches(batch_size_total=12)
