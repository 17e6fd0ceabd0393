"""The weighted kNN classifier on frozen features, and the monitor that runs it during pre-training.

Shapes in this module:
    N: images asked about    M: images of the bank    C: dimension of the features
Source:
    Wu et al. 2018 (InstDisc), arXiv:1805.01978, Sec. 3.4: a neighbour with cosine s votes for its
    class with weight exp(s / T). Settings (k = 200, T = 0.1) and behaviour of the official CIFAR-10
    demo (facebookresearch/moco branch colab-notebook @f736491).
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images.labelled import LabelledBatches
from ..runtime.distributed import average_bn_statistics
from ..runtime.run_folder import StopRequest
from .features import FeatureSet, Precision, extract_features, trunk_of

if TYPE_CHECKING:
    from .trainer import Pretraining

logger = logging.getLogger(__name__)

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
    """Return each class's votes among the k nearest neighbours of each feature.

    Args:
        features: (N, C), float, rows of unit L2 norm.
        bank: (M, C), unit norm.
        bank_labels: int64 (M,), in [0, num_classes).
        num_classes: Number of classes.
        k: Neighbours; the whole bank when it is smaller.
        temperature: T > 0; the smaller, the more the nearest neighbours count.

    Returns:
        (N, num_classes): the sum of exp((s - s_max) / T) over the neighbours of a class, s the
        cosine and s_max the nearest one's. The common factor exp(s_max / T) is left out, so that a
        small T does not overflow; it changes no order.

    Raises:
        ValueError: If k or temperature is not positive.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k and temperature must be positive, got {k} and {temperature}.")
    scores = features.new_zeros(len(features), num_classes)
    rows = max(1, _SIMILARITIES // len(bank))
    for start in range(0, len(features), rows):
        similarity, nearest = (features[start : start + rows] @ bank.T).topk(
            min(k, len(bank)), dim=1
        )  # (rows, k), falling
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
        scores[start : start + rows].scatter_add_(1, bank_labels[nearest], votes)
    return scores


def knn_accuracy(
    train: FeatureSet, test: FeatureSet, *, k: int, temperature: float
) -> dict[str, float]:
    """Return the share of test images, in percent, whose class is the first (``top1``) or among
    the first five (``top5``).

    Args:
        train: The bank; its features need not have unit norm.
        test: The images asked about, labels numbered as in the bank.
        k: Neighbours.
        temperature: T of the votes.
    """
    num_classes = len(train.class_names)
    scores = knn_scores(
        F.normalize(test.features, dim=1),
        F.normalize(train.features, dim=1),
        train.labels,
        num_classes=num_classes,
        k=k,
        temperature=temperature,
    )
    ranked = scores.argsort(dim=1, descending=True)
    hits = ranked == test.labels[:, None]
    asked = len(test.labels)
    return {
        "top1": 100 * hits[:, 0].sum().item() / asked,
        "top5": 100 * hits[:, :5].any(1).sum().item() / asked,
    }


class KnnMonitor:
    """Classifies a labelled folder by the features of the run's query encoder, every n epochs.

    Args:
        train: The bank's images.
        test: The images asked about.
        period_epochs: Epochs from one measurement to the next; the end of the run is always
            measured.
        k, temperature: See :func:`knn_scores`.
        features: ``head`` (what the encoder puts out, as in the official demo) or ``trunk`` (the
            pooled features before the head).
    """

    def __init__(
        self,
        train: LabelledBatches,
        test: LabelledBatches,
        *,
        period_epochs: int,
        k: int,
        temperature: float,
        features: str,
    ) -> None:
        self.train = train
        self.test = test
        self.period_epochs = period_epochs
        self.k = k
        self.temperature = temperature
        self.features = features

    def __call__(self, run: Pretraining, stop: StopRequest) -> dict[str, float]:
        """Return ``knn_top1`` in percent and ``knn_sec``, or nothing when no measurement is due.
        Collective.

        Args:
            run: Whose encoder is measured, after its last finished iteration.
            stop: Ends the measurement.

        Raises:
            Stopped: If any process was told to stop.
        """
        epoch = math.ceil(run.iteration / run.iterations_per_epoch)
        if epoch % self.period_epochs and run.iteration != run.max_iterations:
            return {}
        since = time.perf_counter()
        encoder = run.model.encoder_q
        average_bn_statistics(encoder)
        network: nn.Module = encoder if self.features == "head" else trunk_of(encoder)
        precision = Precision(run.device, run.amp_dtype, run.channels_last)
        train = extract_features(network, self.train, precision, description="kNN bank", stop=stop)
        test = extract_features(network, self.test, precision, description="kNN test", stop=stop)
        top1 = knn_accuracy(train, test, k=self.k, temperature=self.temperature)["top1"]
        elapsed = time.perf_counter() - since
        logger.info(
            "epoch %d/%d kNN top-1 %.2f %% (k %d, T %g, %d in the bank, %d asked, %.0f s)",
            epoch,
            run.epochs,
            top1,
            self.k,
            self.temperature,
            len(train.labels),
            len(test.labels),
            elapsed,
        )
        return {"knn_top1": top1, "knn_sec": elapsed}
