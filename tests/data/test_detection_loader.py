"""The order of training images: against Detectron2's sampler, and the same after a restart, for
any number of workers.

Seen red under: augmentation seeded by index instead of by draw; draw numbers restarted on each
rank; start_iteration ignored; grouping by w >= h; the remainder given to the last rank twice;
    repeat factors of the most frequent class; fractions rounded once for all rounds.
"""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from make_repeat_factors import COUNT, SEED, records

from moco_transfer.data.annotations.catalog import get_dataset
from moco_transfer.data.annotations.records import is_trainable
from moco_transfer.data.batches.loader import (
    category_repeat_factors,
    shard_of,
    test_loader,
    train_loader,
    training_batches,
)
from moco_transfer.data.images.image_source import Table
from moco_transfer.runtime.errors import InputError

RECORDS = [{"width": 10 + i % 3, "height": 11, "image_id": i} for i in range(23)]


def _take(n, **kwargs):
    return list(
        itertools.islice(
            training_batches(RECORDS, **{"batch_size_per_rank": 4, "seed": 7, **kwargs}), n
        )
    )


def _number(record, rng):
    if record["image_id"] == 99:
        raise InputError("image 99 is broken.")
    return {"image_id": record["image_id"], "draw": float(rng.random())}


def test_training_batches__every_image_once_a_round():
    draws = [draw for batch in _take(23, aspect_ratio_grouping=False) for draw in batch]
    assert [number for _, number in draws] == list(range(92))
    for start in (0, 23, 46, 69):
        assert sorted(index for index, _ in draws[start : start + 23]) == list(range(23))
    assert [index for index, _ in draws[:23]] != [index for index, _ in draws[23:46]]


def test_training_batches__ranks_share_one_stream():
    whole = [draw for batch in _take(12, aspect_ratio_grouping=False) for draw in batch]
    for rank in range(3):
        mine = [
            draw
            for batch in _take(4, aspect_ratio_grouping=False, rank=rank, world_size=3)
            for draw in batch
        ]
        assert mine == whole[rank::3]


def test_training_batches__groups_wide_images_apart():
    # Widths are 10, 11, 12 and the height is 11: only 12 is wider than high; 11 x 11 counts with
    # the high ones.
    batches = _take(40)
    kinds = [{RECORDS[index]["width"] > 11 for index, _ in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True} in kinds and {False} in kinds
    used = sorted(number for batch in batches for _, number in batch)
    assert len(set(used)) == 160
    assert used[-1] < 160 + 8, "at most a batch less one of each kind is held back"


@pytest.mark.parametrize("grouping", [True, False])
def test_training_batches__start_iteration_goes_on_where_it_was(grouping):
    assert _take(30, aspect_ratio_grouping=grouping)[17:] == _take(
        13, aspect_ratio_grouping=grouping, start_iteration=17
    )


def test_training_batches__refuses_illegal_arguments():
    with pytest.raises(InputError, match="no image to train on"):
        training_batches([], batch_size_per_rank=1, seed=0)
    for wrong in ({"batch_size_per_rank": 0}, {"seed": -1}):
        with pytest.raises(InputError, match=r"0 or seed 7|4 or seed -1"):
            _take(1, **wrong)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader__augmentation_belongs_to_the_draw(num_workers):
    loader = train_loader(
        RECORDS, _number, batch_size_per_rank=4, seed=7, num_workers=num_workers, start_iteration=3
    )
    state = torch.get_rng_state()
    got = [
        [(item["image_id"], item["draw"]) for item in batch]
        for batch in itertools.islice(loader, 5)
    ]
    expected = [
        [
            (index, float(np.random.default_rng(np.random.SeedSequence([7, number])).random()))
            for index, number in batch
        ]
        for batch in _take(8)[3:]
    ]
    assert got == expected
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert len({draw for batch in got for _, draw in batch}) == 20


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders__a_problem_stays_one_sentence(num_workers):
    records = [{"width": 1, "height": 1, "image_id": 99}]
    with pytest.raises(InputError, match=r"^image 99 is broken\.$"):
        next(
            iter(
                train_loader(
                    records, _number, batch_size_per_rank=1, seed=0, num_workers=num_workers
                )
            )
        )


@pytest.mark.parametrize("world_size", [1, 2, 5, 30])
def test_test_loader__each_image_on_one_rank_once(world_size):
    shards = [shard_of(23, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [index for shard in shards for index in shard] == list(range(23))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    ids = []
    for rank in range(world_size):
        loader = test_loader(
            RECORDS,
            lambda record: {"image_id": record["image_id"]},
            batch_size=4,
            rank=rank,
            world_size=world_size,
        )
        ids += [item["image_id"] for batch in loader for item in batch]
    assert ids == list(range(23))


def test_table__of_records_gives_copies():
    packed = Table(map(pickle.dumps, RECORDS), pickle.loads)
    assert len(packed) == 23
    assert [packed[i] for i in range(23)] == RECORDS
    packed[3]["width"] = -1
    assert packed[3] == RECORDS[3]
    assert pickle.loads(pickle.dumps(packed))[22] == RECORDS[22]


def test_is_trainable__crowd_alone_is_empty():
    records = [
        {"annotations": []},
        {"annotations": [{"iscrowd": 1}]},
        {"annotations": [{"iscrowd": 1}, {"iscrowd": 0}]},
        {"annotations": [{}]},
    ]
    assert [is_trainable(record) for record in records] == [False, False, True, True]


def test_category_repeat_factors__by_hand():
    held = [[0], [0, 1], [0], [], [2, 2, 0]]
    images = [{"annotations": [{"category_id": c} for c in classes]} for classes in held]
    # Shares: class 0 in 4 of 5 images, 1 and 2 in one.
    expected = [1, 4**0.5, 1, 1, 4**0.5]
    assert category_repeat_factors(images, 0.8, sqrt=True).tolist() == expected
    assert category_repeat_factors(images, 0.8, sqrt=False).tolist() == [1, 4, 1, 1, 4]
    assert category_repeat_factors(images, 0, sqrt=True).tolist() == [1] * 5


def test_training_batches__repeat_rare_images_as_often_as_their_factor_says():
    factors = torch.tensor([1.0] * 20 + [1.5, 2.0, 3.25])
    rounds = 400
    count = rounds * int(factors.sum())
    batches = _take(
        count, batch_size_per_rank=1, repeat_factors=factors, aspect_ratio_grouping=False
    )
    drawn = torch.bincount(torch.tensor([index for ((index, _),) in batches]))
    # In a round 2.0 is twice and 3.25 three or four times: 400 rounds miss the mean by .02 x 3.
    share = drawn / drawn[:20].double().mean()
    assert share[:20].sub(1).abs().max() < 0.01
    assert share[20:].tolist() == pytest.approx([1.5, 2.0, 3.25], abs=0.08)
    first = [index for ((index, _),) in batches[:27]]
    assert first.count(21) == 2 and {first.count(22)} <= {3, 4}


@pytest.mark.parametrize("grouping", [True, False])
def test_training_batches__with_repeats_depend_on_the_iteration_alone(grouping):
    repeated = {"repeat_factors": torch.linspace(1, 4, 23), "aspect_ratio_grouping": grouping}
    whole = _take(60, **repeated)
    assert _take(43, start_iteration=17, **repeated) == whole[17:]
    numbers = [number for batch in whole for _, number in batch]
    assert len(set(numbers)) == 240, "an image that comes again is augmented again"
    if not grouping:
        shares = [_take(20, rank=r, world_size=3, **repeated) for r in range(3)]
        draws = [[draw for batch in share for draw in batch] for share in shares]
        assert [d for turn in zip(*draws, strict=True) for d in turn] == [
            draw for batch in whole for draw in batch
        ]


def test_category_repeat_factors__and_order_equal_detectron2s():
    file = Path(__file__).parent / "fixtures" / "repeat_factors.json"
    for case in map(json.loads, file.read_text().splitlines()):
        factors = category_repeat_factors(records(), case["threshold"], sqrt=case["sqrt"])
        assert factors.tolist() == case["factors"]
        images = [record | {"width": 1, "height": 1} for record in records()]
        batches = training_batches(images, batch_size_per_rank=1, seed=SEED, repeat_factors=factors)
        order = [index for ((index, _),) in itertools.islice(batches, COUNT)]
        assert order == case["order"]
        assert (max(case["factors"]) > 1) == (case["threshold"] > 0.001)


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["lvis_v0.5_train", "coco_2017_train", "voc_2007_trainval"])
@pytest.mark.parametrize("threshold", [0.001, 0.02, 0.3])
def test_category_repeat_factors__of_real_data_equal_detectron2s(
    shared_data, monkeypatch, name, threshold
):
    from detectron2.data.samplers import RepeatFactorTrainingSampler as Theirs

    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    images = [record for record in get_dataset(name).records if is_trainable(record)]
    for sqrt in (True, False):
        theirs = Theirs.repeat_factors_from_category_frequency(images, threshold, sqrt=sqrt)
        ours = category_repeat_factors(images, threshold, sqrt=sqrt)
        assert torch.equal(ours, theirs)
        batches = training_batches(
            images, batch_size_per_rank=1, seed=7, repeat_factors=ours, aspect_ratio_grouping=False
        )
        order = [index for ((index, _),) in itertools.islice(batches, 500)]
        assert order == list(itertools.islice(Theirs(theirs, seed=7), 500))


@pytest.mark.detectron2
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_batches__equal_detectron2_stream_and_grouping(monkeypatch, world_size):
    from detectron2.data.common import AspectRatioGroupedDataset
    from detectron2.data.samplers import InferenceSampler, TrainingSampler
    from detectron2.utils import comm

    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        stream = (RECORDS[index] for index in TrainingSampler(len(RECORDS), seed=7))
        theirs = itertools.islice(AspectRatioGroupedDataset(stream, 4), 30)
        ours = _take(30, rank=rank, world_size=world_size)
        assert [[index for index, _ in batch] for batch in ours] == [
            [record["image_id"] for record in batch] for batch in theirs
        ]
        assert list(InferenceSampler(23)) == list(shard_of(23, rank=rank, world_size=world_size))
