"""Predictions on disk, and both evaluators on the ground truth of real images given as
predictions.

Mutations that were seen to turn this red: write contiguous class ids; do not shift boxes to
VOC's pixels in the evaluator.
"""

from __future__ import annotations

import pytest
import torch
from random_detections import draw_set, integer_images

from moco_transfer.data.annotations.catalog import get_dataset
from moco_transfer.evaluate.coco_eval import CocoEvaluator, evaluate_results
from moco_transfer.evaluate.predictions import load_predictions
from moco_transfer.evaluate.voc_eval import VocEvaluator
from moco_transfer.runtime.errors import InputError

CLASS_NAMES, CATEGORY_IDS = ("a", "b", "c"), (2, 5, 90)


def test_evaluate_results__from_the_written_file(coco_dataset, as_outputs, run, tmp_path):
    truth, detections = (integer_images(drawn) for drawn in draw_set(4))
    dataset = coco_dataset(truth, CLASS_NAMES, CATEGORY_IDS)
    evaluator = CocoEvaluator(dataset, ("bbox", "segm"), output_file=tmp_path / "results.json")
    metrics = run(evaluator, as_outputs(detections, masks=True))
    results = load_predictions(tmp_path / "results.json")
    assert evaluate_results(results, dataset, ("bbox", "segm")) == metrics


def test_load_predictions__refuses_other_files(tmp_path):
    for text, said in (
        ("{", "is not json"),
        ('{"a": 1}', "not in COCO's result format"),
        ('[{"image_id": 1}]', "not in COCO's result format"),
    ):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(InputError, match=said):
            load_predictions(tmp_path / "p.json")


@pytest.mark.parametrize("name", ["coco_2017_val", "voc_2007_test"])
def test_evaluators__ground_truth_as_predictions_is_100(shared_data, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    dataset = get_dataset(name)
    evaluators = [
        CocoEvaluator(dataset),
        *([VocEvaluator(dataset)] if name == "voc_2007_test" else []),
    ]
    there = set()
    for record in dataset.records:
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        there |= {a["category_id"] for a in objects if not a.get("difficult", 0)}
        output = {
            "boxes": torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4),
            "scores": torch.linspace(0.9, 0.5, len(objects)),
            "classes": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
        }
        for evaluator in evaluators:
            evaluator.process([record], [output])
    metrics = [evaluator.evaluate()["bbox"] for evaluator in evaluators]
    assert metrics[0]["AP"] == pytest.approx(100)
    for found in metrics[1:]:
        for index, class_name in enumerate(dataset.class_names):
            assert found[f"AP-{class_name}"] == pytest.approx(100 if index in there else 0)
