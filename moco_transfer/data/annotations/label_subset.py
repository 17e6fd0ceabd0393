"""A fixed part of the labelled training images, the same in all rows of a table: a share of them,
or K objects of each class.

K shots are whole images with all of their annotations, at least K objects of each class and all of
a rarer one: no object that is seen is without its label. Wang et al. 2020 (arXiv:2003.06957) take K
objects instead and drop the other annotations of their images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
class LabelDraw:
    """Which part of the labels is drawn: ``fraction``, the share of the labelled images in (0, 1],
    or ``shots``, the objects of each class; ``per_seed``: ``seed`` is the run's own.
    """

    fraction: float | None = 1.0
    shots: int | None = None
    seed: int = 0
    per_seed: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an amount that is none."""
        fraction, shots = self.fraction, self.shots
        if (fraction is None) == (shots is None):
            raise InputError("Give a share of the labels or a number of shots, one of the two.")
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"A share of the labels is in (0, 1], got {fraction:g}.")
        if shots is not None and shots < 1:
            raise InputError(f"A number of shots is at least 1, got {shots}.")

    @property
    def is_all(self) -> bool:
        """Whether it is all labels: nothing is drawn."""
        return self.fraction == 1

    @property
    def suffix(self) -> str:
        """The end of a task's name: ``_10pct``, ``_0.5pct``, ``_5shot``; "" for all labels."""
        if self.shots is not None:
            return f"_{self.shots}shot"
        return "" if self.is_all else f"_{100 * (self.fraction or 0):g}pct"

    def __str__(self) -> str:
        """Return the amount in words."""
        if self.shots is not None:
            return f"{self.shots} objects of each class"
        return f"{100 * (self.fraction or 0):g} % of the labelled images"

    def draw(self, datasets: Sequence[DetectionDataset]) -> LabelSubset:
        """Draw the images, of the same seed always the same: smaller amounts are part of larger
        ones.
        """
        if self.shots is not None:
            images, objects = _draw_shots(datasets, self.shots, self.seed)
            return LabelSubset(self, images, objects)
        return LabelSubset(self, _draw_fraction(datasets, self.fraction or 1, self.seed))


@dataclass(frozen=True)
class LabelSubset:
    """Which images of which training set are used."""

    amount: LabelDraw
    images: dict[str, list[str]]  # data set name -> image ids
    objects: dict[str, int] = field(default_factory=dict)  # of shots: class -> objects in it
    file_sha256: str = ""  # of the file that it was read from, which may be laid out in another way

    def count(self) -> int:
        """Return how many images are used."""
        return sum(map(len, self.images.values()))

    @property
    def text(self) -> str:
        """The contents of its file."""
        entry: dict[str, Any] = {"format": FORMAT, **_without_defaults(self.amount)}
        entry |= {"objects": self.objects} if self.objects else {}
        entry["sha256_of_images"] = _digest(self.images)
        return json.dumps({**entry, "images": self.images}, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """Of its file."""
        return self.file_sha256 or hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def remarks(self) -> list[str]:
        """What may surprise: classes with fewer objects than were asked for."""
        few = {name: n for name, n in self.objects.items() if n < (self.amount.shots or 0)}
        if not few:
            return []
        shown = ", ".join(f"{name} {count}" for name, count in few.items())
        return [f"{self.amount.shots} shots: the training set has fewer objects of {shown}."]

    def describe(self) -> dict[str, Any]:
        """Return its entry in results.json."""
        entry = _without_defaults(self.amount) | {"pictures": self.count(), "sha256": self.sha256}
        return entry | ({"objects": self.objects} if self.objects else {})


def _without_defaults(amount: LabelDraw) -> dict[str, Any]:
    kept = {"fraction": amount.fraction, "shots": amount.shots, "per_seed": amount.per_seed or None}
    return {key: value for key, value in kept.items() if value is not None} | {"seed": amount.seed}


def _digest(images: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(images, sort_keys=True).encode()).hexdigest()


def title_of(name: str, subset: LabelSubset | None) -> str:
    """Return what a table calls a training set: its name, and how much of it was used."""
    if subset is None:
        return name
    of_it = str(subset.amount).replace("the labelled", "its labelled")
    if subset.amount.per_seed:  # the number of images may differ between the runs of a table
        return f"{name} ({of_it}, drawn for each seed)"
    return f"{name} ({of_it}: {len(subset.images[name])}{' images' * bool(subset.objects)})"


def _draw_fraction(
    datasets: Sequence[DetectionDataset], fraction: float, seed: int
) -> dict[str, list[str]]:
    """Draw a share of the images of each data set that have a box to train on, at least one."""
    images = {}
    for number, dataset in enumerate(datasets):
        usable = sorted(str(r["image_id"]) for r in dataset.records if is_trainable(r))
        order = np.random.default_rng([seed, number]).permutation(len(usable))
        count = max(1, round(fraction * len(usable)))
        images[dataset.name] = sorted(usable[index] for index in order[:count])
    return images


def _draw_shots(
    datasets: Sequence[DetectionDataset], shots: int, seed: int
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Draw images of all data sets together until each class has ``shots`` objects or no more; also
    return how many objects of each class they hold.

    Images are taken in a drawn order, for one shot of each class, then two, and so on; the rarest
    class comes first. So the images of fewer shots are part of those of more.
    """
    if no_objects := [dataset.name for dataset in datasets if dataset.kind == "semantic"]:
        raise InputError(
            f"K shots count objects, and data set {no_objects[0]!r} has labels of pixels alone."
            " Use a share of the labelled images (--label-fraction)."
        )
    class_names = tuple(datasets[0].class_names)
    pool = [
        (dataset.name, str(record["image_id"]), counts)
        for dataset in datasets
        for record in sorted(dataset.records, key=lambda record: str(record["image_id"]))
        if (counts := _objects(record))
    ]
    order = np.random.default_rng([seed, len(datasets)]).permutation(len(pool))
    total: Counter[int] = Counter()
    with_class: dict[int, list[int]] = {index: [] for index in range(len(class_names))}
    for place in order:
        total.update(pool[place][2])
        for index in pool[place][2]:
            with_class[index].append(place)
    taken: dict[int, None] = {}
    found: Counter[int] = Counter()
    waiting = {index: iter(places) for index, places in with_class.items()}
    for needed in range(1, shots + 1):
        for index in sorted(with_class, key=lambda index: (total[index], index)):
            while found[index] < min(needed, total[index]):
                place = next(waiting[index])
                if place not in taken:
                    taken[place] = None
                    found.update(pool[place][2])
    images: dict[str, list[str]] = {dataset.name: [] for dataset in datasets}
    for place in taken:
        images[pool[place][0]].append(pool[place][1])
    objects = {name: found[index] for index, name in enumerate(class_names)}
    return {name: sorted(ids) for name, ids in images.items()}, objects


def _objects(record: dict[str, Any]) -> Counter[int]:
    """Count the objects of a record that are trained on, by class index."""
    return Counter(a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0))


def write_label_subset(file: str | Path, subset: LabelSubset) -> None:
    """Write a subset as json, atomically."""
    atomic_write_text(file, subset.text)


def read_label_subset(file: str | Path, amount: LabelDraw | None = None) -> LabelSubset:
    """Read what :func:`write_label_subset` wrote, which must be of an ``amount`` if one is given.

    Raises:
        InputError: If the file is missing, something else, of another amount, or if its list of
            images is not the one that was written.
    """
    data = load_json(Path(file))
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != FORMAT or not isinstance(data.get("images"), dict):
        raise InputError(f"{file} is not a label subset: format is {found!r}, expected {FORMAT!r}.")
    images, listed = data["images"], data.get("sha256_of_images")
    if listed is not None and listed != _digest(images):
        raise InputError(
            f"{file}: its images are not those that were drawn (sha256 {_digest(images)[:12]}, its"
            f" 'sha256_of_images' is {str(listed)[:12]}). Put the file of then back; a list of your"
            " own has no such key."
        )
    keys = ("fraction", "shots", "seed", "per_seed")
    try:
        own = LabelDraw(**{"fraction": None} | {key: data[key] for key in keys if key in data})
    except (InputError, TypeError) as error:
        raise InputError(f"{file} does not state how much it holds: {error}") from error
    if amount is not None and own != amount:
        asked = f"{amount}, seed {amount.seed}"
        raise InputError(f"{file} holds {own}, seed {own.seed}; this matrix asks for {asked}.")
    return LabelSubset(own, images, data.get("objects") or {}, sha256_of(file))


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
