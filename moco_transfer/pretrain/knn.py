"""The weighted kNN classifier on frozen features, and how pre-training is measured by it.

N: images to classify    M: images of the bank    C: dimension of the features
Source:
    Wu et al. 2018 (InstDisc), arXiv:1805.01978, Sec. 3.4. Settings and behaviour of the official
    CIFAR-10 demo (facebookresearch/moco branch colab-notebook @f736491).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.views.labelled import LabelledBatches
from ..runtime.device import Compute
from ..runtime.distributed import average_bn_statistics
from ..runtime.stop import StopRequest
from .features import FeatureSet, extract_features, top1_and_top5, trunk_of

_SIMILARITIES = 2**26  # entries of the similarity matrix held at once, 256 MB


def knn_scores(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Tensor:
    """Return each class's votes among the k nearest neighbours of each feature (or all M).

    ``features`` (N, C) and ``bank`` (M, C): rows of unit norm. ``bank_labels``: int64 (M,).

    Returns:
        (N, num_classes): the sum of exp((s - s_max) / T) over the neighbours of a class, s the
        cosine and s_max the nearest one's, which keeps a small T from overflowing.
    """
    scores = features.new_zeros(len(features), num_classes)
    rows = max(1, _SIMILARITIES // len(bank))
    for start in range(0, len(features), rows):
        cosines = features[start : start + rows] @ bank.T
        similarity, nearest = cosines.topk(min(k, len(bank)), dim=1)  # (rows, k), falling
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
        scores[start : start + rows].scatter_add_(1, bank_labels[nearest], votes)
    return scores


def knn_accuracy(
    train: FeatureSet, test: FeatureSet, *, k: int, temperature: float
) -> dict[str, float]:
    """Return ``top1`` and ``top5``, percent, of the kNN classifier with the bank ``train``."""
    features, bank = (F.normalize(each.features, dim=1) for each in (test, train))
    classes = len(train.class_names)
    scores = knn_scores(
        features, bank, train.labels, num_classes=classes, k=k, temperature=temperature
    )
    return top1_and_top5(scores.argsort(dim=1, descending=True), test.labels)


@dataclass(frozen=True)
class KnnPlan:
    """The kNN measurements of a run, every ``period_epochs`` and at the end."""

    train: LabelledBatches  # the bank
    test: LabelledBatches
    period_epochs: int
    k: int
    temperature: float
    features: str  # head: the encoder's output, as in the official demo; trunk: pooled, before it

    def describe(self) -> str:
        """Return the plan in words."""
        sizes = f"{len(self.test.images)} images, bank of {len(self.train.images)}"
        votes = f"k {self.k}, T {self.temperature:g}, {self.features} features"
        return f"top-1 on {sizes}, {votes}, every {self.period_epochs} epoch(s)"

    def measure(self, encoder: nn.Module, compute: Compute, stop: StopRequest) -> dict[str, float]:
        """Return ``knn_top1`` in percent and ``knn_sec``; raises FeaturesStopped. Collective."""
        since = time.perf_counter()
        average_bn_statistics(encoder)
        network = encoder if self.features == "head" else trunk_of(encoder)
        train, test = (
            extract_features(network, batches, compute, description=name, stop=stop)
            for name, batches in (("kNN bank", self.train), ("kNN test", self.test))
        )
        top1 = knn_accuracy(train, test, k=self.k, temperature=self.temperature)["top1"]
        return {"knn_top1": top1, "knn_sec": time.perf_counter() - since}
