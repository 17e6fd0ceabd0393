"""What a run watches: numbers that show how it goes, warnings, and images that cannot be read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..runtime.distributed import all_gather_object, get_world_size
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)

IN_A_ROW = 3  # log periods: one alone may be the workers' start or an epoch's checkpoint
STARVED = 0.2  # share of the time spent waiting for images
SPREAD_COLLAPSED = 0.05
NEAR_CHANCE = 0.99  # share of the chance level
WARNINGS: dict[str, str] = yaml.safe_load(
    Path(__file__).with_name("warnings.yaml").read_text(encoding="utf-8")
)
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


@dataclass
class Watch:
    """Warns when a run starves, its features collapse, its loss stays at chance, or its task leaks.

    Each warning is logged once, after three log periods in a row.
    """

    negatives: int  # K; 0 for supervised training, where only waiting for images is watched
    patience_iterations: int  # before the contrast is judged
    _in_a_row: dict[str, list[float]] = field(default_factory=dict)

    def look(self, iteration: int, row: dict[str, float]) -> list[str]:
        """Return and log the warnings due after a log period, of which ``row`` has the means."""
        waited = row["data_wait_share"]
        findings = {"starved": waited > STARVED}
        if self.negatives and iteration >= self.patience_iterations:
            collapsed = row["feature_spread"] < SPREAD_COLLAPSED
            findings |= {
                "collapsed": collapsed,
                "at_chance": row["loss"] > NEAR_CHANCE * row["chance"] and not collapsed,
                "leaking": row["contrast_acc1"] > LEAK_ACC1 and self.negatives >= LEAK_NEGATIVES,
            }
        due = []
        for name, found in findings.items():
            shares = self._in_a_row.setdefault(name, [])
            if len(shares) == IN_A_ROW:
                continue  # it was logged
            shares.append(waited)
            if not found:
                shares.clear()
            elif len(shares) == IN_A_ROW:
                facts: dict[str, float] = {"negatives": self.negatives, "iteration": iteration}
                facts["percent"] = 100 * sum(shares) / IN_A_ROW
                due.append(WARNINGS[name].format(**row, **facts))
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
        self._why: dict[str, str] = {}  # of paths that were met since the start

    def note(self, batch: dict[str, Any]) -> None:
        """Note what of a batch could not be read; InputError if a place in it stayed empty."""
        self._unshared += self._add(batch["unreadable"], batch.get("reasons", {}))
        if batch["given_up"]:
            raise self._too_many()
        if get_world_size() == 1:
            self.share()

    def share(self) -> None:
        """Share the paths; InputError on all processes if they are too many. Collective."""
        mine = {path: self._why[path] for path in self._unshared}
        for theirs in all_gather_object(mine):
            self._add(list(theirs), theirs)
        self._unshared = []
        if len(self.known) > self.max_share * self.num_images:
            raise self._too_many()

    def _add(self, paths: list[str], reasons: dict[str, str]) -> list[str]:
        new = [path for path in dict.fromkeys(paths) if path not in self.known]
        for path in new:
            self.known.add(path)
            why = self._why[path] = reasons.get(path, "")
            named = f"{path} ({len(self.known)} so far)"
            logger.warning("skipped unreadable image %s%s", named, f": {why}" if why else "")
        return new

    def _too_many(self) -> InputError:
        first = min(self.known)
        why = self._why.get(first)
        return InputError(
            f"{len(self.known)} of {self.num_images} images cannot be read, more than"
            f" DATA.MAX_UNREADABLE {self.max_share:g} allows; the first is"
            f" {first}{f': {why}' if why else ''}."
            " Repair or remove them, or raise DATA.MAX_UNREADABLE."
        )
