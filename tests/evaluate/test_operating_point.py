"""Precision, recall, F1 and confusions: by hand, and against pycocotools given only the detections
above the score.

Seen red under: detections on crowds counted as errors, in either; detections below the score kept;
rows and columns of the confusions exchanged; recall divided by the number of detections.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_detections import draw_set, integer_images

from moco_transfer.evaluate.coco_eval import CocoEvaluator
from moco_transfer.evaluate.metric_names import NO_CLASS, RATES
from moco_transfer.evaluate.voc_eval import VocEvaluator

CLASS_NAMES = ("a", "b", "c")
#: Two objects, a crowd (or difficult object) of class a, and one object that nothing finds.
TRUTH = {
    1: [
        (0, [0, 0, 20, 20], 0),
        (1, [50, 50, 70, 70], 0),
        (0, [0, 50, 40, 90], 1),
        (1, [80, 80, 90, 90], 0),
    ],
    2: [],
}
DETECTIONS = {
    1: [
        (1, 0.9, [0, 0, 20, 20]),  # b on an a
        (1, 0.7, [50, 50, 70, 70]),  # right
        (0, 0.8, [0, 50, 40, 90]),  # on the crowd: neither
        (1, 0.3, [80, 80, 90, 90]),  # below the score
    ],
    2: [(2, 0.6, [0, 0, 10, 10])],  # on nothing
}
WANTED = {"score": 0.5, "precision": 100 / 3, "recall": 100 / 3, "F1": 100 / 3}
WANTED |= {"recall-a": 0.0, "F1-a": 0.0, "precision-c": 0.0, "F1-c": 0.0}
WANTED |= {"precision-b": 50.0, "recall-b": 50.0, "F1-b": 50.0}
CONFUSED = {"a": {"b": 1}, "b": {"b": 1, NO_CLASS: 1}, NO_CLASS: {"c": 1}}


@pytest.mark.parametrize("tasks", [("bbox",), ("bbox", "segm")])
def test_coco__by_hand(coco_dataset, as_outputs, run, tasks):
    evaluator = CocoEvaluator(coco_dataset(TRUTH, CLASS_NAMES, (9, 5, 7)), tasks)
    run(evaluator, as_outputs(DETECTIONS, masks=len(tasks) > 1))
    for task in tasks:
        assert evaluator.operating_point[task] == pytest.approx(WANTED)
        assert evaluator.confusion[task] == CONFUSED


def test_voc__by_hand(voc_dataset, as_outputs, run):
    evaluator = VocEvaluator(voc_dataset(TRUTH, CLASS_NAMES))
    run(evaluator, as_outputs(DETECTIONS))
    assert evaluator.operating_point["bbox"] == pytest.approx(WANTED)
    assert evaluator.confusion["bbox"] == CONFUSED


def test_coco__without_detections(coco_dataset, as_outputs, run):
    evaluator = CocoEvaluator(coco_dataset(TRUTH, CLASS_NAMES, (9, 5, 7)))
    run(evaluator, as_outputs({1: [], 2: []}))
    found = evaluator.operating_point["bbox"]
    assert found["recall"] == found["F1"] == 0 and "precision" not in found
    assert evaluator.confusion["bbox"] == {"a": {NO_CLASS: 1}, "b": {NO_CLASS: 2}}


@pytest.mark.parametrize("seed", range(4))
def test_coco__as_pycocotools_counts(coco_dataset, as_outputs, run, tmp_path, seed):
    truth, detections = (integer_images(drawn) for drawn in draw_set(seed))
    ids = (9, 5, 7)
    dataset = coco_dataset(truth, CLASS_NAMES, ids)
    evaluator = CocoEvaluator(dataset)
    run(evaluator, as_outputs(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(tmp_path / "truth.json")
        results = [
            {"image_id": i, "category_id": ids[c], "score": score,
             "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for i, found in detections.items()
            for c, score, (x0, y0, x1, y1) in found
            if np.float32(score) >= 0.5
        ]  # fmt: skip
        scored = COCOeval(objects, objects.loadRes(results), "bbox")
        scored.params.iouThrs = np.array([0.5])
        scored.params.areaRng, scored.params.areaRngLbl = [[0, 1e10]], ["all"]
        scored.evaluate()
    counts = np.zeros(3)
    for entry in filter(None, scored.evalImgs):
        counted = ~np.array(entry["dtIgnore"][0], bool)
        hit = np.array(entry["dtMatches"][0], bool) & counted
        counts += [hit.sum(), counted.sum(), (1 - np.array(entry["gtIgnore"])).sum()]
    hits, shown, num_objects = counts
    wanted = (hits / shown, hits / num_objects, 2 * hits / (shown + num_objects))
    found = evaluator.operating_point["bbox"]
    assert [found[rate] for rate in RATES] == pytest.approx([100 * value for value in wanted])
    confused = evaluator.confusion["bbox"]
    of_objects = [n for name, row in confused.items() if name != NO_CLASS for n in row.values()]
    assert sum(of_objects) == num_objects
    of_detections = [row[name] for row in confused.values() for name in row if name != NO_CLASS]
    assert sum(of_detections) == shown
