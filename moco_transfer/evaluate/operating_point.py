"""What a user is shown: precision, recall and F1 of the detections above a score.

A true positive is one at IoU (OKS of keypoints) 0.5, by the rules of the test set's metric; crowds
and difficult objects count as neither. Numbers over all classes count detections, not classes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..data.annotations.catalog import DetectionDataset
from .matches import TaskMatches
from .metric_names import RATES

SCORE = 0.5
IOU = 0.5


def operating_point(matches: TaskMatches, class_names: tuple[str, ...]) -> dict[str, float]:
    """Return ``score`` (0-1), ``RATES`` (0-100), and of each class ``precision-<class>``, ...; what
    cannot be computed, such as a precision without detections, is left out.
    """
    shown = matches.score.astype(np.float32) >= SCORE
    right = shown & matches.hit[0]
    wrong = shown & ~matches.hit[0] & ~matches.ignored[0]
    size = len(class_names)
    hits, errors = (np.bincount(matches.classes[kind], minlength=size) for kind in (right, wrong))
    objects = np.bincount(matches.truth[:, 1], weights=matches.truth[:, 2], minlength=size)
    found = {"score": SCORE, **_rates(hits.sum(), errors.sum(), objects.sum())}
    for counts in zip(class_names, hits, errors, objects, strict=True):
        found |= {f"{rate}-{counts[0]}": value for rate, value in _rates(*counts[1:]).items()}
    return found


def _rates(hits: float, errors: float, objects: float) -> dict[str, float]:
    parts = ((hits, hits + errors), (hits, objects), (2 * hits, hits + errors + objects))
    named = zip(RATES, parts, strict=True)
    return {rate: 100 * float(part / whole) for rate, (part, whole) in named if whole}


def unique_names(dataset: DetectionDataset) -> tuple[str, ...]:
    """Return the names of classes, with the id behind those that occur twice."""
    counts, names = Counter(dataset.class_names), dataset.class_names
    pairs = zip(names, dataset.category_ids, strict=True)
    return tuple(name if counts[name] == 1 else f"{name} (id {number})" for name, number in pairs)
