"""Numbers that tell how contrastive pre-training goes, and sentences for when it does not."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@torch.no_grad()
def describe_contrast(q: Tensor, logits: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """Return what is worth logging of one step, on the device, so that the host need not wait.

    Args:
        q: Query features (N, C), unit norm.
        logits: (N, 1 + K), class 0 the positive.
        temperature: What the similarities were divided by.

    Returns:
        contrast_acc1: share of queries whose positive has the largest logit, (K + 1)-way, 0-100.
        cos_positive, cos_negative: mean cosine of positives and of negatives, [-1, 1].
        feature_spread: sqrt(1 - |mean feature|^2), the standard deviation of the features over the
            batch, [0, 1]: 1 when they point everywhere, 0 when all images have the same feature
            (collapse).
    """
    return {
        "contrast_acc1": (logits.argmax(1) == 0).float().mean() * 100,
        "cos_positive": logits[:, 0].mean() * temperature,
        "cos_negative": logits[:, 1:].mean() * temperature,
        "feature_spread": (1 - q.mean(dim=0).pow(2).sum()).clamp(min=0).sqrt(),
    }


_COLLAPSED = (
    "The features collapse: their spread over a batch is {feature_spread:.3f} (1: spread out, 0:"
    " all images alike), the mean cosine of negatives {cos_negative:.3f}. What usually cures it:"
    " a lower SOLVER.BASE_LR, a higher MOCO.MOMENTUM (0.99 to 0.999), BN in the encoder."
)
_AT_CHANCE = (
    "The loss {loss:.3f} stays at chance, {formula} = {chance:.3f}, {when}: nothing is learned."
    " What usually cures it: a higher MOCO.MOMENTUM (at 0 it does not converge; 0.999, or 0.99 for"
    " short runs), a SOLVER.BASE_LR nearer to 0.03 per 256 images, a smaller MOCO.QUEUE_SIZE,"
    " weaker crops (DATA.CROP_SCALE)."
)
_LEAKING = (
    "The pretext accuracy is {contrast_acc1:.1f} % with K = {negatives}: keys are told by something"
    " other than the image, most often by the BN statistics that a query shares with its key"
    " (Sec. 3.3 and Fig. A.1 of the paper). What usually cures it: MOCO.BN_GROUP_SIZE 32 or less."
)


def chance_formula(loss_scale: float) -> str:
    """Return in words what a loss at chance is: that of uniform logits, for each direction that is
    summed.
    """
    return "ln(K+1)" if loss_scale == 1 else f"{loss_scale:g} ln(K+1)"


class Watch:
    """Says in words when a run's features collapse, its loss stays at chance, or its task leaks.
    Each is said once.

    Args:
        negatives: K.
        patience_iterations: Iterations before anything is judged: one epoch or some thousand
            iterations, and the queue filled.
        loss_scale: Directions whose losses are summed, 2 for the symmetric loss.
    """

    SPREAD_COLLAPSED = 0.05
    NEAR_CHANCE = 0.99  # share of the chance level
    LEAK_ACC1, LEAK_NEGATIVES = 99.5, 1024  # with few negatives a true 100 % is possible
    IN_A_ROW = 3

    def __init__(
        self, *, negatives: int, patience_iterations: int, loss_scale: float = 1.0
    ) -> None:
        self.negatives = negatives
        self.loss_scale = loss_scale
        self.patience_iterations = patience_iterations
        self._in_a_row: dict[str, int] = {}

    def look(self, iteration: int, row: dict[str, float]) -> list[str]:
        """Judge one period's means, and log what is wrong.

        Args:
            iteration: Iterations finished.
            row: ``loss``, ``chance``, ``contrast_acc1``, ``cos_negative``, ``feature_spread``.

        Returns:
            The sentences that were logged, usually none.
        """
        if iteration < self.patience_iterations:
            return []
        collapsed = row["feature_spread"] < self.SPREAD_COLLAPSED
        findings = {
            _COLLAPSED: collapsed,
            _AT_CHANCE: row["loss"] > self.NEAR_CHANCE * row["chance"] and not collapsed,
            _LEAKING: (
                row["contrast_acc1"] > self.LEAK_ACC1 and self.negatives >= self.LEAK_NEGATIVES
            ),
        }
        said = []
        for text, found in findings.items():
            self._in_a_row[text] = self._in_a_row.get(text, 0) + 1 if found else 0
            if self._in_a_row[text] == self.IN_A_ROW:
                sentence = text.format(
                    **row,
                    negatives=self.negatives,
                    formula=chance_formula(self.loss_scale),
                    when=f"after {iteration} iterations",
                )
                logger.warning("%s", sentence)
                said.append(sentence)
        return said
