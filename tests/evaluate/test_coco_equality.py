"""Equality with pycocotools on the json file, and AP computed again from the file of matches.

Mutations that were seen to turn this red: no crowds; the area of the box for that of the object;
the box kept when masks are evaluated; keypoints half a pixel off; images in reverse order; hits
that are ignored; ignored objects in truth; equal scores in reverse order; boxes not rounded.
"""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_coco import draw_coco, read_without_images

from moco_transfer.evaluate.coco_eval import CocoScores
from moco_transfer.evaluate.matches import write_matches
from moco_transfer.evaluate.metric_names import AP_TASKS, BBOX_METRICS, RECALL_METRICS, class_metric

NAMES = {task: (*BBOX_METRICS, *RECALL_METRICS) for task in ("bbox", "segm")}
NAMES["keypoints"] = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
KEYS = {"bbox": ["bbox"], "segm": ["segmentation"], "keypoints": ["bbox", "keypoints"]}
SIGMAS = tuple(np.linspace(0.02, 0.15, 17).tolist())
TOLERANCE = 1e-12


def _reference(json_file, results, task, sigmas=()):
    """Return pycocotools' numbers, 0-100, with each class's AP."""
    common = ("image_id", "category_id", "score")
    mine = [{key: result[key] for key in (*common, *KEYS[task])} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        found = truth.loadRes(mine) if mine else COCO()
        if not mine:
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        scored = COCOeval(truth, found, task)
        if sigmas:
            scored.params.kpt_oks_sigmas = np.array(sigmas)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    numbers = {n: 100 * v for n, v in zip(NAMES[task], scored.stats, strict=True) if v >= 0}
    for index, category in enumerate(scored.params.catIds if task != "keypoints" else []):
        values = scored.eval["precision"][:, :, index, 0, -1]
        if (values > -1).any():
            name = truth.cats[category]["name"]
            numbers[class_metric(name)] = 100 * float(np.mean(values[values > -1]))
    return numbers


def ap_of_matches(file, task) -> dict[str, float]:
    """Return COCO's AP over all images and AP50, 0-100, from a file of matches alone."""
    eps, points = np.spacing(1), np.linspace(0, 1, 101)
    classes, truth, aps = file[f"{task}/class"], file[f"{task}/truth"], []
    assert file["metric"] == "coco"
    for c in np.unique(truth[:, 1]):
        mine, objects = classes == c, truth[truth[:, 1] == c, 2].sum()
        for t in range(10):
            hit, ignored = (file[f"{task}/{key}"][mine] >> t & 1 for key in ("hit", "ignored"))
            right, wrong = np.cumsum(hit), np.cumsum((1 - hit) * (1 - ignored))
            precision = np.append(right / (right + wrong + eps), 0)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            aps.append(best[np.searchsorted(right / objects, points, side="left")].mean())
    if not aps:
        return {}
    aps = np.reshape(aps, (-1, 10))
    return {"AP": 100 * float(aps.mean()), "AP50": 100 * float(aps[:, 0].mean())}


def check_one(seed: int, folder) -> int:
    """Hold one set against pycocotools; return how many numbers were compared."""
    content, results = draw_coco(seed)
    dataset, compared = read_without_images(content, folder), 0
    sigmas = SIGMAS if seed % 2 else ()
    scores = CocoScores(results, dataset, oks_sigmas=sigmas)
    for task in AP_TASKS:
        expected = _reference(dataset.json_file, results, task, sigmas)
        metrics = scores.metrics(task)
        assert metrics.keys() == expected.keys(), (seed, task)
        for name, value in expected.items():
            assert abs(metrics[name] - value) < TOLERANCE, (seed, task, name)
        compared += len(expected)
    by_task = {task: scores.matches(task) for task in AP_TASKS}
    write_matches(folder / "matches.npz", scores.image_ids, "coco", by_task)
    with np.load(folder / "matches.npz") as file:
        for task in AP_TASKS:
            metrics = scores.metrics(task)
            again = ap_of_matches(file, task)
            assert {"AP", "AP50"} & metrics.keys() == again.keys(), (seed, task)
            for name, value in again.items():
                assert abs(metrics[name] - value) < TOLERANCE * 100, (seed, task, name)
    return compared


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_sets__equal_pycocotools(tmp_path, first):
    assert sum(check_one(seed, tmp_path) for seed in range(first, first + 10)) > 200


def test_boxes__are_those_of_the_file(tmp_path):
    # The object ends at 10.19999981 in the record, a float32. IoU is 102 / 204, exactly 0.5.
    image = {"id": 1, "file_name": "1.jpg", "height": 50, "width": 50}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10.2, 10], "iscrowd": 0}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": [thing]}
    dataset = read_without_images(content, tmp_path)
    assert dataset.records[0]["annotations"][0]["bbox"][2] < 10.2
    found = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0.0, 0.0, 16.0, 12.75]}
    metrics = CocoScores([found], dataset).metrics("bbox")
    assert metrics["AP50"] == pytest.approx(100) and metrics["AP"] == pytest.approx(10)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 1040, 100))
def test_a_thousand_random_sets__equal_pycocotools(tmp_path, first):
    assert sum(check_one(seed, tmp_path) for seed in range(first, first + 100)) > 2000


@pytest.mark.parametrize("seed", range(3))
def test_without_hotcoco__the_same_numbers_and_matches(tmp_path, monkeypatch, seed):
    content, results = draw_coco(seed)
    dataset = read_without_images(content, tmp_path)
    theirs = CocoScores(results, dataset)
    expected = {t: (theirs.metrics(t), theirs.matches(t).arrays()) for t in AP_TASKS}
    assert all(theirs.tide(task) for task in AP_TASKS)
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # cannot be imported
    ours = CocoScores(results, dataset)
    for task, (metrics, arrays) in expected.items():
        assert ours.metrics(task) == pytest.approx(metrics, abs=1e-12)
        for name, array in ours.matches(task).arrays().items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=f"{task} {name}")
        assert ours.tide(task) == {}
