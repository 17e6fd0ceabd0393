"""Plans: the schedule for a number of processes, what makes two runs comparable, every fault at
once, and nothing written.

Seen red under: lr by the inverse; steps left; reference not divided; seed in the hash.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision
from generated_images import write_voc_scenes
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config
from moco_transfer.finetune.datasets import Reads
from moco_transfer.finetune.lint import PlanError
from moco_transfer.finetune.plan import Request, config_hash, plan_finetuning
from moco_transfer.finetune.schedule import Schedule
from moco_transfer.runtime.errors import InputError

VOC_24K = Schedule(16, 0.02, 24000, (18000, 22000), 100, 5000, 5000, reference=8)
ANY = Schedule(4, 0.01, 100, (80,), 10, 50, 0, reference=0)


def test_schedule__8_gpus_to_1():
    assert VOC_24K.for_processes(1) == Schedule(
        2, 0.0025, 192000, (144000, 176000), 800, 40000, 40000, reference=1
    )
    assert VOC_24K.for_processes(2).for_processes(8) == VOC_24K


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.detectron2
def test_schedule__equals_detectron2(world_size):
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultTrainer

    theirs = get_cfg()
    words = "SOLVER.IMS_PER_BATCH 16 SOLVER.BASE_LR 0.02 SOLVER.MAX_ITER 24000 SOLVER.STEPS"
    words += " (18000,22000) SOLVER.WARMUP_ITERS 100 SOLVER.CHECKPOINT_PERIOD 5000"
    words += " SOLVER.REFERENCE_WORLD_SIZE 8 TEST.EVAL_PERIOD 5000"
    theirs.merge_from_list(words.split())
    theirs = DefaultTrainer.auto_scale_workers(theirs, world_size)
    solver = theirs.SOLVER
    assert VOC_24K.for_processes(world_size) == Schedule(
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.MAX_ITER,
        tuple(solver.STEPS),
        solver.WARMUP_ITERS,
        solver.CHECKPOINT_PERIOD,
        theirs.TEST.EVAL_PERIOD,
        solver.REFERENCE_WORLD_SIZE,
    )


def test_schedule__reference_0_takes_the_schedule_and_rejects_a_batch_that_does_not_divide():
    assert ANY.for_processes(2) == ANY
    with pytest.raises(InputError, match="IMS_PER_BATCH 4 does not divide among 3 processes"):
        ANY.for_processes(3)


def test_schedule__a_batch_that_is_no_multiple_of_the_reference_is_rejected():
    # Someone who thinks of one GPU writes batch 2; scaled from 8 to 1 that would be a quarter of an
    # image.
    with pytest.raises(InputError, match=r"IMS_PER_BATCH 2 .* 8 processes.*REFERENCE_WORLD_SIZE 0"):
        Schedule(2, 0.0025, 100, (), 0, 10, 0, reference=8).for_processes(1)
    with pytest.raises(InputError, match="REFERENCE_WORLD_SIZE -1"):
        Schedule(2, 0.0025, 100, (), 0, 10, 0, reference=-1).for_processes(1)


def test_schedule__in_words_both_numbers_of_everything_that_moved():
    assert VOC_24K.for_processes(1).describe(VOC_24K, 1) == (
        "for 1 process with 2 images each, scaled from 8 processes: batch 16 -> 2,"
        " lr 0.02 -> 0.0025,"
        " iterations 24000 -> 192000, steps (18000, 22000) -> (144000, 176000), warmup 100 -> 800,"
        " checkpoint period 5000 -> 40000, eval period 5000 -> 40000"
    )
    assert "for 8 processes with 2 images each: batch 16," in VOC_24K.describe(VOC_24K, 8)
    assert "for 2 processes with 2 images each: batch 4, lr 0.01," in ANY.describe(ANY, 2)


def test_config_hash__free_keys_do_not_count_and_others_do():
    base = config_hash(load_detection_config("demo_R_18_FPN"))
    free = "MODEL.WEIGHTS x.pkl SEED 5 OUTPUT_DIR elsewhere DATALOADER.NUM_WORKERS 7"
    free += " MODEL.DEVICE cpu"
    assert config_hash(load_detection_config("demo_R_18_FPN", free.split())) == base
    for words in (
        "SOLVER.BASE_LR 0.5",
        "MODEL.RESNETS.NORM FrozenBN",
        "DATASETS.TEST voc_2007_test",
        "INPUT.FORMAT BGR",
    ):
        assert config_hash(load_detection_config("demo_R_18_FPN", words.split())) != base


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """``--dataset`` flags and config words of a run on generated scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_voc_scenes(folder, splits={"train": 3, "test": 2}, size=64, seed=0)
    flags = [f"plan_{s}=voc:{folder}:{s}:{folder / 'classes.txt'}" for s in ("train", "test")]
    return ["--dataset", flags[0], "--dataset", flags[1], "DATASETS.TRAIN", "plan_train"] + [
        *["DATASETS.TEST", "plan_test", "MODEL.DEVICE", "cpu", "SEED", "0"]
    ]


def request(words: list[str], *overrides: object, **flags) -> Request:
    more = [*words[4:], *map(str, overrides)]
    return Request("demo_R_18_FPN", more, words[1:4:2], engine="torchvision", **flags)


def test_plan__every_fault_at_once_and_nothing_written(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faulty = "MODEL.WEIGHTS nothing.pkl MODEL.RESNETS.DEPTH 50 INPUT.CROP.ENABLED True"
    faulty += " SOLVER.IMS_PER_BATCH 3 MODEL.MASK_ON True MODEL.DEVICE tpu"
    with pytest.raises(PlanError) as caught:
        plan_finetuning(request(words, *faulty.split()), world_size=2)
    sentences = "\n".join(finding.sentence for finding in caught.value.findings)
    for part in (
        "MODEL.DEVICE must be",
        "INPUT.CROP.ENABLED",
        "IMS_PER_BATCH 3 does not divide among 2",
        "objects of data set 'plan_train' have no 'segmentation'",
        "nothing.pkl",
    ):
        assert part in sentences
    assert str(caught.value).splitlines()[0].startswith(f"{len(caught.value.findings)} things")
    assert os.listdir(tmp_path) == []


def test_plan__reads_every_file_once(words, tmp_path, monkeypatch):
    import torch

    from moco_transfer.convert import convert_checkpoint
    from moco_transfer.finetune import datasets, handover

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    convert_checkpoint(tmp_path / "r18.pth", tmp_path / "r18.pkl")
    calls = []
    for place, name in ((handover, "read_weights"), (datasets, "_digest")):
        original = getattr(place, name)

        def counted(*args, name=name, original=original, **more):
            calls.append(name)
            return original(*args, **more)

        monkeypatch.setattr(place, name, counted)
    reads, weights = Reads(), ("MODEL.WEIGHTS", tmp_path / "r18.pkl", "OUTPUT_DIR", tmp_path / "o")
    plans = [
        plan_finetuning(request(words, *weights, "SEED", seed), world_size=size, reads=reads)
        for seed, size in ((0, 1), (1, 1), (0, 2))
    ]
    assert calls == ["read_weights", "_digest", "_digest"]
    assert [p.header["seed"] for p in plans] == [0, 1, 0]
    assert plans[0].header["config_hash"] == plans[1].header["config_hash"]
    assert plans[0].coverage.is_complete and plans[0].coverage.num_expected == 100
    assert "over 2 ranks (gloo)" in plans[2].norm and "in one process" in plans[0].norm
    assert not (tmp_path / "o").exists()


def test_dry_run__prints_the_plan_and_touches_nothing(words, tmp_path, capsys):
    flags = ["--config-file", "demo_R_18_FPN", "--engine", "torchvision"]
    words += ["--dry-run", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["train", *flags, *words]) == 0
    out = capsys.readouterr().out
    for part in (
        "plan_train: 3 images",
        "plan_test: 2 images",
        "random initialisation",
        "schedule",
        "precision",
        "BN (SyncBN in one process) x ",
        str(tmp_path / "run"),
    ):
        assert part in out
    assert os.listdir(tmp_path) == []


def test_heads__need_their_annotations(tmp_path):
    from moco_transfer.data.annotations.catalog import DetectionDataset
    from moco_transfer.finetune.datasets import DataRequest, _head_faults

    (tmp_path / "a.jpg").touch()

    def said(tasks, *annotations, of_training=True):
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
            "categories": [{"id": 7, "name": "nut", "keypoints": ["top"]}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 5], **more}
                for n, more in enumerate(annotations, start=1)
            ],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        dataset = DetectionDataset("nuts", "coco", str(tmp_path), str(tmp_path / "a.json"))
        request = DataRequest(
            ("nuts",), ("nuts",), 1, tasks=("bbox", *tasks), mask_format="polygon"
        )
        return list(_head_faults(dataset, request, of_training=of_training))

    polygon = {"segmentation": [[2, 3, 12, 3, 12, 8]]}
    encoded = {"segmentation": {"size": [20, 30], "counts": [60, 5, 535]}}
    points = {"keypoints": [4, 4, 2]}
    assert said((), {}) == said(["segm"], polygon) == said(["keypoints"], points, {}) == []
    (fault,) = said(["segm"], polygon, {})
    assert "MODEL.MASK_ON is True, but 1 of the 2 objects of data set 'nuts' have no" in fault
    (fault,) = said(["keypoints"], {}, {})
    assert "MODEL.KEYPOINT_ON is True, but 2 of the 2 objects" in fault
    (fault,) = said(["segm"], encoded, polygon)
    assert "1 of the 2 masks of data set 'nuts' are run-length encoded" in fault
    assert said(["segm"], encoded, polygon, of_training=False) == []


def write_keypoints(folder: Path, name: str, *objects: dict, **category: object) -> str:
    """Write a data set of an image for each object, and return its --dataset flag."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in range(len(objects))
    ]
    for image in images:
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / image["file_name"])
    nut = {"id": 7, "name": "nut", "keypoints": ["left_end", "right_end"], "skeleton": [[1, 2]]}
    content = {
        "images": images,
        "categories": [nut | category],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [2, 3, 10, 5], **found}
            for i, found in enumerate(objects)
        ],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return f"{name}=coco:{folder / name}.json:{folder}"


LABELLED, UNLABELLED = {"keypoints": [4, 4, 2, 8, 5, 1]}, {"keypoints": [0] * 6}


def plan_keypoints(tmp_path, train: str, test: str, *words: str):
    names = [flag.split("=")[0] for flag in (train, test)]
    settings = ["DATASETS.TRAIN", f"('{names[0]}',)", "DATASETS.TEST", f"('{names[1]}',)"]
    settings += ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu", *words]
    config, flags = "coco_keypoint_R_18_FPN_320px", list(dict.fromkeys((train, test)))
    return plan_finetuning(Request(config, settings, flags, engine="torchvision"))


SIGMAS = ("TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.2]")


def test_keypoints__number_names_and_skeleton_come_from_the_data(tmp_path):
    from moco_transfer.finetune.describe import describe_plan

    flag = write_keypoints(tmp_path, "nuts", LABELLED, UNLABELLED, {})
    plan = plan_keypoints(tmp_path, flag, flag, *SIGMAS)
    assert plan.engine.cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 2
    assert plan.header["keypoints"] == ["left_end", "right_end"]
    assert plan.header["skeleton"] == [[0, 1]]
    assert plan.data.keypoints.oks_sigmas == (0.1, 0.2)
    text = "\n".join(describe_plan(plan))
    assert "2 images with fewer than 1 labelled keypoints are left out" in text
    assert "left_end/right_end" in text
    batches = plan.engine.training_batches(plan.data.train_sets, 0)
    for batch, _ in zip(batches, range(2), strict=False):
        assert {item["image_id"] for item in batch} == {0}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objects", "category", "words", "facts"),
    [
        (
            [LABELLED],
            {},
            (),
            ["TEST.KEYPOINT_OKS_SIGMAS", "COCO's 17", "2 keypoints", "[0.05, 0.05]"],
        ),
        ([LABELLED], {}, (SIGMAS[0], "[0.1]"), ["has 1 numbers", "2 keypoints"]),
        ([LABELLED], {}, (SIGMAS[0], "[0.1, 0.0]"), ["[0.1, 0.0]", "above 0"]),
        (
            [LABELLED],
            {},
            (*SIGMAS, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "17"),
            ["NUM_KEYPOINTS is 17", "2 keypoints (left_end, right_end)", "NUM_KEYPOINTS 2"],
        ),
        ([LABELLED], {"keypoints": [], "skeleton": []}, SIGMAS, ["'nuts' name no keypoints"]),
        ([UNLABELLED, {}], {}, SIGMAS, ["No image of DATASETS.TRAIN nuts has 1"]),
        (
            [LABELLED],
            {},
            (*SIGMAS, "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", "3"),
            ["No image of DATASETS.TRAIN nuts has 3"],
        ),
    ],
)
def test_keypoints__that_contradict_the_config_are_refused_in_a_sentence(
    tmp_path, objects, category, words, facts
):
    flag = write_keypoints(tmp_path, "nuts", *objects, **category)
    with pytest.raises(InputError) as error:
        plan_keypoints(tmp_path, flag, flag, *words)
    assert all(fact in str(error.value) for fact in facts), str(error.value)
    assert not (tmp_path / "run").exists()


def test_keypoints__that_differ_between_training_and_test_are_refused(tmp_path):
    train = write_keypoints(tmp_path, "train", LABELLED)
    test = write_keypoints(tmp_path, "test", LABELLED, keypoints=["right_end", "left_end"])
    with pytest.raises(InputError) as error:
        plan_keypoints(tmp_path, train, test, *SIGMAS)
    assert "'train'" in str(error.value) and "right_end, left_end" in str(error.value)


def test_keypoints__a_label_subset_without_any_is_refused(tmp_path):
    from moco_transfer.data.annotations.label_subset import LabelDraw, LabelSubset

    flag = write_keypoints(tmp_path, "nuts", LABELLED, UNLABELLED)
    words = ["DATASETS.TRAIN", "('nuts',)", "DATASETS.TEST", "('nuts',)", *SIGMAS]
    words += ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"]

    def plan(image: str):
        subset = LabelSubset(LabelDraw(0.5), {"nuts": [image]})
        config = "coco_keypoint_R_18_FPN_320px"
        return plan_finetuning(
            Request(config, words, [flag], engine="torchvision", label_subset=subset)
        )

    plan("0")
    with pytest.raises(InputError, match="No image of DATASETS.TRAIN nuts has 1"):
        plan("1")


def test_lvis__without_hotcoco_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "1.jpg")
    thing = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 5], "area": 50}
    thing["segmentation"] = [[2, 3, 12, 3, 12, 8, 2, 8]]
    image = {"id": 1, "file_name": "1.jpg", "height": 20, "width": 30}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    content = {"images": [image], "annotations": [thing]}
    content["categories"] = [{"id": 7, "name": "nut", "frequency": "r"}]
    (tmp_path / "nuts.json").write_text(json.dumps(content))
    settings = ["DATASETS.TRAIN", "('nuts',)", "DATASETS.TEST", "('nuts',)", "MODEL.DEVICE", "cpu"]
    settings += ["OUTPUT_DIR", str(tmp_path / "run")]
    flags = [f"nuts=lvis:{tmp_path / 'nuts.json'}:{tmp_path}"]
    request = Request("lvis_v0.5_R_18_FPN_small", settings, flags, engine="torchvision")
    plan_finetuning(request)
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # cannot be imported
    with pytest.raises(PlanError, match="'nuts'.*hotcoco"):
        plan_finetuning(request)
    assert not (tmp_path / "run").exists()
