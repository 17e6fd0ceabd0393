"""A fixed part of the labelled training images: drawn once, kept in a file, the same for every
row and seed of a table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ...runtime.files import atomic_write_text
from .catalog import DetectionDataset
from .records import is_trainable

FORMAT = "moco_transfer.label_subset/1"


@dataclass(frozen=True)
class LabelSubset:
    """Which images of which training set are used.

    Attributes:
        fraction: The share that was asked for, in (0, 1).
        seed: Of the draw.
        images: Data set name to the image ids.
        sha256: Of the file's contents; "" before it is written.
    """

    fraction: float
    seed: int
    images: dict[str, list[str]]
    sha256: str = ""

    def count(self) -> int:
        """Return how many images are used."""
        return sum(map(len, self.images.values()))

    def describe(self) -> dict[str, Any]:
        """Return what results.json says of it."""
        return {
            "fraction": self.fraction,
            "seed": self.seed,
            "pictures": self.count(),
            "sha256": self.sha256,
        }


@dataclass(eq=False)
class PartOfDataset(DetectionDataset):
    """A data set of which only some images are seen."""

    image_ids: frozenset[str] = field(default=frozenset())

    @property
    def records(self) -> list[dict]:
        """The records of the images that are used, in the data set's order."""
        return [record for record in super().records if str(record["image_id"]) in self.image_ids]


def subset_suffix(fraction: float) -> str:
    """Return what a task's name ends with when it is trained on a part of the labels: ``_10pct``,
    ``_0.5pct``; "" for all.
    """
    return "" if fraction == 1 else f"_{100 * fraction:g}pct"


def title_of(name: str, subset: LabelSubset | None) -> str:
    """Return what a table calls a training set: its name, and how much of it was used."""
    return (
        name
        if subset is None
        else (
            f"{name} ({100 * subset.fraction:g} % of its labelled images:"
            f" {len(subset.images[name])})"
        )
    )


def draw_label_subset(
    datasets: Sequence[DetectionDataset], fraction: float, *, seed: int = 0
) -> LabelSubset:
    """Draw a share of the images that have a box to train on, from each data set alike.

    Smaller fractions of the same seed are part of larger ones.

    Args:
        datasets: Training sets; read.
        fraction: In (0, 1]; every set gives at least one image.
        seed: Of the draw.
    """
    images = {}
    for number, dataset in enumerate(datasets):
        usable = sorted(
            str(record["image_id"]) for record in dataset.records if is_trainable(record)
        )
        order = np.random.default_rng([seed, number]).permutation(len(usable))
        count = max(1, round(fraction * len(usable)))
        images[dataset.name] = sorted(usable[index] for index in order[:count])
    return LabelSubset(fraction, seed, images)


def write_label_subset(file: str | Path, subset: LabelSubset) -> None:
    """Write a subset, whole or not at all."""
    data = {
        "format": FORMAT,
        "fraction": subset.fraction,
        "seed": subset.seed,
        "images": subset.images,
    }
    atomic_write_text(file, json.dumps(data, indent=1) + "\n")


def read_label_subset(file: str | Path) -> LabelSubset:
    """Read what :func:`write_label_subset` wrote.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is something else.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
        data: Any = json.loads(text)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{file} does not exist; expected a subset that `moco-transfer benchmark"
            " --label-fraction` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} is no valid JSON ({error}); expected a subset that `moco-transfer benchmark"
            " --label-fraction` wrote."
        ) from error
    if (
        not isinstance(data, dict)
        or data.get("format") != FORMAT
        or not isinstance(data.get("images"), dict)
    ):
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{file} is no label subset: format is {found!r}, expected {FORMAT!r}.")
    return LabelSubset(
        data["fraction"], data["seed"], data["images"], hashlib.sha256(text.encode()).hexdigest()
    )


def take_label_subset(
    datasets: Sequence[DetectionDataset], subset: LabelSubset, file: str | Path
) -> list[DetectionDataset]:
    """Return the data sets with only the subset's images.

    Raises:
        InputError: If the subset is of other data sets, or an image of it is not there.
    """
    names = [dataset.name for dataset in datasets]
    if names != list(subset.images):
        raise InputError(
            f"{file} was drawn from {', '.join(subset.images)}, but DATASETS.TRAIN is"
            f" {', '.join(names)}. Draw one for these sets."
        )
    parts = []
    for dataset in datasets:
        wanted = frozenset(subset.images[dataset.name])
        there = {str(record["image_id"]) for record in dataset.records}
        if wanted - there:
            raise InputError(
                f"{file}: image {min(wanted - there)!r} is not in data set {dataset.name!r}, nor"
                f" are {len(wanted - there) - 1} others. The subset was drawn from other data."
            )
        fields = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(DetectionDataset)}
        parts.append(PartOfDataset(**fields, image_ids=wanted))
    return parts
