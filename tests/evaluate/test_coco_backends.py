"""faster-coco-eval against pycocotools, and key points against pycocotools called directly.

Mutations that were seen to turn this red: leave image ids as text; give key points without taking
    the half pixel off.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_detections import draw_set, enlarged, integer_images

from moco_transfer.evaluate import coco_eval
from moco_transfer.evaluate.coco_eval import CocoEvaluator, choose_backend
from moco_transfer.runtime.errors import InputError

CLASS_NAMES, CATEGORY_IDS = ("a", "b", "c"), (2, 5, 90)


@pytest.mark.parametrize("seed", range(2))
def test_evaluate_results__faster_coco_eval_gives_pycocotools_numbers(
    coco_dataset, voc_dataset, as_outputs, run, seed
):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    truth, detections = draw_set(seed, num_images=30)
    large = [enlarged(integer_images(drawn)) for drawn in (truth, detections)]
    cases = (
        (coco_dataset(large[0], CLASS_NAMES, CATEGORY_IDS), as_outputs(large[1]), ("bbox",)),
        (
            coco_dataset(integer_images(truth), CLASS_NAMES, CATEGORY_IDS),
            as_outputs(integer_images(detections), True),
            ("bbox", "segm"),
        ),
        (voc_dataset(truth, CLASS_NAMES), as_outputs(detections), ("bbox",)),
    )
    for dataset, outputs, tasks in cases:
        if dataset.json_file:  # both coco data sets are written to the same file
            dataset = coco_dataset(
                large[0] if len(tasks) == 1 else integer_images(truth), CLASS_NAMES, CATEGORY_IDS
            )
        slow = run(CocoEvaluator(dataset, tasks, backend="pycocotools"), outputs)
        fast = run(CocoEvaluator(dataset, tasks, backend="faster-coco-eval"), outputs)
        for task in tasks:
            assert fast[task] == pytest.approx(slow[task], rel=0, abs=1e-12)
    empty = run(CocoEvaluator(dataset, backend="faster-coco-eval"), {})
    assert empty["bbox"]["AP"] == 0


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
            annotation["keypoints"] = a["keypoints"]
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
    ours = run(CocoEvaluator(dataset, ("keypoints",), backend="pycocotools"), outputs)["keypoints"]
    assert ours["AP"] == pytest.approx(100 * scored.stats[0], abs=1e-6)
    assert ours["AP50"] == pytest.approx(100 * scored.stats[1], abs=1e-6)
    assert 1 < ours["AP"] < 99


def test_choose_backend__auto_takes_what_is_installed(monkeypatch):
    monkeypatch.setattr(coco_eval.importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto") == "pycocotools"
    with pytest.raises(InputError, match="faster-coco-eval is not installed"):
        choose_backend("faster-coco-eval")
    monkeypatch.setattr(coco_eval.importlib.util, "find_spec", lambda name: object())
    assert choose_backend("auto") == "faster-coco-eval"
    with pytest.raises(InputError, match="expected auto, pycocotools or faster-coco-eval"):
        choose_backend("fast")
