"""Scaling to the number of processes, and what makes two runs comparable.

Seen red under: lr by the inverse; steps left; reference not divided; seed in the hash.
"""

from __future__ import annotations

import pytest

from moco_transfer.config import load_detection_config
from moco_transfer.finetune.results import config_hash
from moco_transfer.finetune.scaling import scale_to_world_size, schedule_sentence
from moco_transfer.runtime.errors import InputError

VOC_24K = [
    "SOLVER.IMS_PER_BATCH",
    "16",
    "SOLVER.BASE_LR",
    "0.02",
    "SOLVER.MAX_ITER",
    "24000",
    "SOLVER.STEPS",
    "18000,22000",
]
VOC_24K += [
    "SOLVER.WARMUP_ITERS",
    "100",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "8",
    "TEST.EVAL_PERIOD",
    "5000",
]


def numbers(cfg):
    s = cfg.SOLVER
    return (
        s.IMS_PER_BATCH,
        s.BASE_LR,
        s.MAX_ITER,
        tuple(s.STEPS),
        s.WARMUP_ITERS,
        cfg.TEST.EVAL_PERIOD,
    )


def test_scale__8_gpus_to_1():
    cfg = scale_to_world_size(load_detection_config("Base-RCNN-FPN-BN", VOC_24K), 1)
    assert numbers(cfg) == (2, pytest.approx(0.0025), 192000, (144000, 176000), 800, 40000)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.detectron2
def test_scale__equals_detectron2(world_size):
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultTrainer

    from moco_transfer.config import path

    theirs = get_cfg()
    theirs.merge_from_file(path("Base-RCNN-FPN-BN"))
    theirs.merge_from_list([w if not w.startswith("18000") else "(18000,22000)" for w in VOC_24K])
    theirs = DefaultTrainer.auto_scale_workers(theirs, world_size)
    assert numbers(
        scale_to_world_size(load_detection_config("Base-RCNN-FPN-BN", VOC_24K), world_size)
    ) == numbers(theirs)


def test_scale__reference_0_takes_the_schedule_and_refuses_a_batch_that_does_not_divide():
    cfg = load_detection_config("demo_R_18_FPN")
    assert numbers(scale_to_world_size(cfg, 2)) == numbers(cfg)
    with pytest.raises(
        InputError, match="SOLVER.IMS_PER_BATCH 4 does not divide among 3 processes"
    ):
        scale_to_world_size(cfg, 3)


def test_scale__a_batch_that_is_no_multiple_of_the_reference_is_refused():
    # Someone who thinks of one GPU writes batch 2; scaled from 8 to 1 that would be a quarter of a
    # image.
    cfg = load_detection_config(
        "Base-RCNN-FPN-BN", ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0025"]
    )
    with pytest.raises(
        InputError,
        match=(
            r"IMS_PER_BATCH 2 is the batch of SOLVER.REFERENCE_WORLD_SIZE 8 processes"
            r" together.*REFERENCE_WORLD_SIZE 0"
        ),
    ):
        scale_to_world_size(cfg, 1)
    with pytest.raises(InputError, match="REFERENCE_WORLD_SIZE is -1"):
        scale_to_world_size(
            load_detection_config("Base-RCNN-FPN-BN", ["SOLVER.REFERENCE_WORLD_SIZE", "-1"]), 1
        )


def test_scale__the_users_config_stays_as_it_was_written():
    cfg = load_detection_config("Base-RCNN-FPN-BN", VOC_24K)
    scaled = scale_to_world_size(cfg, 2)
    assert numbers(cfg)[:2] == (16, 0.02) and numbers(scaled)[:2] == (4, 0.005)
    assert scaled.SOLVER.REFERENCE_WORLD_SIZE == 2 and scaled.is_frozen()
    assert numbers(scale_to_world_size(scaled, 8)) == numbers(cfg)  # and back


def test_schedule_sentence__both_numbers_of_everything_that_moved():
    cfg = load_detection_config("Base-RCNN-FPN-BN", VOC_24K)
    assert (
        schedule_sentence(cfg, scale_to_world_size(cfg, 1), 1)
        == "schedule scaled from 8 processes to 1 process with 2 images each: batch 16 -> 2, lr"
        " 0.02 -> 0.0025, iterations 24000 -> 192000, steps (18000, 22000) -> (144000, 176000),"
        " warm-up 100 -> 800, checkpoint every 5000 -> 40000, evaluation every 5000 -> 40000"
    )
    assert (
        schedule_sentence(cfg, scale_to_world_size(cfg, 8), 8)
        == "schedule for 8 processes with 2 images each, as written for so many: batch 16, lr"
        " 0.02, iterations 24000, steps (18000, 22000), warm-up 100, checkpoint every 5000,"
        " evaluation every 5000"
    )
    demo = load_detection_config("demo_R_18_FPN")
    said = schedule_sentence(demo, scale_to_world_size(demo, 2), 2)
    assert said.startswith(
        "schedule for 2 processes with 2 images each, as written, for any number of processes:"
        " batch 4, lr 0.01, "
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.CROP.ENABLED", "True"),
        ("TEST.AUG.ENABLED", "True"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ],
)
def test_finetune__what_the_run_does_not_implement_is_refused_by_name(key, value):
    from moco_transfer.finetune.build import finetune

    with pytest.raises(InputError, match=f"does not implement {key} '?{value}"):
        finetune(load_detection_config("demo_R_18_FPN", [key, value]), task="x")


def test_config_hash__free_keys_do_not_count_and_others_do():
    base = config_hash(load_detection_config("demo_R_18_FPN"))
    free = [
        "MODEL.WEIGHTS",
        "x.pkl",
        "SEED",
        "5",
        "OUTPUT_DIR",
        "elsewhere",
        "DATALOADER.NUM_WORKERS",
        "7",
        "MODEL.DEVICE",
        "cpu",
    ]
    assert config_hash(load_detection_config("demo_R_18_FPN", free)) == base
    for key, value in (
        ("SOLVER.BASE_LR", "0.5"),
        ("MODEL.RESNETS.NORM", "FrozenBN"),
        ("DATASETS.TEST", "voc_2007_test"),
        ("INPUT.FORMAT", "BGR"),
    ):
        assert config_hash(load_detection_config("demo_R_18_FPN", [key, value])) != base
