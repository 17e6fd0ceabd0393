"""Names of the metrics and their order; imports nothing, so that the report needs no torch.

All metrics lie on 0-100. ``AP`` is the mean over IoU 0.50, 0.55, ..., 0.95, ``AP50`` and ``AP75``
are at one IoU; s, m, l are objects of less than 32^2, less than 96^2, and more px^2; ``AR1/10/100``
is the recall with that many detections an image. A metric that cannot be computed (no ground truth
of that size or class) is left out, never NaN.
"""

from __future__ import annotations

AP_TASKS = ("bbox", "segm", "keypoints")
"""Tasks that `coco_eval` measures: AP of boxes, masks, keypoints."""

TASKS = (*AP_TASKS, "densepose", "sem_seg")
"""These, dense pose and semantic segmentation: keys of results.json's ``metrics``."""

BBOX_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Of boxes and masks, in tables; VOC has the first three."""
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl")
"""Of keypoints, and of dense pose by the geodesic point similarity (GPS) in place of IoU."""

LVIS_METRICS = (*BBOX_METRICS, "APr", "APc", "APf")
"""Of boxes and masks of LVIS; the last are of rare, common and frequent classes."""

SEMANTIC_METRICS = ("mIoU", "fwIoU", "mACC", "pACC")
"""Of semantic segmentation, as Detectron2 names them: IoU averaged over classes and, weighted by
their pixels, over classes; accuracy averaged over classes; accuracy of all pixels."""

RECALL_METRICS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""After BBOX_METRICS they complete COCO's twelve numbers in pycocotools' order."""

TIDE_ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Kinds of errors in results.json's ``tide``: AP50, 0-100, that repairing one would give."""

RATES = ("precision", "recall", "F1")
"""Of the detections above a score, 0-100: results.json's ``operating_point``."""

NO_CLASS = "(none)"
"""In ``confusion``: no object where a detection is, or no detection where an object is."""

_CLASS_PREFIXES = ("AP-", "IoU-", "ACC-")


def headline_metric(task: str) -> str:
    """Return the metric that a task is judged by."""
    return SEMANTIC_METRICS[0] if task == "sem_seg" else BBOX_METRICS[0]


def class_metric(class_name: str, task: str = "bbox") -> str:
    """Return the name of the metric of one class, such as ``AP-dog``, ``IoU-dog`` of sem_seg."""
    return ("IoU-" if task == "sem_seg" else "AP-") + class_name


def class_accuracy(class_name: str) -> str:
    """Return the name of one class's accuracy in semantic segmentation, such as ``ACC-dog``."""
    return f"ACC-{class_name}"


def is_class_metric(metric: str) -> bool:
    """Whether a metric's name is that of one class."""
    return metric.startswith(_CLASS_PREFIXES)
