"""VOC's average precision as Detectron2 defines it, for all classes and IoU thresholds, on arrays.

Shapes in this module:
    D: detections    G: ground-truth boxes    C: classes    T: IoU thresholds
Conventions:
    Boxes are VOC's: pixels counted from 1, both edges inclusive, so a box is xmax - xmin + 1 wide.
    Detections of a class are taken by falling score. One is correct when its best box of that
    class in its image overlaps by strictly more than the threshold and was not taken before; a
    second one on the same box is wrong; one whose best box is difficult does not count.
Source:
    voc_eval and voc_ap of facebookresearch/detectron2@02b5c4e evaluation/pascal_voc_evaluation.py.
    The best box does not depend on the threshold, so here it is found once. Difference: a class
    without ground truth gets 0, where Detectron2's area metric gives NaN if it has detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matches import TaskMatches

IOU_THRESHOLDS = tuple(percent / 100.0 for percent in range(50, 100, 5))
"""IoU 0.50, 0.55, ..., 0.95, each the double that Detectron2 compares with."""


@dataclass(frozen=True)
class VocGroundTruth:
    """Boxes of a test set."""

    boxes: np.ndarray  # (G, 4) float64
    classes: np.ndarray  # (G,) int
    images: np.ndarray  # (G,) int
    difficult: np.ndarray  # (G,) bool


@dataclass(frozen=True)
class VocDetections:
    """Detections in the order they were made."""

    boxes: np.ndarray  # (D, 4) float64
    scores: np.ndarray  # (D,) float64
    classes: np.ndarray  # (D,) int
    images: np.ndarray  # (D,) int


def voc_ap(recall: np.ndarray, precision: np.ndarray, use_11_points: bool) -> float:
    """Return the average precision, 0-1, of recall and precision (D,) after each detection.

    ``use_11_points`` takes VOC 2007's mean over recall 0, 0.1, ..., 1 instead of the area.
    """
    if use_11_points:
        # Best precision at this recall or a higher one; 0 for recalls that are never reached.
        best_from = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        at = np.searchsorted(recall, np.arange(0.0, 1.1, 0.1), side="left")
        return float(sum(best_from[at] / 11.0))
    recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([0.0], precision, [0.0]))[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


def voc_eval(
    detections: VocDetections,
    truth: VocGroundTruth,
    *,
    num_classes: int,
    use_11_points: bool,
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
) -> tuple[np.ndarray, TaskMatches]:
    """Return each class's AP at each IoU threshold, (T, C), 0-1, 0 for a class without objects; and
    the matches that it follows from.
    """
    aps = np.zeros((len(thresholds), num_classes))
    of_class = _positions_by_class(detections.classes, num_classes)
    truth_of_class = _positions_by_class(truth.classes, num_classes)
    order, hits, ignored = [], [], []
    for index, (mine, theirs) in enumerate(zip(of_class, truth_of_class, strict=True)):
        # Not a stable sort: with tied scores the order, and so the AP, is then Detectron2's.
        mine = mine[np.argsort(-detections.scores[mine])]
        found = detections.boxes[mine], detections.images[mine]
        overlap, best = best_overlaps(*found, truth.boxes[theirs], truth.images[theirs])
        difficult = truth.difficult[theirs]
        verdicts = [judge(overlap, best, difficult, threshold=t) for t in thresholds]
        order.append(mine)
        hits.append(np.array([hit for hit, _ in verdicts]))
        ignored.append(np.array([neither for _, neither in verdicts]))
        num_objects = int((~difficult).sum())
        if num_objects == 0 or len(mine) == 0:
            continue
        for row, (hit, neither) in enumerate(verdicts):
            curve = recall_precision(hit, neither, num_objects)
            aps[row, index] = voc_ap(*curve, use_11_points)
    positions = np.concatenate(order)
    return aps, TaskMatches(
        image=detections.images[positions],
        classes=detections.classes[positions],
        score=detections.scores[positions],
        hit=np.concatenate(hits, axis=1),
        ignored=np.concatenate(ignored, axis=1),
        truth=_count_objects(truth, num_classes),
    )


def _count_objects(truth: VocGroundTruth, num_classes: int) -> np.ndarray:
    """Return (N, 3): image, class, and how many of its objects there are not difficult."""
    counted = ~truth.difficult
    place, counts = np.unique(
        truth.images[counted] * num_classes + truth.classes[counted], return_counts=True
    )
    return np.stack([place // num_classes, place % num_classes, counts], axis=1)


def _positions_by_class(classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    order = np.argsort(classes, kind="stable")
    bounds = np.searchsorted(classes[order], np.arange(num_classes + 1))
    return [order[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def best_overlaps(
    boxes: np.ndarray, images: np.ndarray, truth_boxes: np.ndarray, truth_images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each detection of a class the ground-truth box of its image that it overlaps most.

    Boxes are (D, 4) and (G, 4), images (D,) and (G,). Returns IoU (D,), -inf without a box, and the
    index (D,) of the box, the first of equal ones, -1 without.
    """
    by_image = np.argsort(truth_images, kind="stable")
    first = np.searchsorted(truth_images[by_image], images, side="left")
    counts = np.searchsorted(truth_images[by_image], images, side="right") - first
    overlap, best = np.full(len(boxes), -np.inf), np.full(len(boxes), -1)
    some = np.flatnonzero(counts)
    if len(some) == 0:
        return overlap, best
    counts, first = counts[some], first[some]
    starts = np.cumsum(counts) - counts
    # All pairs (detection, box of its image); a detection's pairs lie next to each other.
    truth_index = by_image[np.repeat(first - starts, counts) + np.arange(counts.sum())]
    ious = _iou(boxes[np.repeat(some, counts)], truth_boxes[truth_index])
    overlap[some] = np.maximum.reduceat(ious, starts)
    is_best = (ious == np.repeat(overlap[some], counts)) | np.isnan(ious)
    candidates = np.flatnonzero(is_best)
    best[some] = truth_index[candidates[np.searchsorted(candidates, starts)]]
    return overlap, best


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (P,) of pairs of boxes; the order of the sums is Detectron2's, for equal rounding."""
    width = np.maximum(np.minimum(b[:, 2], a[:, 2]) - np.maximum(b[:, 0], a[:, 0]) + 1.0, 0.0)
    height = np.maximum(np.minimum(b[:, 3], a[:, 3]) - np.maximum(b[:, 1], a[:, 1]) + 1.0, 0.0)
    intersection = width * height
    area_a = (a[:, 2] - a[:, 0] + 1.0) * (a[:, 3] - a[:, 1] + 1.0)
    area_b = (b[:, 2] - b[:, 0] + 1.0) * (b[:, 3] - b[:, 1] + 1.0)
    return intersection / (area_a + area_b - intersection)


def judge(
    overlap: np.ndarray, best: np.ndarray, difficult: np.ndarray, *, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections (D,) of one class are right, and which are neither right nor wrong.

    ``overlap`` and ``best`` (D,), by falling score, are those of ``best_overlaps``. Boxes that are
    ``difficult`` (G,) do not count.
    """
    found = overlap > threshold
    neither = np.zeros(len(overlap), dtype=bool)
    neither[found] = difficult[best[found]]
    # The first detection on a box takes it: of repeated indices the last assignment stays.
    claims = np.flatnonzero(found & ~neither)[::-1]
    taken_by = np.full(len(difficult), -1)
    taken_by[best[claims]] = claims
    right = np.zeros(len(overlap), dtype=bool)
    right[taken_by[taken_by >= 0]] = True
    return right, neither


def recall_precision(
    right: np.ndarray, neither: np.ndarray, num_objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision (D,) after each detection of one class, from :func:`judge`."""
    true_positives = np.cumsum(right, dtype=np.float64)
    false_positives = np.cumsum(~(right | neither), dtype=np.float64)
    # All detections so far may be on difficult boxes: neither right nor wrong.
    decided = np.maximum(true_positives + false_positives, np.finfo(np.float64).eps)
    return true_positives / float(num_objects), true_positives / decided
