"""What `suggest` chooses, for images and machines of every size.

Went red under: a queue of N / 2; the learning rate not scaled with the batch; a user's value that
does not win, or that the rules after it do not see; anchors for the original instead of the input
size.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml

from moco_transfer.runtime.errors import InputError
from moco_transfer.suggest.facts import Images, Machine, Objects
from moco_transfer.suggest.finetuning import suggest_finetuning
from moco_transfer.suggest.pretraining import suggest_pretraining

CPU = Machine(gpus=0, memory=16, cpus=2)
BLOOD_CELLS = Objects(  # BCCD's
    *(("cells_train",), ("cells_test",)),
    images=205,
    short_side=480,
    classes=3,
    sides=(0.089, 0.17, 0.34),
    elongated=0.0,
    per_image=(19, 28),
)
COCO = Objects(
    *(("coco_2017_train",), ("coco_2017_val",)),
    images=117266,
    short_side=427,
    classes=80,
    sides=(0.026, 0.033, 0.65),
    elongated=0.19,
    per_image=(21, 93),
    has_masks=True,
)


def gpus(count: int, memory: float = 16) -> Machine:
    return Machine(count, memory, 8 * count)


def pretraining(count: int, machine: Machine, short_side: int = 400, **given) -> dict:
    images = Images("images", count, short_side, False, 6.0)
    given = {key.replace("__", "."): value for key, value in given.items()}
    values = suggest_pretraining(images, machine, given, "out")
    return {key: value.value for key, value in values.items()}


def finetuning(objects: Objects, machine: Machine, arch: str = "resnet50", **given) -> dict:
    given = {key.replace("__", "."): value for key, value in given.items()}
    values = suggest_finetuning(objects, machine, arch, given, "out")
    return {key: value.value for key, value in values.items()}


@pytest.mark.parametrize(
    ("images", "count", "batch", "queue", "momentum", "epochs"),
    [
        (300, 1, 32, 64, 0.99, 800),
        (300, 8, 64, 64, 0.99, 800),
        (5_000, 1, 64, 1024, 0.99, 257),
        (5_000, 8, 256, 1024, 0.99, 800),
        (118_287, 1, 64, 16384, 0.999, 200),
        (118_287, 8, 256, 16384, 0.999, 200),
        (1_281_167, 1, 64, 65536, 0.999, 200),
        (1_281_167, 8, 256, 65536, 0.999, 200),  # the paper
    ],
)
def test_pretraining__by_images_and_gpus(images, count, batch, queue, momentum, epochs):
    found = pretraining(images, gpus(count))
    assert found["DATA.BATCH_SIZE_TOTAL"] == batch
    assert found["MOCO.QUEUE_SIZE"] == queue
    assert found["MOCO.MOMENTUM"] == momentum
    assert found["SOLVER.EPOCHS"] == epochs
    assert (found["SOLVER.BASE_LR"], found["SOLVER.REFERENCE_BATCH_SIZE"]) == (0.03, 256)
    assert found["DATA.IMAGE_SIZE"] == 224 and found["MODEL.ARCH"] == "resnet50"


@pytest.mark.parametrize("images", [16, 64, 100, 300, 999, 5_000, 118_287, 1_281_167])
@pytest.mark.parametrize("machine", [CPU, gpus(1, 8), gpus(1, 80)], ids=["cpu", "8GB", "80GB"])
def test_pretraining__queue_and_batch_fit_the_images(images, machine):
    found = pretraining(images, machine)
    batch, queue = found["DATA.BATCH_SIZE_TOTAL"], found["MOCO.QUEUE_SIZE"]
    assert batch <= images and queue <= 65536
    assert queue <= images / 4 or queue == batch
    assert math.log2(queue / batch).is_integer()
    assert found["MOCO.BN_GROUP_SIZE"] <= batch / 2  # groups to shuffle between


def test_pretraining__on_a_cpu_by_crops_and_memory():
    found = pretraining(1000, CPU, short_side=300)
    assert (found["MODEL.ARCH"], found["DATA.IMAGE_SIZE"]) == ("resnet18", 96)
    assert found["SOLVER.EPOCHS"] * (1000 // found["DATA.BATCH_SIZE_TOTAL"]) < 1100
    found = pretraining(50_000, CPU, short_side=32)
    assert (found["DATA.IMAGE_SIZE"], found["DATA.AUGMENTATION"]) == (32, "cifar")
    found = pretraining(1_281_167, CPU)  # a run within the first epoch
    assert (found["SOLVER.MAX_ITER"], found["SOLVER.SCHEDULE_BY"]) == (1000, "iteration")
    assert pretraining(10**6, gpus(1, 8))["DATA.BATCH_SIZE_TOTAL"] == 32


def test_pretraining__user_wins_and_the_other_values_follow():
    found = pretraining(1000, CPU, DATA__BATCH_SIZE_TOTAL=48, KNN__TEST="labelled", MOCO__DIM=64)
    assert found["DATA.BATCH_SIZE_TOTAL"] == 48 and found["MOCO.QUEUE_SIZE"] == 192
    assert (found["KNN.TEST"], found["MOCO.DIM"]) == ("labelled", 64)
    assert pretraining(1000, CPU, SOLVER__MAX_ITER=7)["SOLVER.MAX_ITER"] == 7
    found = pretraining(1_281_167, CPU, SOLVER__EPOCHS=2)
    assert found["SOLVER.EPOCHS"] == 2 and "SOLVER.MAX_ITER" not in found


def test_pretraining__what_cannot_be():
    with pytest.raises(InputError, match="has 15 images"):
        pretraining(15, CPU)
    with pytest.raises(InputError, match="QUEUE_SIZE 512 is more than the 300 images.*at most 75"):
        pretraining(300, CPU, MOCO__QUEUE_SIZE=512)
    with pytest.raises(InputError, match="A batch of 256 is more than the 200 images"):
        pretraining(200, gpus(32))


@pytest.mark.parametrize(
    ("images", "published"), [(5_011, 9_000), (16_551, 24_000), (118_287, 90_000)]
)
def test_finetuning__length_is_that_of_the_published_configs(images, published):
    found = finetuning(dataclasses.replace(COCO, images=images), gpus(8))
    assert abs(found["SOLVER.MAX_ITER"] / published - 1) < 0.12
    assert (found["SOLVER.IMS_PER_BATCH"], found["SOLVER.BASE_LR"]) == (16, 0.02)
    assert max(found["SOLVER.STEPS"]) < found["SOLVER.MAX_ITER"]


@pytest.mark.parametrize(
    ("count", "memory", "batch"), [(1, 8, 2), (1, 16, 4), (1, 80, 16), (4, 16, 16)]
)
def test_finetuning__batch_lr_and_length_move_together(count, memory, batch):
    few, all_eight = finetuning(COCO, gpus(count, memory)), finetuning(COCO, gpus(8))
    assert few["SOLVER.IMS_PER_BATCH"] == batch
    assert few["SOLVER.BASE_LR"] == pytest.approx(0.02 * batch / 16)
    assert few["SOLVER.REFERENCE_WORLD_SIZE"] == count
    images = few["SOLVER.MAX_ITER"] * batch
    assert images == pytest.approx(16 * all_eight["SOLVER.MAX_ITER"], rel=0.05)


def test_finetuning__as_the_paper_on_coco():
    found = finetuning(COCO, gpus(8))
    assert found["INPUT.MIN_SIZE_TEST"] == 800 and found["INPUT.MAX_SIZE_TRAIN"] == 1333
    assert (min(found["INPUT.MIN_SIZE_TRAIN"]), max(found["INPUT.MIN_SIZE_TRAIN"])) == (640, 800)
    assert found["MODEL.ANCHOR_GENERATOR.SIZES"] == [[32], [64], [128], [256], [512]]
    assert found["MODEL.MASK_ON"] is True and found["MODEL.ROI_HEADS.NUM_CLASSES"] == 80
    assert found["MODEL.RESNETS.NORM"] == found["MODEL.FPN.NORM"] == "SyncBN"


def test_finetuning__of_lvis_keeps_low_scores_and_repeats_rare_classes():
    found = finetuning(dataclasses.replace(COCO, classes=1230, is_lvis=True), gpus(8))
    assert found["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert found["DATALOADER.REPEAT_THRESHOLD"] == 0.001
    assert found["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] == 0.0001
    assert found["TEST.DETECTIONS_PER_IMAGE"] == 300
    assert "DATALOADER.SAMPLER_TRAIN" not in finetuning(COCO, gpus(8))


def test_finetuning__by_the_size_and_number_of_objects():
    found = finetuning(BLOOD_CELLS, CPU, "resnet18")
    assert found["INPUT.MIN_SIZE_TEST"] == 160 and found["MODEL.RESNETS.DEPTH"] == 18
    assert found["MODEL.ANCHOR_GENERATOR.SIZES"][0] == [16]  # the platelets' 14 px
    assert (found["SOLVER.IMS_PER_BATCH"], found["SOLVER.BASE_LR"]) == (4, 0.01)
    assert found["TEST.DETECTIONS_PER_IMAGE"] == 100
    smaller = dataclasses.replace(BLOOD_CELLS, sides=(0.02, 0.04, 0.2), per_image=(200, 574))
    found = finetuning(smaller, CPU, "resnet18")
    assert found["INPUT.MIN_SIZE_TEST"] == 320
    assert found["MODEL.ANCHOR_GENERATOR.SIZES"][0] == [8]
    assert found["TEST.DETECTIONS_PER_IMAGE"] == 900
    assert found["MODEL.RPN.POST_NMS_TOPK_TEST"] >= 900
    assert found["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] == 512
    tiny_images = dataclasses.replace(BLOOD_CELLS, short_side=64)
    assert finetuning(tiny_images, gpus(8))["INPUT.MIN_SIZE_TEST"] == 160


def test_finetuning__user_wins_and_the_other_values_follow():
    found = finetuning(COCO, gpus(8), SOLVER__IMS_PER_BATCH=8, INPUT__MIN_SIZE_TEST=400, SEED=3)
    assert (found["SOLVER.IMS_PER_BATCH"], found["SOLVER.BASE_LR"]) == (8, 0.01)
    assert max(found["INPUT.MIN_SIZE_TRAIN"]) == 400 and found["SEED"] == 3
    assert found["SOLVER.MAX_ITER"] > 150_000


def test_text__each_value_has_a_reason_and_the_user_s_is_marked():
    images = Images("a: #b", 1000, 300, False, 6.0)
    values = suggest_pretraining(images, CPU, {"MOCO.MOMENTUM": 0.5, "SEED": 1}, "out")
    text = values.text("header")
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()[1:]}
    assert "set by you" in lines["MOMENTUM"] and "0.99" in lines["MOMENTUM"]
    assert "set by you" in lines["SEED"]
    assert all("  # " in line or line.endswith(":") for line in text.splitlines()[1:])
    assert yaml.safe_load(text)["DATA"]["ROOT"] == "a: #b"
