"""AP computed again from the file of matches, and TIDE errors by hand.

Mutations that were seen to turn this red: difficult objects in truth; bits in reverse; Dupe and Bkg
exchanged, Cls and Loc; difficult objects as ordinary ones in TIDE.
"""

from __future__ import annotations

import numpy as np
import pytest
from random_detections import draw_set, integer_images

from moco_transfer.evaluate.coco_eval import CocoEvaluator
from moco_transfer.evaluate.metric_names import TIDE_ERRORS
from moco_transfer.evaluate.voc_ap import voc_ap
from moco_transfer.evaluate.voc_eval import VocEvaluator

CLASS_NAMES = ("a", "b", "c")


def _voc_aps(file, num_classes: int) -> np.ndarray:
    """Return AP (T, C), 0-1, from a file of matches alone."""
    metric, classes, truth = str(file["metric"]), file["bbox/class"], file["bbox/truth"]
    aps = np.zeros((10, num_classes))
    for c in np.unique(truth[:, 1]):
        mine, objects = classes == c, truth[truth[:, 1] == c, 2].sum()
        assert (np.diff(file["bbox/score"][mine]) <= 0).all()
        for t in range(10):
            hit, ignored = (file[f"bbox/{key}"][mine] >> t & 1 for key in ("hit", "ignored"))
            right, decided = np.cumsum(hit), np.cumsum(hit | 1 - ignored)
            precision = right / np.maximum(decided, np.finfo(float).eps)
            aps[t, c] = voc_ap(right / objects, precision, metric == "voc_11")
    return aps


@pytest.mark.parametrize(("year", "metric"), [(2007, "voc_11"), (2012, "voc_area")])
@pytest.mark.parametrize("seed", range(5))
def test_voc_evaluator__ap_of_the_file_of_matches(
    voc_dataset, as_outputs, run, tmp_path, year, metric, seed
):
    truth, detections = draw_set(seed)
    dataset = voc_dataset(truth, (*CLASS_NAMES, "of no object"), year)
    evaluator = VocEvaluator(dataset, tmp_path / "predictions_made.json")
    metrics = run(evaluator, as_outputs(detections))["bbox"]
    assert evaluator.matches == "matches_made.npz" and set(evaluator.tide) == {"bbox"}
    with np.load(tmp_path / evaluator.matches) as file:
        assert file["metric"] == metric
        assert file["image_ids"].tolist() == [r["image_id"] for r in dataset.records]
        assert len(file["bbox/class"]) == sum(map(len, detections.values()))
        easy = [(i, c) for i, found in truth.items() for c, _, difficult in found if not difficult]
        assert file["bbox/truth"][:, 2].sum() == len(easy)
        aps = 100 * _voc_aps(file, len(CLASS_NAMES))
    assert aps.mean() == pytest.approx(metrics["AP"], abs=1e-12)
    assert aps[0].mean() == pytest.approx(metrics["AP50"], abs=1e-12)
    for name, ap in zip(CLASS_NAMES, aps.mean(axis=0), strict=True):
        assert ap == pytest.approx(metrics[f"AP-{name}"], abs=1e-12)


def test_coco_evaluator__writes_matches_next_to_the_predictions(
    coco_dataset, as_outputs, run, tmp_path
):
    truth, detections = (integer_images(drawn) for drawn in draw_set(3))
    dataset = coco_dataset(truth, CLASS_NAMES, (2, 5, 90))
    evaluator = CocoEvaluator(dataset, ("bbox", "segm"), output_file=tmp_path / "predictions.json")
    run(evaluator, as_outputs(detections, masks=True))
    assert {f.name for f in tmp_path.glob("*.npz")} == {evaluator.matches} == {"matches_made.npz"}
    with np.load(tmp_path / evaluator.matches) as file:
        keys = {"image", "class", "score", "hit", "ignored", "truth"}
        named = {f"{task}/{key}" for task in ("bbox", "segm") for key in keys}
        assert set(file.files) == named | {"image_ids", "metric"}
        scores = sorted(score for found in detections.values() for _, score, _ in found)
        assert sorted(file["bbox/score"].tolist()) == pytest.approx(scores, abs=1e-7)
    assert CocoEvaluator(dataset).matches == "", "an evaluator without a file writes none"


def test_voc_evaluator__a_name_with_a_slash(voc_dataset, as_outputs, run, tmp_path):
    truth, detections = draw_set(0)
    dataset = voc_dataset(truth, CLASS_NAMES)
    object.__setattr__(dataset, "name", "b/c")
    evaluator = VocEvaluator(dataset, tmp_path / "predictions_b" / "c.json")
    run(evaluator, as_outputs(detections))
    assert (tmp_path / "predictions_b" / evaluator.matches).is_file()


# Image 1 has a dog, image 2 a cat that is found with score 0.5. Detections of image 1, whether it
# has a second dog, and the points of AP50 that repairing the error gives: the mean of both classes.
FIRST, SECOND, HALF = [0, 0, 40, 40], [60, 60, 90, 90], [24, 0, 64, 40]  # IoU of HALF: 1/4
CASES = {
    # dog 0, cat 1/2 -> both 1
    "classification": ([(1, 0.9, FIRST)], False, 75),
    # dog 0, cat 1 -> both 1
    "localisation": ([(0, 0.9, HALF)], False, 50),
    # dog 0, cat 1/2 -> dog 0, cat 1: the detection goes
    "both": ([(1, 0.9, HALF)], False, 25),
    # 51 recall points at 1, 50 at 2/3 -> 1
    "duplicate": ([(0, 0.9, FIRST), (0, 0.8, FIRST), (0, 0.7, SECOND)], True, 100 / 2 * 50 / 303),
    # dog 1/2 -> 1
    "background": ([(0, 0.9, SECOND), (0, 0.8, FIRST)], False, 25),
    # dog: 51 recall points of 101 -> 1
    "missed": ([(0, 0.9, FIRST)], True, 100 / 2 * 50 / 101),
}


@pytest.mark.parametrize("error", CASES)
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_tide__by_hand(coco_dataset, voc_dataset, as_output, run, error, layout):
    found, with_second, points = CASES[error]
    dogs = [(0, FIRST, False)] + [(0, SECOND, False)] * with_second
    truth = {1: dogs, 2: [(1, FIRST, False)]}
    outputs = {1: as_output(found), 2: as_output([(1, 0.5, FIRST)])}
    # What lies on a crowd region or a difficult object is no error.
    truth[3], outputs[3] = [(0, FIRST, True)], as_output([(0, 0.95, FIRST)])
    evaluator: CocoEvaluator | VocEvaluator
    if layout == "coco":
        evaluator = CocoEvaluator(coco_dataset(truth, ("dog", "cat"), (3, 7)))
    else:
        evaluator = VocEvaluator(voc_dataset(truth, ("dog", "cat")))
    run(evaluator, outputs)
    tide = evaluator.tide["bbox"]
    assert tuple(tide) == TIDE_ERRORS
    assert tide[error] == pytest.approx(points, abs=1e-6)
    assert [name for name, value in tide.items() if value > 1e-6] == [error]
