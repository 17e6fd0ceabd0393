"""Names of the metrics and their order; imports nothing, so that the report needs no torch.

All metrics lie on 0-100. ``AP`` is the mean over IoU 0.50, 0.55, ..., 0.95, ``AP50`` and ``AP75``
are at one IoU; s, m, l are objects of less than 32^2, less than 96^2, and more px^2; ``AR1/10/100``
is the recall with that many detections an image. A metric that cannot be computed (no ground truth
of that size or class) is left out, never NaN.
"""

from __future__ import annotations

TASKS = ("bbox", "segm", "keypoints")
"""Boxes, masks, keypoints: keys of results.json's ``metrics``."""

BBOX_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Of boxes and masks, in tables; VOC has the first three."""
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl")

LVIS_METRICS = (*BBOX_METRICS, "APr", "APc", "APf")
"""Of boxes and masks of LVIS; the last are of rare, common and frequent classes."""

RECALL_METRICS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""After BBOX_METRICS they complete COCO's twelve numbers in pycocotools' order."""

TIDE_ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Kinds of errors in results.json's ``tide``: AP50, 0-100, that repairing one would give."""

RATES = ("precision", "recall", "F1")
"""Of the detections above a score, 0-100: results.json's ``operating_point``."""

NO_CLASS = "(none)"
"""In ``confusion``: no object where a detection is, or no detection where an object is."""

_CLASS_PREFIX = "AP-"


def class_metric(class_name: str) -> str:
    """Return the name of one class's AP, such as ``AP-dog``."""
    return _CLASS_PREFIX + class_name


def is_class_metric(metric: str) -> bool:
    """Whether a metric's name is one class's AP."""
    return metric.startswith(_CLASS_PREFIX)
