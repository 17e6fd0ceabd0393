"""A fixed part of the labelled training images, the same in all rows and seeds of a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError
from ...runtime.files import atomic_write_text, sha256_of
from .catalog import DetectionDataset
from .coco import load_json
from .records import is_trainable

FORMAT = "moco_transfer.label_subset/1"


@dataclass(frozen=True)
class LabelSubset:
    """Which images of which training set are used."""

    fraction: float  # the share that was asked for, in (0, 1)
    seed: int  # of the draw
    images: dict[str, list[str]]  # data set name -> image ids
    sha256: str = ""  # of the file's contents; "" before it is written

    def count(self) -> int:
        """Return how many images are used."""
        return sum(map(len, self.images.values()))

    def describe(self) -> dict[str, Any]:
        """Return its entry in results.json."""
        entry = {"fraction": self.fraction, "seed": self.seed}
        return {**entry, "pictures": self.count(), "sha256": self.sha256}


def subset_suffix(fraction: float) -> str:
    """Return the end of a task's name, such as ``_10pct`` or ``_0.5pct``; "" for all labels."""
    return "" if fraction == 1 else f"_{100 * fraction:g}pct"


def title_of(name: str, subset: LabelSubset | None) -> str:
    """Return what a table calls a training set: its name, and how much of it was used."""
    if subset is None:
        return name
    share = f"{100 * subset.fraction:g} % of its labelled images: {len(subset.images[name])}"
    return f"{name} ({share})"


def draw_label_subset(
    datasets: Sequence[DetectionDataset], fraction: float, *, seed: int = 0
) -> LabelSubset:
    """Draw a share, in (0, 1], of the images of each data set that have a box to train on.

    Smaller fractions of the same seed are part of larger ones; every set gives at least one image.
    """
    images = {}
    for number, dataset in enumerate(datasets):
        usable = sorted(str(r["image_id"]) for r in dataset.records if is_trainable(r))
        order = np.random.default_rng([seed, number]).permutation(len(usable))
        count = max(1, round(fraction * len(usable)))
        images[dataset.name] = sorted(usable[index] for index in order[:count])
    return LabelSubset(fraction, seed, images)


def write_label_subset(file: str | Path, subset: LabelSubset) -> None:
    """Write a subset as json, atomically."""
    entry = {"format": FORMAT, "fraction": subset.fraction, "seed": subset.seed}
    atomic_write_text(file, json.dumps({**entry, "images": subset.images}, indent=1) + "\n")


def read_label_subset(file: str | Path) -> LabelSubset:
    """Read what :func:`write_label_subset` wrote; InputError if it is missing or something else."""
    data = load_json(Path(file))
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != FORMAT or not isinstance(data.get("images"), dict):
        raise InputError(f"{file} is not a label subset: format is {found!r}, expected {FORMAT!r}.")
    return LabelSubset(data["fraction"], data["seed"], data["images"], sha256_of(file))


def take_label_subset(
    datasets: Sequence[DetectionDataset], subset: LabelSubset, file: str | Path
) -> list[DetectionDataset]:
    """Return the data sets with only the subset's images, or raise InputError for other data."""
    names = [dataset.name for dataset in datasets]
    if names != list(subset.images):
        raise InputError(
            f"{file} was drawn from {', '.join(subset.images)}, but DATASETS.TRAIN is"
            f" {', '.join(names)}. Draw one for these sets."
        )
    parts = []
    for dataset in datasets:
        wanted = frozenset(subset.images[dataset.name])
        unknown = wanted - {str(record["image_id"]) for record in dataset.records}
        if unknown:
            what = f"{len(unknown)} of its images, for example {min(unknown)!r},"
            raise InputError(f"{file}: {what} are not in data set {dataset.name!r}.")
        parts.append(dataclasses.replace(dataset, image_ids=wanted))
    return parts
