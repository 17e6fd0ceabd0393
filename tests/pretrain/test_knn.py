"""The kNN classifier against a slow reference in plain Python and against the official demo's
function.

The official function's answers (``OFFICIAL_*``) were computed outside this repository, by
``knn_predict`` of the demo's notebook (facebookresearch/moco branch colab-notebook @f736491) on the
features that ``demo_features`` draws.

Seen red under: votes exp(s * T); without taking off the nearest cosine (overflow at a small T);
    every vote 1; the bank not normalised; neighbours
counted from the wrong row in the second part of the queries.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco_transfer.pretrain import knn
from moco_transfer.pretrain.features import FeatureSet
from moco_transfer.pretrain.knn import knn_accuracy, knn_scores

OFFICIAL_PREDICTIONS = [
    0,
    2,
    2,
    6,
    3,
    5,
    4,
    0,
    1,
    2,
    2,
    4,
    4,
    6,
    5,
    0,
    0,
    6,
    4,
    2,
    3,
    3,
    5,
    2,
    0,
    4,
    5,
    3,
    2,
    1,
    4,
    3,
    2,
    5,
    1,
    0,
    1,
    2,
    3,
    0,
]
OFFICIAL_SECOND = [
    1,
    3,
    5,
    3,
    5,
    4,
    3,
    2,
    0,
    5,
    1,
    3,
    5,
    1,
    0,
    1,
    1,
    3,
    5,
    1,
    6,
    2,
    1,
    1,
    2,
    5,
    3,
    0,
    0,
    2,
    2,
    2,
    5,
    2,
    6,
    2,
    0,
    5,
    5,
    3,
]


def demo_features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 40 queries, a bank of 300 features in 7 blurred classes, and the bank's labels;
    float32, unit norm, the same on every machine.
    """
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((7, 16))
    labels = rng.integers(0, 7, 300)
    bank = centres[labels] + 2 * rng.standard_normal((300, 16))
    queries = centres[np.arange(40) % 7] + 2 * rng.standard_normal((40, 16))
    unit = [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (queries, bank)
    ]
    return unit[0], unit[1], labels


def slow_scores(
    query: list[float],
    bank: list[list[float]],
    labels: list[int],
    num_classes: int,
    k: int,
    temperature: float,
) -> list[float]:
    """InstDisc Sec. 3.4, one number at a time in float64."""
    cosines = []
    for i, row in enumerate(bank):
        dot = sum(a * b for a, b in zip(query, row, strict=True))
        cosines.append(
            (dot / math.sqrt(sum(a * a for a in query)) / math.sqrt(sum(b * b for b in row)), i)
        )
    votes = [0.0] * num_classes
    for cosine, i in sorted(cosines, reverse=True)[:k]:
        votes[labels[i]] += math.exp(cosine / temperature)
    return votes


@pytest.mark.parametrize(
    ("k", "temperature"), [(1, 0.1), (30, 0.1), (200, 0.1), (200, 0.5), (1000, 0.07)]
)
def test_knn_scores__equal_a_slow_float64_reference(k, temperature):
    queries, bank, labels = demo_features()
    got = knn_scores(
        torch.from_numpy(queries).double(),
        torch.from_numpy(bank).double(),
        torch.from_numpy(labels),
        num_classes=7,
        k=k,
        temperature=temperature,
    )
    for query, scores in zip(queries.tolist(), got.tolist(), strict=True):
        expected = slow_scores(query, bank.tolist(), labels.tolist(), 7, k, temperature)
        # A common factor per query is left out; shares of the votes do not have it.
        assert [s / sum(scores) for s in scores] == pytest.approx(
            [e / sum(expected) for e in expected], rel=1e-5, abs=1e-12
        )


def test_knn_scores__order_the_classes_as_the_official_demo_does():
    queries, bank, labels = (torch.from_numpy(x) for x in demo_features())
    ranked = knn_scores(queries, bank, labels, num_classes=7, k=200, temperature=0.1).argsort(
        1, descending=True
    )
    assert ranked[:, 0].tolist() == OFFICIAL_PREDICTIONS
    assert ranked[:, 1].tolist() == OFFICIAL_SECOND


def test_knn_scores__in_parts_and_with_a_small_temperature(monkeypatch):
    queries, bank, labels = (torch.from_numpy(x) for x in demo_features())
    whole = knn_scores(queries, bank, labels, num_classes=7)
    monkeypatch.setattr(knn, "_SIMILARITIES", 300 * 7)  # seven queries at a time; 40 is no multiple
    torch.testing.assert_close(knn_scores(queries, bank, labels, num_classes=7), whole)
    cold = knn_scores(
        queries, bank, labels, num_classes=7, temperature=1e-3
    )  # exp(1 / 1e-3) would overflow
    assert bool(torch.isfinite(cold).all())
    nearest = labels[(queries @ bank.T).argmax(1)]
    assert torch.equal(cold.argmax(1), nearest)


def test_knn_accuracy__known_numbers_and_norms_that_do_not_matter():
    angle = torch.tensor([0.0, 0.2, 1.5, 1.7])
    bank = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [50.0], [1.0], [0.1]])
    train = FeatureSet(bank, torch.tensor([0, 0, 1, 1]), ("a", "b"), 0)
    asked = torch.tensor([0.1, 1.6, 1.4, 0.3])
    test = FeatureSet(
        3 * torch.stack([asked.cos(), asked.sin()], 1), torch.tensor([0, 1, 1, 1]), ("a", "b"), 0
    )
    assert knn_accuracy(train, test, k=2, temperature=0.1) == {
        "top1": 75.0,
        "top5": 100.0,
    }  # the last has its neighbours in a


def test_knn_accuracy__of_random_features_is_chance():
    generator = torch.Generator().manual_seed(0)
    train, test = (
        FeatureSet(
            F.normalize(torch.randn(n, 8, generator=generator)),
            torch.randint(0, 4, (n,), generator=generator),
            tuple("abcd"),
            0,
        )
        for n in (400, 2000)
    )
    assert knn_accuracy(train, test, k=20, temperature=0.1)["top1"] == pytest.approx(25, abs=4)
