"""AP with weights of the images, as the report's bootstrap computes it from a file of matches,
against an evaluation of the drawn images themselves, those drawn twice copied.

COCO's reference is pycocotools; VOC's is voc_eval, which has Detectron2's numbers.
Seen red under: a class without drawn objects counted in the mean;
ignored detections counted as wrong; the ignored ones of other classes or thresholds subtracted;
precision not the best at a higher recall; a recall point reached with > for >=; the best precision
of the next class taken over.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_coco import draw_coco, read_without_images
from random_detections import draw_set, enlarged, integer_images

from moco_transfer.evaluate.coco_eval import CocoEvaluator, CocoScores
from moco_transfer.evaluate.metric_names import AP_TASKS
from moco_transfer.evaluate.voc_eval import VocEvaluator
from moco_transfer.report.bootstrap import Ranking

CLASS_NAMES = ("a", "b", "c", "of no object")
CATEGORY_IDS = (2, 5, 90, 91)


def _ranking(folder, kind, num_images):
    with np.load(folder / "matches_made.npz") as file:
        found = {name.split("/")[1]: file[name] for name in file.files if name.startswith(kind)}
        return Ranking(found, np.arange(num_images), str(file["metric"]))


def _draw(seed, num_images):
    """Return samples of image numbers; with few images, a class may have no object."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, num_images, size) for size in (num_images, num_images, 5)]


def _weights(samples, num_images):
    counts = [np.bincount(drawn, minlength=num_images) for drawn in samples]
    return np.stack(counts, axis=1).astype(np.int32)


def _copies(drawn, images):
    """Return {number: what belongs to the image} for drawn image numbers, in rising order."""
    values = list(images.values())
    return {number: values[image] for number, image in enumerate(sorted(drawn), start=1)}


def _pycocotools_ap(truth, detections, kind):
    boxes = [(image, *a) for image, objects in truth.items() for a in objects]
    annotations = [
        {"id": n, "image_id": image, "category_id": CATEGORY_IDS[c], "iscrowd": int(crowd)}
        | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        for n, (image, c, (x0, y0, x1, y1), crowd) in enumerate(boxes, start=1)
    ]
    results = [
        {"image_id": image, "category_id": CATEGORY_IDS[c], "score": score}
        | {
            "bbox": [
                x0,
                y0,
                *(float(np.float32(b) - np.float32(a)) for a, b in ((x0, x1), (y0, y1))),
            ]
        }
        for image, found in detections.items()
        for c, score, (x0, y0, x1, y1) in found
    ]
    api = COCO()
    api.dataset = {
        "info": {},
        "images": [{"id": image, "height": 100, "width": 100} for image in truth],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in CATEGORY_IDS],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
        scored = COCOeval(api, api.loadRes(results), kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return 100 * scored.stats[0]


@pytest.mark.parametrize("seed", range(8))
def test_coco__ap_of_drawn_images_is_that_of_pycocotools(
    coco_dataset, as_outputs, run, tmp_path, seed
):
    drawn_set = draw_set(seed, ties=False)
    truth, detections = (integer_images(drawn) for drawn in drawn_set)
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    run(CocoEvaluator(dataset, output_file=tmp_path / "predictions.json"), as_outputs(detections))
    samples = _draw(seed, len(truth))
    expected = [
        _pycocotools_ap(_copies(drawn, truth), _copies(drawn, detections), "bbox")
        for drawn in samples
    ]
    aps = _ranking(tmp_path, "bbox", len(truth)).aps(_weights(samples, len(truth)))
    assert aps.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(8))
def test_voc__ap_of_drawn_images_is_that_of_the_evaluator(
    voc_dataset, as_outputs, run, tmp_path, year, seed
):
    truth, detections = draw_set(seed, ties=False)
    evaluator = VocEvaluator(voc_dataset(truth, CLASS_NAMES, year), tmp_path / "predictions.json")
    run(evaluator, as_outputs(detections))
    samples, expected = _draw(seed, len(truth)), []
    for drawn in samples:
        copies = voc_dataset(_copies(drawn, truth), CLASS_NAMES, year)
        found = as_outputs(_copies(drawn, detections))
        expected.append(run(VocEvaluator(copies), found)["bbox"]["AP"])
    aps = _ranking(tmp_path, "bbox", len(truth)).aps(_weights(samples, len(truth)))
    assert aps.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_all_images__ap_is_the_evaluators_with_ties_and_crowds(
    coco_dataset, voc_dataset, as_outputs, run, tmp_path, seed
):
    drawn_set = draw_set(seed, num_images=30)
    truth, detections = (enlarged(integer_images(drawn)) for drawn in drawn_set)
    once = np.ones((len(truth), 1), np.int32)
    tasks = ("bbox", "segm")
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    evaluator = CocoEvaluator(dataset, tasks, output_file=tmp_path / "predictions.json")
    metrics = run(evaluator, as_outputs(detections, masks=True))
    for kind in tasks:
        ap = _ranking(tmp_path, kind, len(truth)).aps(once)[0]
        assert ap == pytest.approx(metrics[kind]["AP"], abs=1e-12)
    for year in (2007, 2012):
        dataset = voc_dataset(truth, CLASS_NAMES, year)
        evaluator = VocEvaluator(dataset, tmp_path / "predictions.json")
        metrics = run(evaluator, as_outputs(detections))
        ap = _ranking(tmp_path, "bbox", len(truth)).aps(once)[0]
        assert ap == pytest.approx(metrics["bbox"]["AP"], abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_all_images__ap_of_boxes_masks_and_keypoints(tmp_path, seed):
    content, results = draw_coco(seed)
    dataset = read_without_images(content, tmp_path)
    scores = CocoScores(results, dataset)
    once = np.ones((len(dataset.records), 1), np.int32)
    for task in AP_TASKS:
        ranking = Ranking(scores.matches(task).arrays(), np.arange(len(once)), "coco")
        expected = scores.metrics(task).get("AP", np.nan)
        assert ranking.aps(once)[0] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_ap__of_nothing():
    nothing = np.zeros(0, np.int32)
    found = {name: nothing for name in ("image", "class", "score")}
    found |= {name: nothing.astype(np.uint16) for name in ("hit", "ignored")}
    objects = np.array([[0, 0, 2]], np.int32)
    weight = np.ones((2, 1), np.int32)
    assert Ranking(found | {"truth": objects}, np.arange(2), "coco").aps(weight) == [0]
    assert Ranking(found | {"truth": objects}, np.arange(2), "voc_area").aps(weight) == [0]
    of_none = Ranking(found | {"truth": objects[:0]}, np.arange(2), "coco")
    assert np.isnan(of_none.aps(weight)), "no object, no AP"
