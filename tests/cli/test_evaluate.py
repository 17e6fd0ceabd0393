"""Detections of other programs: the same numbers as a run's own, a row of our table, one sentence
for a file that does not fit.

Numbers come from pycocotools, and from the run whose predictions are evaluated again.

Seen red under: boxes taken for corners; ids that are not looked up, or a list as one; keypoints not
moved to continuous coordinates; another program's row without its mark.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torchvision
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from moco_transfer.cli.main import main
from moco_transfer.data.annotations import catalog
from moco_transfer.evaluate.predictions import to_coco_results

from .test_lint_and_own_data import train_words

SIDE, CATEGORIES = 64, (3, 7)


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    monkeypatch.setattr(catalog, "_OWN", {})


@pytest.fixture
def ground_truth(tmp_path):
    """Four images with boxes and masks of two classes; returns the path of the file."""
    rng = np.random.default_rng(0)
    images = [
        {"id": 10 + n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in range(4)
    ]
    annotations = []
    for number in range(16):
        x, y, w, h = map(float, (*rng.integers(0, 30, 2), *rng.integers(8, 30, 2)))
        annotations.append(
            {"id": number + 1, "image_id": 10 + number % 4, "category_id": CATEGORIES[number % 2]}
            | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        )
    for image in images:
        (tmp_path / image["file_name"]).touch()
    names = [{"id": i, "name": f"class {i}"} for i in CATEGORIES]
    content = {"images": images, "annotations": annotations, "categories": names}
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    return file


def shifted(truth, *, masks=True):
    """Return the objects, moved by up to 6 px, as detections."""
    rng, results = np.random.default_rng(1), []
    for a in json.loads(truth.read_text())["annotations"]:
        x, y, w, h = (np.array(a["bbox"]) + rng.uniform(-3, 3, 4)).tolist()
        found = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": [x, y, w, h]}
        if masks:
            mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
            mask[round(y) : round(y + h), max(round(x), 0) : round(x + w)] = 1
            rle = mask_api.encode(mask)
            found["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        results.append(found | {"score": float(rng.uniform(0.3, 1))})
    return results


def evaluate(results, truth, output, *options):
    file = truth.parent / "found.json"
    file.write_text(json.dumps(results))
    where = f"mine=coco:{truth}:{truth.parent}"
    words = ["--predictions", file, "--dataset", where, "--output", output, *options]
    return main(["evaluate", *map(str, words)])


def test_evaluate__equals_pycocotools(ground_truth, tmp_path):
    results = shifted(ground_truth)
    assert evaluate(results, ground_truth, tmp_path / "run") == 0
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    truth = COCO(str(ground_truth))
    for task in ("bbox", "segm"):
        # With a box, pycocotools takes the area of a mask's box.
        mine = [{k: v for k, v in r.items() if task == "bbox" or k != "bbox"} for r in results]
        scored = COCOeval(truth, truth.loadRes(copy.deepcopy(mine)), task)
        scored.evaluate(), scored.accumulate(), scored.summarize()
        assert 10 < 100 * scored.stats[0] < 90
        for name, value in zip(("AP", "AP50", "AP75"), scored.stats, strict=False):
            assert record["metrics"][task][name] == pytest.approx(100 * value, abs=1e-9)
    assert record["tide"]["mine"]["bbox"] and record["confusion"]["mine"]["segm"]
    assert record["operating_point"]["mine"]["bbox"]["recall"] > 0
    assert (tmp_path / "run" / record["matches"]["mine"]).exists()


def test_evaluate__keypoints_equal_pycocotools(tmp_path):
    rng, annotations, results = np.random.default_rng(2), [], []
    for number in range(12):
        corner, size = rng.integers(0, 30, 2), rng.integers(12, 30, 2)
        places = corner + rng.uniform(0, 1, (17, 2)).round(2) * size
        found = places + rng.normal(0, 1, (17, 2))
        box = [*map(float, (*corner, *size))]
        where = {"image_id": 10 + number % 4, "category_id": 1, "bbox": box}
        one = np.ones((17, 1))
        points = {"keypoints": np.hstack([places, 2 * one]).ravel().tolist(), "num_keypoints": 17}
        extent = {"id": number + 1, "area": float(size.prod()), "iscrowd": 0}
        annotations.append(where | points | extent)
        shown = {"keypoints": np.hstack([found, one]).ravel().tolist()}
        results.append(where | shown | {"score": float(rng.uniform(0.3, 1))})
    images = [{"id": 10 + n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(4)]
    for image in images:
        (tmp_path / image["file_name"]).touch()
    names = [f"point {n}" for n in range(17)]
    person = {"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2]]}
    content = {"images": images, "annotations": annotations, "categories": [person]}
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    assert evaluate(results, file, tmp_path / "run", "--kinds", "keypoints") == 0
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["keypoints"]
    truth = COCO(str(file))
    scored = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
    scored.evaluate(), scored.accumulate(), scored.summarize()
    assert 10 < 100 * scored.stats[0] < 90
    for name, value in zip(("AP", "AP50", "AP75"), scored.stats, strict=False):
        assert metrics[name] == pytest.approx(100 * value, abs=1e-9)


def test_evaluate__a_runs_own_predictions_give_its_results(scenes, tmp_path, capsys):
    first, again = tmp_path / "random", tmp_path / "again"
    assert main(train_words(scenes, first)) == 0
    where = f"lint_test=voc:{scenes}:test:{scenes / 'classes.txt'}"
    file = first / "predictions_lint_test.json"
    words = ["--predictions", file, "--dataset", where, "--output", again, "--name", "random"]
    assert main(["evaluate", *map(str, words)]) == 0
    ours, theirs = (json.loads((f / "results.json").read_text()) for f in (first, again))
    for key in ("metrics", "tide", "operating_point", "confusion", "matches"):
        assert theirs[key] == ours[key] and ours[key]
    assert json.loads((again / file.name).read_text()) == json.loads(file.read_text())
    # One table, in which the row of the same name is not averaged with ours.
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    rows = [line for line in table.splitlines() if line.startswith("| random")]
    assert [row.split(" | ")[0] for row in rows] == ["| random", "| random (other)†"]
    assert "predictions of another program" in table and rows[1].rstrip(" |").endswith("other")
    assert "6 iterations, 1 process" in table


def torchvision_results(truth):
    """Return what an untrained Faster R-CNN of torchvision finds on noise, by its own labels."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, box_score_thresh=0.0
    ).eval()
    results = []
    for image in json.loads(truth.read_text())["images"]:
        with torch.inference_mode():
            (found,) = model([torch.rand(3, SIDE, SIDE)])
        found["classes"] = found.pop("labels") - 1  # 0 is its background
        results += to_coco_results(image["id"], found, CATEGORIES)
    return results


def test_evaluate__torchvisions_detector_is_a_row_of_our_table(ground_truth, tmp_path, capsys):
    results = torchvision_results(ground_truth)
    assert evaluate(results, ground_truth, tmp_path / "out" / "tv", "--name", "supervised") == 0
    shared = {"config_hash": "ab", "engine": "torchvision", "norm": "BN", "iterations": 9}
    for seed, ap in enumerate((10.0, 11.0, 12.0)):
        folder = tmp_path / "out" / f"moco{seed}"
        record = json.loads((tmp_path / "out" / "tv" / "results.json").read_text()) | shared
        del record["predictions"], record["matches"]
        record |= {"task": "cells", "init": "moco", "seed": seed, "metrics": {"bbox": {"AP": ap}}}
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert table.count("| init") == 1 and "| supervised†" in table and "9 iterations" in table
    assert "no run with seed" not in table
    # No baseline of its own accord, though it is called supervised.
    assert "--baseline NAME" in table
    assert main(["report", str(tmp_path / "out"), "--baseline", "supervised"]) == 0
    assert "Δ AP" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "out"), "--format", "html", "--output", str(page)]) == 0
    assert "predictions of another program" in page.read_text()


def change(place, key, value):
    def of(results):
        results[place][key] = value
        return results

    return of


def drop(key):
    return lambda results: [{k: v for k, v in r.items() if k != key} for r in results]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (drop("score"), "16 of 16 detections have no 'score'"),
        (change(2, "score", "high"), "detection 2 has the score 'high'"),
        (change(3, "image_id", 99), "1 of 16 detections have a image_id"),
        (change(3, "image_id", "10"), "such as '10'; it has 10, 11, 12, 13"),
        (change(4, "category_id", 0), "such as 0; it has 3, 7"),
        (change(4, "category_id", True), "such as True"),
        (change(4, "image_id", [10]), "such as [10]"),
        (
            change(5, "segmentation", [[1, 2, 3, 4, 5, 6]]),
            "detection 5: its segmentation is a list",
        ),
        (change(5, "segmentation", {"size": [64, 32], "counts": "0"}), "[height, width] [64, 64]"),
        (change(6, "bbox", [1, 2, -3, 4]), "detection 6: its bbox is [1, 2, -3, 4]"),
        (lambda results: {"annotations": results, "images": []}, "is an annotation file"),
        (lambda results: [1, 2], "is no JSON list of objects"),
    ],
)
def test_evaluate__one_sentence_for_another_file(ground_truth, tmp_path, capsys, of, said):
    assert evaluate(of(shifted(ground_truth)), ground_truth, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error and "found.json" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_evaluate__masks_that_only_some_detections_have(ground_truth, tmp_path, capsys):
    results = shifted(ground_truth)
    del results[0]["segmentation"]
    assert evaluate(results, ground_truth, tmp_path / "boxes") == 0
    assert [*json.loads((tmp_path / "boxes" / "results.json").read_text())["metrics"]] == ["bbox"]
    assert evaluate(results, ground_truth, tmp_path / "run", "--kinds", "bbox", "segm") == 2
    assert "1 of 16 detections have no 'segmentation'" in capsys.readouterr().err


def test_evaluate__never_into_a_run(ground_truth, tmp_path, capsys):
    assert evaluate([], ground_truth, tmp_path / "run") == 0
    assert evaluate([], ground_truth, tmp_path / "run") == 2
    assert "already holds a run" in capsys.readouterr().err
