"""What a run watches: numbers that show how it goes, warnings, and images that cannot be read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..runtime.distributed import all_gather_object, get_world_size, is_main_process
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)

IN_A_ROW = 3  # log periods: one alone may be the workers' start or an epoch's checkpoint
STARVED = 0.2  # share of the time spent waiting for images
SPREAD_COLLAPSED = 0.05
NEAR_CHANCE = 0.99  # share of the chance level
LEAK_ACC1, LEAK_NEGATIVES = 99.5, 1024  # with few negatives a true 100 % is possible


@torch.no_grad()
def describe_contrast(q: Tensor, logits: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """Return what is worth logging of queries (N, C) and their logits (N, 1 + K), on the device.

    Returns:
        contrast_acc1: share of queries whose positive has the largest logit, (K + 1)-way, 0-100.
        cos_positive, cos_negative: mean cosine of positives and of negatives, [-1, 1].
        feature_spread: sqrt(1 - |mean feature|^2), the standard deviation of the features over the
            batch: 1 when they point everywhere, 0 when all are equal (collapse).
    """
    return {
        "contrast_acc1": (logits.argmax(1) == 0).float().mean() * 100,
        "cos_positive": logits[:, 0].mean() * temperature,
        "cos_negative": logits[:, 1:].mean() * temperature,
        "feature_spread": (1 - q.mean(dim=0).pow(2).sum()).clamp(min=0).sqrt(),
    }


def chance_formula(loss_scale: float) -> str:
    """Return the loss of uniform logits, summed over the directions, as a formula."""
    return "ln(K+1)" if loss_scale == 1 else f"{loss_scale:g} ln(K+1)"


_STARVED = (
    "{percent:.0f}% of the time goes into waiting for images. Try, in this order: DATA.NUM_WORKERS"
    " (higher with a GPU, 0 on a CPU); DATA.PIPELINE fast; images packed as raw pixels"
    " (moco-transfer pack); a smaller DATA.IMAGE_SIZE."
)
_COLLAPSED = (
    "The features collapse: their spread over a batch is {feature_spread:.3f} (0: all equal), the"
    " mean cosine of negatives {cos_negative:.3f}. Try a lower SOLVER.BASE_LR, a higher"
    " MOCO.MOMENTUM (0.99 to 0.999), or BN in the encoder."
)
_AT_CHANCE = (
    "The loss {loss:.3f} stays at chance, {formula} = {chance:.3f}, after {iteration} iterations:"
    " nothing is learned. Try a higher MOCO.MOMENTUM (0.999, or 0.99 for short runs; at 0 training"
    " does not converge), a SOLVER.BASE_LR closer to 0.03 per 256 images, a smaller"
    " MOCO.QUEUE_SIZE, or weaker crops (DATA.CROP_SCALE)."
)
_LEAKING = (
    "The pretext accuracy is {contrast_acc1:.1f} % with K = {negatives}: something other than the"
    " image identifies a key, most often the BN statistics that a query shares with its key"
    " (Sec. 3.3 and Fig. A.1 of the paper). Try MOCO.BN_GROUP_SIZE 32 or less."
)


@dataclass
class Watch:
    """Warns when a run starves, its features collapse, its loss stays at chance, or its task leaks.

    Each warning is logged once, after three log periods in a row.
    """

    negatives: int  # K; 0 for supervised training, where only waiting for images is watched
    patience_iterations: int  # before the contrast is judged
    loss_scale: float = 1  # directions whose losses are summed
    _in_a_row: dict[str, list[float]] = field(default_factory=dict)

    def look(self, iteration: int, row: dict[str, float]) -> list[str]:
        """Return and log the warnings due after a log period, of which ``row`` has the means."""
        waited = row["data_wait_share"]
        findings = {_STARVED: waited > STARVED}
        if self.negatives and iteration >= self.patience_iterations:
            collapsed = row["feature_spread"] < SPREAD_COLLAPSED
            findings |= {
                _COLLAPSED: collapsed,
                _AT_CHANCE: row["loss"] > NEAR_CHANCE * row["chance"] and not collapsed,
                _LEAKING: row["contrast_acc1"] > LEAK_ACC1 and self.negatives >= LEAK_NEGATIVES,
            }
        due = []
        for text, found in findings.items():
            shares = self._in_a_row.setdefault(text, [])
            if len(shares) == IN_A_ROW:
                continue  # it was logged
            shares.append(waited)
            if not found:
                shares.clear()
            elif len(shares) == IN_A_ROW:
                facts: dict[str, Any] = {"negatives": self.negatives, "iteration": iteration}
                facts["formula"] = chance_formula(self.loss_scale)
                facts["percent"] = 100 * sum(shares) / IN_A_ROW
                due.append(text.format(**row, **facts))
                logger.warning("%s", due[-1])
        return due


class UnreadableImages:
    """Paths of undecodable images, ``known`` to this process.

    The run fails if they are more than ``max_share`` of ``num_images``.
    """

    def __init__(self, num_images: int, max_share: float, known: list[str]) -> None:
        self.num_images, self.max_share = num_images, max_share
        self.known = set(known)
        self._unshared: list[str] = []

    def note(self, batch: dict[str, Any]) -> None:
        """Note what of a batch could not be read; InputError if a place in it stayed empty."""
        self._unshared += self._add(batch["unreadable"], log=True)
        if batch["given_up"]:
            raise self._too_many()
        if get_world_size() == 1:
            self.share()

    def share(self) -> None:
        """Share the paths; InputError on all processes if they are too many. Collective."""
        self._add(sum(all_gather_object(self._unshared), []), log=is_main_process())
        self._unshared = []
        if len(self.known) > self.max_share * self.num_images:
            raise self._too_many()

    def _add(self, paths: list[str], *, log: bool) -> list[str]:
        new = [path for path in dict.fromkeys(paths) if path not in self.known]
        for path in new:
            self.known.add(path)
            if log:
                logger.warning("skipped unreadable image %s (%d so far)", path, len(self.known))
        return new

    def _too_many(self) -> InputError:
        return InputError(
            f"{len(self.known)} of {self.num_images} images cannot be read, more than"
            f" DATA.MAX_UNREADABLE {self.max_share:g} allows; the first is {min(self.known)}."
            " Repair or remove them, or raise DATA.MAX_UNREADABLE."
        )
