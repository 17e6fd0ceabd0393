"""The VOC evaluator against Detectron2's: live, and against its numbers in
fixtures/detectron2_voc.json (see make_fixtures.py).

Mutations that were seen to turn this red: do not round scores; round boxes to 0 digits; add 1 to
xmax; use the area for 2007; take AP50 from IoU 0.55; mean over thresholds of AP50 alone; add 1 in
float64.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2_numbers import voc_numbers
from random_detections import draw_set

from moco_transfer.evaluate import predictions
from moco_transfer.evaluate.coco_eval import CocoEvaluator
from moco_transfer.evaluate.predictions import load_predictions
from moco_transfer.evaluate.voc_eval import VocEvaluator, round_as_text
from moco_transfer.runtime.errors import InputError

CLASS_NAMES = ("a", "b", "c")
FIXTURE = Path(__file__).parent / "fixtures" / "detectron2_voc.json"


def _ours(voc_dataset, as_output, run, truth, detections, year, class_names=CLASS_NAMES):
    evaluator = VocEvaluator(voc_dataset(truth, class_names, year))
    return run(evaluator, {image_id: as_output(found) for image_id, found in detections.items()})[
        "bbox"
    ]


@pytest.mark.parametrize(
    "row", json.loads(FIXTURE.read_text()), ids=lambda row: f"{row['seed']}-{row['year']}"
)
def test_voc_evaluator__equals_detectron2s_stored_numbers(voc_dataset, as_output, run, row):
    truth, detections = draw_set(row["seed"], ties=False)
    ours = _ours(voc_dataset, as_output, run, truth, detections, row["year"])
    for key in ("AP", "AP50", "AP75"):
        assert ours[key] == pytest.approx(row[key], abs=1e-9)
    assert 1 < row["AP"] < 99


def _compare_live(tmp_path, voc_dataset, as_output, run, seeds, **drawn):
    for seed in seeds:
        truth, detections = draw_set(seed, **drawn)
        year = 2007 if seed % 2 else 2012
        names = tuple("abcdefghij"[: drawn.get("num_classes", 3)])
        theirs = voc_numbers(tmp_path / str(seed), truth, detections, names, year)
        ours = _ours(voc_dataset, as_output, run, truth, detections, year, names)
        for key in ("AP", "AP50", "AP75"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-9), (seed, key)
        assert np.mean(
            [value for key, value in ours.items() if key.startswith("AP-")]
        ) == pytest.approx(theirs["AP"], abs=1e-9)


@pytest.mark.detectron2
def test_voc_evaluator__equals_detectron2(tmp_path, voc_dataset, as_output, run):
    _compare_live(tmp_path, voc_dataset, as_output, run, range(1000, 1025))


@pytest.mark.detectron2
@pytest.mark.slow
def test_voc_evaluator__equals_detectron2_on_1000_sets(tmp_path, voc_dataset, as_output, run):
    _compare_live(tmp_path, voc_dataset, as_output, run, range(2000, 2950))
    _compare_live(
        tmp_path, voc_dataset, as_output, run, range(3000, 3050), num_images=40, num_classes=8
    )


@pytest.mark.detectron2
def test_voc_evaluator__detectron2_counts_an_absent_class_as_0_or_has_no_number(
    tmp_path, voc_dataset, as_output, run
):
    truth, detections = draw_set(5)
    names = (*CLASS_NAMES, "never")
    detections["000000"] = [*detections["000000"], (3, 0.9, [1.0, 2.0, 30.0, 40.0])]
    theirs = voc_numbers(tmp_path / "x", truth, detections, names, 2007)
    ours = _ours(voc_dataset, as_output, run, truth, detections, 2007, names)
    assert ours["AP"] * 3 / 4 == pytest.approx(theirs["AP"], abs=1e-9)
    assert np.isnan(voc_numbers(tmp_path / "y", truth, detections, names, 2012)["AP"])


@pytest.mark.parametrize("year", [2007, 2012, None])
def test_absent_class__is_left_out_of_the_mean_by_both_metrics(
    voc_dataset, as_output, run, caplog, year
):
    """``bar`` is difficult, and so does not count by VOC's metric; by COCO's it is not there."""
    difficult = [(1, [20, 20, 40, 40], True)] if year else []
    truth = {"1": [(0, [0, 0, 10, 10], False), *difficult], "2": [(0, [5, 5, 25, 25], False)]}
    found = {
        "1": as_output([(0, 0.9, [0, 0, 10, 10]), (1, 0.9, [50, 50, 60, 60])]),
        "2": as_output([(0, 0.8, [5, 5, 25, 25])]),
    }
    dataset = voc_dataset(truth, ("disc", "bar"), year or 2012)
    evaluator = VocEvaluator(dataset) if year else CocoEvaluator(dataset)
    with caplog.at_level(logging.WARNING):
        metrics = run(evaluator, found)["bbox"]
    assert [metrics[key] for key in ("AP", "AP50", "AP75")] == pytest.approx([100, 100, 100])
    assert [key for key in metrics if key.startswith("AP-")] == ["AP-disc"]
    assert "no ground truth for 1 of its 2 classes (bar)" in caplog.text


def test_voc_evaluator__scores_in_0_based_boxes_by_hand(voc_dataset, as_output, run):
    # One of two dogs found exactly, with 0-based corners; one cat found, with a wrong one before
    # it.
    truth = {
        "1": [(0, [0, 0, 10, 10], False), (0, [20, 20, 40, 40], False)],
        "2": [(1, [5, 5, 25, 25], False)],
    }
    outputs = {
        "1": as_output([(0, 0.9, [0, 0, 10, 10])]),
        "2": as_output([(1, 0.8, [60, 60, 90, 90]), (1, 0.7, [5, 5, 25, 25])]),
    }
    metrics = run(VocEvaluator(voc_dataset(truth, ("dog", "cat"), 2012)), outputs)
    # dog: area .5 at every IoU; cat: precision 1/2 at recall 1, area .5.
    assert metrics == {
        "bbox": {"AP": 50.0, "AP50": 50.0, "AP75": 50.0, "AP-dog": 50.0, "AP-cat": 50.0}
    }
    metrics = run(VocEvaluator(voc_dataset(truth, ("dog", "cat"), 2007)), outputs)
    # 11 points: dog 6/11 (recall 0 ... .5), cat 11 * .5 / 11.
    assert metrics["bbox"]["AP-dog"] == pytest.approx(100 * 6 / 11)
    assert metrics["bbox"]["AP-cat"] == pytest.approx(50)


def test_voc_evaluator__adds_1_in_float32_before_rounding(voc_dataset, as_output, run):
    # x0 + 1 is 1.25 in float32, which rounds to even, 1.2: IoU 4.8 / 5, right at every threshold.
    # In float64 it would be a little more, 1.3: IoU 4.7 / 5, wrong at .95.
    evaluator = VocEvaluator(voc_dataset({"1": [(0, [0, 0, 5, 1], False)]}, ("dog",)))
    metrics = run(evaluator, {"1": as_output([(0, 0.5, [0.25000003, 0, 5, 1])])})
    assert metrics["bbox"]["AP"] == pytest.approx(100)


def test_voc_evaluator__gathers_over_processes(voc_dataset, as_outputs, run, monkeypatch):
    truth, detections = draw_set(7)
    dataset = voc_dataset(truth, CLASS_NAMES)
    outputs, shares = list(as_outputs(detections).items()), []
    expected = run(VocEvaluator(dataset), dict(outputs))
    monkeypatch.setattr(predictions, "gather_object", lambda obj: shares.append(obj) or [])
    monkeypatch.setattr(predictions, "is_main_process", lambda: False)
    assert run(VocEvaluator(dataset), dict(outputs[5:])) == {}
    monkeypatch.setattr(predictions, "gather_object", lambda obj: [obj, *shares])
    monkeypatch.setattr(predictions, "is_main_process", lambda: True)
    assert run(VocEvaluator(dataset), dict(outputs[:5])) == expected


def test_voc_evaluator__no_predictions_are_a_number_and_a_sentence(
    voc_dataset, as_output, run, caplog
):
    dataset = voc_dataset({"1": [(0, [0, 0, 10, 10], False)]}, ("dog",))
    with caplog.at_level(logging.WARNING):
        assert run(VocEvaluator(dataset), {"1": as_output([])})["bbox"] == {
            "AP": 0,
            "AP50": 0,
            "AP75": 0,
            "AP-dog": 0,
        }
    assert "The model predicted nothing on made, so every AP is 0" in caplog.text
    caplog.clear()
    assert VocEvaluator(dataset).evaluate()["bbox"]["AP"] == 0
    assert "Only 0 of the 1 images of made were evaluated" in caplog.text


def test_voc_evaluator__refuses_what_does_not_fit(voc_dataset, as_output):
    evaluator = VocEvaluator(voc_dataset({"1": [(0, [0, 0, 10, 10], False)]}, ("dog",)))
    with pytest.raises(
        InputError, match=r"predicts class 1, but the data set has 1 classes \(0 to 0\)"
    ):
        evaluator.process([{"image_id": "1"}], [as_output([(1, 0.5, [0, 0, 1, 1])])])


def test_voc_evaluator__writes_its_predictions(voc_dataset, as_output, run, tmp_path):
    dataset = voc_dataset({"1": [(0, [0, 0, 10, 10], False)]}, ("dog",))
    run(
        VocEvaluator(dataset, tmp_path / "predictions.json"),
        {"1": as_output([(0, 0.5, [1, 2, 11, 22])])},
    )
    assert load_predictions(tmp_path / "predictions.json") == [
        {"image_id": "1", "category_id": 0, "bbox": [1, 2, 10, 20], "score": 0.5}
    ]


def test_voc_evaluator__coco_style_beside_its_own_metric(voc_dataset, as_output, run):
    truth, detections = draw_set(4)
    outputs = {image_id: as_output(found) for image_id, found in detections.items()}
    dataset = voc_dataset(truth, CLASS_NAMES)
    both = run(VocEvaluator(dataset, coco_style=True), outputs)
    assert both["bbox"] == run(VocEvaluator(dataset), outputs)["bbox"]
    assert both["bbox_coco"] == pytest.approx(
        run(CocoEvaluator(dataset), outputs)["bbox"], abs=1e-9
    )
    assert (
        both["bbox_coco"]["AP"] != pytest.approx(both["bbox"]["AP"], abs=0.1)
        and "AR100" in both["bbox_coco"]
    )


@pytest.mark.parametrize("digits", [1, 3])
def test_round_as_text__equals_the_text_for_ties_and_random_numbers(digits):
    rng = np.random.default_rng(0)
    ties = (
        (np.arange(-4000, 4000) + 0.5) / 2**digits / 10
    )  # among them numbers half way between two decimals
    values = np.concatenate(
        [rng.random(20000) * 500, ties, [0.25, 0.0625, 0.1875, 1e7 + 0.25]]
    ).astype(np.float32)
    assert round_as_text(values, digits).tolist() == [
        float(f"{value:.{digits}f}") for value in values
    ]


def test_voc_evaluator__takes_half_precision_and_double(voc_dataset, as_output, run):
    truth, detections = draw_set(3)
    outputs = {image_id: as_output(found) for image_id, found in detections.items()}
    whole = run(VocEvaluator(voc_dataset(truth, CLASS_NAMES)), outputs)
    double = {
        i: {**o, "boxes": o["boxes"].double(), "scores": o["scores"].double()}
        for i, o in outputs.items()
    }
    assert run(VocEvaluator(voc_dataset(truth, CLASS_NAMES)), double) == whole
    half = {i: {**o, "scores": o["scores"].to(torch.bfloat16)} for i, o in outputs.items()}
    assert np.isfinite(run(VocEvaluator(voc_dataset(truth, CLASS_NAMES)), half)["bbox"]["AP"])
