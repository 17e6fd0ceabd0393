"""The COCO evaluator against pycocotools called directly, Detectron2's evaluator, and cases by
hand.

Mutations that were seen to turn this red: pass XYXY for XYWH; contiguous class ids for the data
    set's; keep the box
when masks are evaluated; number annotations from 0 with pycocotools; class AP from the first class;
add up in 0-1; the numbers rounded to three digits.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2_numbers import box_masks, coco_numbers
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_detections import draw_set, enlarged, integer_images

from moco_transfer.evaluate import predictions
from moco_transfer.evaluate.coco_eval import CocoEvaluator
from moco_transfer.evaluate.metric_names import BBOX_METRICS, RECALL_METRICS
from moco_transfer.runtime.errors import InputError

CLASS_NAMES, CATEGORY_IDS = ("a", "b", "c"), (2, 5, 90)
TWELVE = (*BBOX_METRICS, *RECALL_METRICS)


def _pycocotools(json_file, results, task, image_ids=None):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        scored = COCOeval(truth, truth.loadRes(results), task)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return {
        name: 100 * value for name, value in zip(TWELVE, scored.stats, strict=True) if value >= 0
    }


def _result(image_id, c, score, box):
    """A detection as COCO's json has it, of what a detector gives: float32, so that nothing is left
    to a tolerance.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float32)
    box = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
    return {
        "image_id": image_id,
        "category_id": CATEGORY_IDS[c],
        "score": float(np.float32(score)),
        "bbox": box,
    }


@pytest.mark.parametrize("seed", range(2))
def test_coco_evaluator__twelve_numbers_equal_pycocotools(coco_dataset, as_outputs, run, seed):
    truth, detections = (integer_images(drawn) for drawn in draw_set(seed))
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    ours = run(CocoEvaluator(dataset, ("bbox", "segm")), as_outputs(detections, masks=True))
    boxes, masks = [], []
    for image_id, found in detections.items():
        for c, score, box in found:
            boxes.append(_result(image_id, c, score, box))
            mask = box_masks(torch.tensor([box]))[0].numpy().astype("uint8")
            masks.append({**boxes[-1], "segmentation": mask_api.encode(mask.copy(order="F"))})
            del masks[-1]["bbox"]
    for task, results in (("bbox", boxes), ("segm", masks)):
        expected = _pycocotools(dataset.json_file, results, task)
        assert {name: value for name, value in ours[task].items() if name in TWELVE} == expected
        assert 1 < expected["AP"] < 99


@pytest.mark.parametrize("seed", range(2))
def test_coco_evaluator__objects_of_all_sizes_equal_pycocotools(
    coco_dataset, as_outputs, run, seed
):
    truth, detections = (enlarged(integer_images(drawn)) for drawn in draw_set(seed, num_images=30))
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    results = [
        _result(image_id, *found) for image_id, drawn in detections.items() for found in drawn
    ]
    expected = _pycocotools(dataset.json_file, results, "bbox")
    assert set(expected) == set(TWELVE)
    assert 1 < expected["APm"] < 99
    ours = run(CocoEvaluator(dataset), as_outputs(detections))["bbox"]
    assert {name: ours[name] for name in TWELVE} == expected


@pytest.mark.detectron2
@pytest.mark.parametrize("seed", range(2))
def test_coco_evaluator__equals_detectron2(coco_dataset, as_outputs, run, seed):
    truth, detections = (integer_images(drawn) for drawn in draw_set(seed + 50))
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    ours = run(CocoEvaluator(dataset, ("bbox", "segm")), as_outputs(detections, masks=True))
    theirs = coco_numbers(
        f"coco_{dataset.json_file}", Path(dataset.json_file), detections, ("bbox", "segm")
    )
    for task in ("bbox", "segm"):
        assert {"AP-a", "AP-c", "AP75"} <= set(theirs[task])
        for name, value in theirs[task].items():
            assert ours[task][name] == pytest.approx(value, abs=1e-9)


@pytest.mark.detectron2
def test_coco_evaluator__on_voc_data_equals_detectron2s_conversion(
    voc_dataset, as_outputs, run, tmp_path
):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, BoxMode, Instances

    truth, detections = draw_set(9)
    dataset = voc_dataset(truth, CLASS_NAMES)
    name = f"voc_as_coco_{tmp_path}"
    records = [
        {**r, "annotations": [{**a, "bbox_mode": BoxMode.XYXY_ABS} for a in r["annotations"]]}
        for r in dataset.records
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=list(CLASS_NAMES))
    evaluator = COCOEvaluator(
        name,
        tasks=("bbox",),
        use_fast_impl=False,
        output_dir=str(tmp_path / name.replace("/", "_")),
    )
    evaluator.reset()
    for image_id, output in as_outputs(detections).items():
        found = Instances(
            (100, 100),
            pred_boxes=Boxes(output["boxes"]),
            scores=output["scores"],
            pred_classes=output["classes"],
        )
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    theirs = evaluator.evaluate()["bbox"]
    ours = run(CocoEvaluator(dataset), as_outputs(detections))["bbox"]
    assert {name: ours[name] for name in theirs if theirs[name] == theirs[name]} == pytest.approx(
        {name: value for name, value in theirs.items() if value == value}, abs=1e-9
    )


def test_coco_evaluator__by_hand(coco_dataset, as_output, run):
    truth = {
        1: [(0, [0, 0, 10, 10], False), (0, [20, 20, 40, 40], False)],
        2: [(1, [5, 5, 25, 25], False)],
        3: [],
    }
    dataset = coco_dataset(truth, ("dog", "cat"), (1, 2))
    outputs = {
        1: as_output([(0, 0.9, [0, 0, 10, 10])]),
        2: as_output([(1, 0.8, [60, 60, 90, 90]), (1, 0.7, [5, 5, 25, 25])]),
        3: as_output([]),
    }
    metrics = run(CocoEvaluator(dataset), outputs)["bbox"]
    # dog: precision 1 at the 51 recall points 0 ... .50, 0 at the other 50; cat: 1/2 at all 101.
    assert metrics["AP-dog"] == pytest.approx(100 * 51 / 101)
    assert metrics["AP-cat"] == pytest.approx(50)
    assert metrics["AP"] == pytest.approx((100 * 51 / 101 + 50) / 2)
    assert metrics["AR100"] == pytest.approx(75)  # half of the dogs, all cats
    assert metrics["AR1"] == pytest.approx(25), "the cat image's first detection is wrong"
    assert "APm" not in metrics and "APl" not in metrics, "all objects are small: left out, not NaN"
    assert metrics["APs"] == metrics["AP"]


def test_coco_evaluator__an_annotation_with_id_0_can_be_found(coco_dataset, as_output, run):
    dataset = coco_dataset({1: [(0, [0, 0, 10, 10], False)]}, ("dog",), (1,), id=0)
    metrics = run(CocoEvaluator(dataset), {1: as_output([(0, 0.9, [0, 0, 10, 10])])})["bbox"]
    assert metrics["AP"] == pytest.approx(100)


def test_coco_evaluator__fills_in_area_and_iscrowd(coco_dataset, as_output, run):
    dataset = coco_dataset({1: [(0, [0, 0, 10, 10], False)]}, ("dog",), (1,))
    content = json.loads(Path(dataset.json_file).read_text())
    for key in ("area", "iscrowd"):
        del content["annotations"][0][key]
    Path(dataset.json_file).write_text(json.dumps(content))
    metrics = run(CocoEvaluator(dataset), {1: as_output([(0, 0.9, [0, 0, 10, 10])])})["bbox"]
    assert metrics["AP"] == metrics["APs"] == pytest.approx(100)


def test_coco_evaluator__no_predictions_are_0_and_a_sentence(coco_dataset, as_output, run, caplog):
    dataset = coco_dataset({1: [(0, [0, 0, 10, 10], False)]}, ("dog", "cat"), (1, 2))
    with caplog.at_level(logging.WARNING):
        metrics = run(CocoEvaluator(dataset), {1: as_output([])})["bbox"]
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == metrics["AP-dog"] == 0
    assert "The model predicted nothing on made, so every AP is 0" in caplog.text
    assert "AP-cat" not in metrics
    assert "no ground truth for 1 of its 2 classes (cat)" in caplog.text


def test_coco_evaluator__writes_to_the_log_alone(coco_dataset, as_output, run, caplog, capsys):
    dataset = coco_dataset({1: [(0, [0, 0, 10, 10], False)]}, ("dog",), (1,))
    with caplog.at_level(logging.INFO):
        run(CocoEvaluator(dataset), {1: as_output([(0, 0.9, [0, 0, 10, 10])])})
    assert capsys.readouterr().out == ""
    assert "Average Precision (AP) @[ IoU=0.50:0.95" in caplog.text


def test_coco_evaluator__repeated_class_names_stay_apart(coco_dataset, as_output, run):
    dataset = coco_dataset(
        {1: [(0, [0, 0, 10, 10], False), (1, [50, 50, 60, 60], False)]}, ("dog", "dog"), (1, 2)
    )
    metrics = run(CocoEvaluator(dataset), {1: as_output([(0, 0.9, [0, 0, 10, 10])])})["bbox"]
    assert metrics["AP-dog (id 1)"] == pytest.approx(100)
    assert metrics["AP-dog (id 2)"] == 0


def test_coco_evaluator__gathers_over_processes(coco_dataset, as_outputs, run, monkeypatch):
    truth, detections = (integer_images(drawn) for drawn in draw_set(7))
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    outputs, shares = list(as_outputs(detections).items()), []
    expected = run(CocoEvaluator(dataset), dict(outputs))
    monkeypatch.setattr(predictions, "gather_object", lambda obj: shares.append(obj) or [])
    monkeypatch.setattr(predictions, "is_main_process", lambda: False)
    assert run(CocoEvaluator(dataset), dict(outputs[::2])) == {}
    monkeypatch.setattr(predictions, "gather_object", lambda obj: [obj, *shares])
    monkeypatch.setattr(predictions, "is_main_process", lambda: True)
    assert run(CocoEvaluator(dataset), dict(outputs[1::2])) == expected


def test_coco_evaluator__key_points_equal_pycocotools(coco_dataset, as_output, run):
    rng = np.random.RandomState(0)
    truth = {i: [(0, [10 * j, 20, 10 * j + 40, 90], False) for j in range(3)] for i in (1, 2)}
    dataset = coco_dataset(truth, ("person",), (1,))
    content, outputs, results = json.loads(Path(dataset.json_file).read_text()), {}, []
    for annotation in content["annotations"]:
        points = np.concatenate((rng.randint(0, 100, (17, 2)), rng.randint(0, 3, (17, 1))), axis=1)
        annotation.update(
            keypoints=points.reshape(-1).tolist(), num_keypoints=int((points[:, 2] > 0).sum())
        )
    Path(dataset.json_file).write_text(json.dumps(content))
    for record in dataset.records:
        mine = [a for a in content["annotations"] if a["image_id"] == record["image_id"]]
        points = np.array([a["keypoints"] for a in mine], float).reshape(-1, 17, 3)
        points[:, :, :2] += rng.normal(0, 4, points[:, :, :2].shape)
        for annotation, a in zip(record["annotations"], mine, strict=True):
            annotation["keypoints"] = [
                v if i % 3 == 2 else v + 0.5 for i, v in enumerate(a["keypoints"])
            ]
        scores = [0.9, 0.5, 0.7]
        outputs[record["image_id"]] = as_output(
            [(0, score, a["bbox"]) for score, a in zip(scores, mine, strict=True)]
        )
        outputs[record["image_id"]]["keypoints"] = torch.tensor(
            points, dtype=torch.float32
        ) + torch.tensor([0.5, 0.5, 0])
        for score, found in zip(scores, points, strict=True):
            results.append(
                {
                    "image_id": record["image_id"],
                    "category_id": 1,
                    "score": score,
                    "keypoints": found.reshape(-1).tolist(),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(dataset.json_file)
        scored = COCOeval(api, api.loadRes(results), "keypoints")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    ours = run(CocoEvaluator(dataset, ("keypoints",)), outputs)["keypoints"]
    assert ours["AP"] == pytest.approx(100 * scored.stats[0], abs=1e-6)
    assert ours["AP50"] == pytest.approx(100 * scored.stats[1], abs=1e-6)
    assert 1 < ours["AP"] < 99


def test_coco_evaluator__refuses_what_does_not_fit(coco_dataset, as_output):
    dataset = coco_dataset({1: [(0, [0, 0, 10, 10], False)]}, ("dog",), (1,))
    with pytest.raises(InputError, match="predicts class 1, but the data set has 1 classes"):
        CocoEvaluator(dataset).process([{"image_id": 1}], [as_output([(1, 0.5, [0, 0, 1, 1])])])
