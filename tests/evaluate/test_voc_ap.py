"""VOC AP on cases worked out by hand.

Mutations that were seen to turn this red: >= for > at the threshold; widths without + 1; count
    difficult boxes; take the second
detection of an object for correct; 10 points for 11; no envelope; order by rising score; match the
first box and not the best.
"""

from __future__ import annotations

import numpy as np
import pytest

from moco_transfer.evaluate.voc_ap import (
    VocDetections,
    VocGroundTruth,
    best_overlaps,
    judge,
    recall_precision,
    voc_ap,
    voc_eval,
)


def _truth(boxes, *, classes=None, images=None, difficult=None):
    n = len(boxes)
    return VocGroundTruth(
        np.array(boxes, float).reshape(-1, 4),
        np.array(classes or [0] * n),
        np.array(images or [0] * n),
        np.array(difficult or [False] * n, bool),
    )


def _found(boxes, scores, *, classes=None, images=None):
    n = len(boxes)
    return VocDetections(
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores, float),
        np.array(classes or [0] * n),
        np.array(images or [0] * n),
    )


def _ap50(found, truth, use_11_points=False):
    return _aps(found, truth, 1, use_11_points, thresholds=(0.5,))[0, 0]


def _aps(found, truth, num_classes, use_11_points=False, **settings):
    settings |= {"num_classes": num_classes, "use_11_points": use_11_points}
    return voc_eval(found, truth, **settings)[0]


def test_voc_ap__area_and_11_points_by_hand():
    # Right, wrong, right, with 2 objects: recall .5 .5 1, precision 1 1/2 2/3; the envelope is 1 up
    # to recall .5, then 2/3.
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert voc_ap(recall, precision, False) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-12)
    # Recall 0, .1 ... .5: 6 points at 1; .6 ... 1: 5 points at 2/3.
    assert voc_ap(recall, precision, True) == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-12)
    # Wrong, right, right: precision 0 1/2 2/3 rises, so the envelope is 2/3 throughout.
    assert voc_ap(np.array([0, 0.5, 1.0]), np.array([0, 0.5, 2 / 3]), False) == pytest.approx(
        2 / 3, abs=1e-12
    )
    # Recall stops at .5: 6 points at 1, the rest at 0; the area ends there too.
    assert voc_ap(np.array([0.5]), np.array([1.0]), True) == pytest.approx(6 / 11, abs=1e-12)
    assert voc_ap(np.array([0.5]), np.array([1.0]), False) == pytest.approx(0.5, abs=1e-12)
    for use_11_points in (True, False):
        assert voc_ap(np.zeros(0), np.zeros(0), use_11_points) == 0


def test_voc_eval__iou_at_the_threshold_is_wrong_and_widths_are_inclusive():
    # 10 x 10 against its left half 5 x 10, both inclusive from 1: IoU = 50 / 100, not more than
    # 0.5.
    assert _ap50(_found([[1, 1, 5, 10]], [0.9]), _truth([[1, 1, 10, 10]])) == 0
    # Six columns: 60 / 100 > 0.5. (Without the + 1 of inclusive edges it would be 5 * 9 / 81 =
    # 0.556; and 1..5.6 would be 4.6 * 9 / 81 = 0.511, but is 5.6 * 10 / 100 = 0.56; both agree
    # here, the next case tells them apart.)
    assert _ap50(_found([[1, 1, 6, 10]], [0.9]), _truth([[1, 1, 10, 10]])) == 1
    # 1..1 against 1..1, one pixel: IoU 1 with inclusive edges, 0 / 0 without.
    assert _ap50(_found([[1, 1, 1, 1]], [0.9]), _truth([[1, 1, 1, 1]])) == 1


def test_voc_eval__a_second_detection_of_an_object_is_wrong():
    box = [1, 1, 10, 10]
    # Right, wrong (duplicate), right: as in the first test, 5/6.
    found = _found([box, box, [21, 1, 30, 10]], [0.9, 0.8, 0.7])
    assert _ap50(found, _truth([box, [21, 1, 30, 10]])) == pytest.approx(5 / 6, abs=1e-12)
    # The one with the higher score takes the object, though it overlaps less: the exact one is then
    # the duplicate.
    found = _found([box, [1, 1, 10, 9]], [0.8, 0.9])
    overlap, best = best_overlaps(
        found.boxes[::-1], found.images, np.array([box], float), np.zeros(1, int)
    )
    verdicts = judge(overlap, best, np.array([False]), threshold=0.5)
    recall, precision = recall_precision(*verdicts, 1)
    assert recall.tolist() == [1, 1]
    assert precision.tolist() == [1, 0.5]


def test_voc_eval__a_detection_counts_for_its_best_box_alone():
    # Both detections lie best on the first box; the second box, though IoU with it is 8/12 > .5,
    # stays unfound.
    first, second = [1, 1, 10, 10], [3, 1, 12, 10]
    found = _found([first, first], [0.9, 0.8])
    # Right, wrong: recall .5 .5, precision 1 .5: area .5.
    assert _ap50(found, _truth([first, second])) == pytest.approx(0.5, abs=1e-12)


def test_voc_eval__difficult_boxes_count_as_nothing():
    easy, hard = [1, 1, 10, 10], [21, 1, 30, 10]
    truth = _truth([easy, hard], difficult=[False, True])
    # Two detections of the difficult box before the right one: neither right nor wrong, so
    # precision is 1 at recall 1.
    assert _ap50(_found([hard, hard, easy], [0.9, 0.8, 0.7]), truth) == 1
    # None found: the difficult box is not missed; the easy one is.
    assert _ap50(_found([hard], [0.9]), truth) == 0


def test_voc_eval__looks_in_the_same_image_and_class_only():
    box = [1, 1, 10, 10]
    truth = _truth([box, box], classes=[0, 1], images=[4, 2])
    same = _aps(_found([box], [0.9], classes=[1], images=[2]), truth, 2)
    assert same[0].tolist() == [0, 1]
    for image in (4, 9):
        assert _aps(_found([box], [0.9], classes=[1], images=[image]), truth, 2).max() == 0


def test_voc_eval__all_thresholds():
    # 8 of 10 columns: IoU exactly 0.8, so right at .50 ... .75 and wrong from .80 on.
    aps = _aps(_found([[1, 1, 8, 10]], [0.9]), _truth([[1, 1, 10, 10]]), 1)
    assert aps[:, 0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_voc_eval__nothing_there_or_nothing_found_is_0():
    box = [1, 1, 10, 10]
    for use_11_points in (True, False):
        assert _ap50(_found([], []), _truth([box]), use_11_points) == 0
        assert _ap50(_found([box], [0.5]), _truth([]), use_11_points) == 0
        assert _ap50(_found([box], [0.5]), _truth([box], difficult=[True]), use_11_points) == 0


def test_best_overlaps__first_of_equal_boxes_and_nan():
    truth = np.array([[1, 1, 5, 5], [1, 1, 10, 10], [1, 1, 10, 10]], float)
    boxes = np.array([[1, 1, 10, 10], [np.nan, 1, 2, 2], [1, 1, 10, 10]], float)
    overlap, best = best_overlaps(boxes, np.array([0, 0, 1]), truth, np.array([0, 0, 0]))
    assert overlap[0] == 1 and best[0] == 1
    assert np.isnan(overlap[1])
    assert overlap[2] == -np.inf and best[2] == -1
