"""Which anchor or proposal stands for which object, and which of them are trained on.

Shapes in this module:
    G: ground-truth objects of one image    R: anchors or proposals of the same image
Conventions:
    Labels are 1 (object), 0 (background), -1 (ignored). Sampling draws from torch's global
    generator.
Source:
    Ren et al. 2015, arXiv:1506.01497, Sec. 3.1.2. Behaviour checked against
    facebookresearch/detectron2@02b5c4e detectron2/modeling/matcher.py and sampling.py; the draws
    are made in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def match(
    iou: Tensor, *, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Match every anchor or proposal to the object that it overlaps most.

    Args:
        iou: (G, R), intersection over union.
        thresholds: Ascending; they cut the best IoU into len(thresholds) + 1 intervals, each closed
            below.
        labels: Label of each interval, from the lowest.
        allow_low_quality: Also label 1 whatever overlaps some object as much as the best one for
            that object does.

    Returns:
        index: (R,) int64, the object in [0, G); 0 without objects.
        label: (R,) int64.
    """
    num_objects, num_regions = iou.shape
    if num_objects == 0:
        index = torch.zeros(num_regions, dtype=torch.int64, device=iou.device)
        return index, torch.full_like(index, labels[0])
    best, index = iou.max(dim=0)
    cuts = torch.tensor(thresholds, device=iou.device, dtype=iou.dtype)
    label = torch.tensor(labels, device=iou.device)[torch.bucketize(best, cuts, right=True)]
    if allow_low_quality:
        # Only the label changes: the region keeps the object that it overlaps most, which may be
        # another one.
        label[(iou == iou.max(dim=1, keepdim=True).values).any(dim=0)] = 1
    return index, label


def sample(
    labels: Tensor, *, num_samples: int, positive_fraction: float, background: int
) -> tuple[Tensor, Tensor]:
    """Draw positives and negatives at random.

    Args:
        labels: (R,) int64: ``background``, -1 for ignored, anything else is a positive.
        num_samples: How many to draw together; negatives fill up where positives are short.
        positive_fraction: Largest share of positives, in [0, 1].
        background: The label of a negative.

    Returns:
        Indices of the drawn positives and of the drawn negatives, each in random order.
    """
    is_background = labels == background
    positives = torch.nonzero(~is_background & (labels != -1)).squeeze(1)
    negatives = torch.nonzero(is_background).squeeze(1)
    num_positives = min(positives.numel(), int(num_samples * positive_fraction))
    num_negatives = min(negatives.numel(), num_samples - num_positives)
    drawn_positives = torch.randperm(positives.numel(), device=labels.device)[:num_positives]
    drawn_negatives = torch.randperm(negatives.numel(), device=labels.device)[:num_negatives]
    return positives[drawn_positives], negatives[drawn_negatives]
