"""What the embedded engine refuses with "use --engine detectron2" runs there: crops, test-time
augmentation, key points; masks are run-length encoded.

Seen red under: the augmented detector left out; polygons asked for with INPUT.MASK_FORMAT bitmask;
    key points not passed on to the evaluator.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2_runs import REPOSITORY, run_python
from pycocotools.coco import COCO

pytestmark = pytest.mark.detectron2

COMMON = """MODEL.DEVICE cpu SEED 0 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN 64
    INPUT.MIN_SIZE_TEST 64 SOLVER.MAX_ITER 2 SOLVER.STEPS 1 SOLVER.WARMUP_ITERS 1
    TEST.PRECISE_BN.NUM_ITER 1 MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 32"""


def few(
    source: Path, target: Path, *, count: int, with_key_points: bool = False, encode: bool = False
) -> Path:
    """Write the annotations of the first images of a COCO file that have something to train on,
    masks run-length encoded if asked for.
    """
    coco = COCO(str(source))
    content = coco.dataset
    usable = [
        a
        for a in content["annotations"]
        if not a["iscrowd"] and (not with_key_points or a["num_keypoints"])
    ]
    ids = list(dict.fromkeys(a["image_id"] for a in usable))[:count]
    annotations = [a for a in usable if a["image_id"] in ids]
    for annotation in annotations if encode else ():
        rle = coco.annToRLE(annotation)
        annotation["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    images = [image for image in content["images"] if image["id"] in ids]
    target.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": content["categories"]}
        )
    )
    return target


def train(
    config: str, output_dir, datasets: dict[str, str], *words: str, engine: str = "detectron2"
):
    flags = [word for name, place in datasets.items() for word in ("--dataset", f"{name}={place}")]
    tool = REPOSITORY / "tools" / "train_net.py"
    settings = [*COMMON.split(), "OUTPUT_DIR", output_dir, *words]
    return run_python(tool, "--engine", engine, "--config-file", config, *flags, *settings)


def test_masks__run_length_encoded_with_crops_repeats_and_test_time_augmentation(
    tmp_path, shared_data
):
    file = few(
        shared_data / "coco" / "annotations" / "instances_val2017.json",
        tmp_path / "rle.json",
        count=4,
        encode=True,
    )
    encoded = f"{file}:{shared_data / 'coco' / 'val2017'}"
    words = """DATASETS.TRAIN rle_train DATASETS.TEST rle_train MODEL.MASK_ON True
        INPUT.CROP.ENABLED True DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler
        DATALOADER.REPEAT_THRESHOLD 0.5 TEST.AUG.ENABLED True TEST.AUG.MIN_SIZES 48,64
        TEST.AUG.MAX_SIZE 100 TEST.DETECTIONS_PER_IMAGE 10 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0"""
    result = train(
        "coco_R_18_FPN_small", tmp_path / "run", {"rle_train": f"coco:{encoded}"}, *words.split()
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(record["metrics"]) == {"bbox", "segm"} and "loss_mask" in record["last_losses"]
    predictions = json.loads((tmp_path / "run" / "predictions_rle_train.json").read_text())
    assert predictions and all("segmentation" in found for found in predictions)
    plain = words.replace("TEST.AUG.ENABLED True", "TEST.AUG.ENABLED False").split()
    weights = [
        "MODEL.WEIGHTS",
        str(tmp_path / "run" / "checkpoint_0000002.pth"),
        "OUTPUT_DIR",
        str(tmp_path / "plain"),
    ]
    tool = [
        REPOSITORY / "tools" / "train_net.py",
        "--engine",
        "detectron2",
        "--config-file",
        "coco_R_18_FPN_small",
        "--eval-only",
    ]
    result = run_python(
        *tool, "--dataset", f"rle_train=coco:{encoded}", *COMMON.split(), *plain, *weights
    )
    assert result.returncode == 0, result.stderr
    assert (
        json.loads((tmp_path / "plain" / "predictions_rle_train.json").read_text()) != predictions
    )


@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_key_points__of_a_set_of_ones_own(tmp_path, shared_data, engine):
    """Three keypoints, and an object that has none."""
    source = shared_data / "coco" / "annotations" / "person_keypoints_val2017.json"
    json_file = few(source, tmp_path / "people.json", count=4, with_key_points=True)
    content = json.loads(json_file.read_text())
    names = {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
    content["categories"][0] |= names
    for annotation in content["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:9]
        del annotation["num_keypoints"]
    del content["annotations"][-1]["keypoints"]
    json_file.write_text(json.dumps(content))
    people = f"coco:{json_file}:{shared_data / 'coco' / 'val2017'}"
    words = """DATASETS.TRAIN people DATASETS.TEST people MODEL.KEYPOINT_ON True MODEL.MASK_ON
        False INPUT.RANDOM_FLIP horizontal TEST.DETECTIONS_PER_IMAGE 10
        MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.RPN.POST_NMS_TOPK_TEST 20
        TEST.KEYPOINT_OKS_SIGMAS [0.1,0.2,0.3] MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,16)"""
    config, run = "coco_R_18_FPN_small", tmp_path / "run"
    result = train(config, run, {"people": people}, *words.split(), engine=engine)
    assert result.returncode == 0, result.stderr
    record = json.loads((run / "results.json").read_text())
    assert record["engine"] == engine
    assert (
        set(record["metrics"]) == {"bbox", "keypoints"} and "loss_keypoint" in record["last_losses"]
    )
    predictions = json.loads((run / "predictions_people.json").read_text())
    assert predictions and all(len(found["keypoints"]) == 9 for found in predictions)
    header = torch.load(run / "checkpoint_0000002.pth", weights_only=True)
    assert (header["keypoints"], header["skeleton"]) == (names["keypoints"], [[0, 1], [0, 2]])
    assert "NUM_KEYPOINTS: 3" in header["config"]


def test_key_points__of_a_c4_detector_are_refused_in_a_sentence(tmp_path, shared_data, monkeypatch):
    from moco_transfer.finetune.plan import Request, plan_finetuning
    from moco_transfer.runtime.errors import InputError

    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    words = """DATASETS.TRAIN ('keypoints_coco_2017_train',)
        DATASETS.TEST ('keypoints_coco_2017_val',) MODEL.ROI_HEADS.NUM_CLASSES 1
        MODEL.KEYPOINT_ON True MODEL.MASK_ON False MODEL.DEVICE cpu OUTPUT_DIR"""
    for engine in ("detectron2", "torchvision"):
        request = Request("coco_R_50_C4_1x", [*words.split(), str(tmp_path / "run")], engine=engine)
        with pytest.raises(InputError, match=r"MODEL\.KEYPOINT_ON True needs .*StandardROIHeads"):
            plan_finetuning(request)
    assert not (tmp_path / "run").exists()
