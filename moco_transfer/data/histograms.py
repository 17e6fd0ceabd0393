"""What a data set's boxes or label images are like, as a PNG: sizes, counts and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..runtime.files import atomic_path
from .annotations.semantic.check import LabelFacts

_MOST_CLASSES = 30
_COLOUR = "#0b3c8c"


def draw_label_histograms(path: Path, facts: LabelFacts) -> None:
    """Draw the pixels of label images by class, and how many classes an image has."""
    from matplotlib.figure import Figure  # takes 0.3 s
    from matplotlib.ticker import MaxNLocator

    shares = sorted(facts.shares().items(), key=lambda pair: -pair[1])
    most = shares[:_MOST_CLASSES]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    names, count = figure.subplots(1, 2, width_ratios=[2, 1])
    names.bar(range(len(most)), [100 * share for _, share in most], color=_COLOUR)
    shown = [name.replace("$", r"\$")[:20] for name, _ in most]
    names.set_xticks(range(len(most)), shown, rotation=90, fontsize=8)
    more = f", {len(most)} of {len(shares)} classes" * (len(most) < len(shares))
    names.set(ylabel=f"% of the pixels{more}")
    largest = max(facts.classes_of_images, default=0)
    count.hist(facts.classes_of_images, bins=np.arange(largest + 2) - 0.5, color=_COLOUR)
    count.set(xlabel="classes in an image", ylabel="images")
    for axis in (count.xaxis, count.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for axes in (names, count):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=110)


def draw_histograms(path: Path, records: Sequence[dict], class_names: Sequence[str]) -> None:
    """Draw the boxes of records that are no crowd regions."""
    from matplotlib.figure import Figure  # takes 0.3 s
    from matplotlib.ticker import MaxNLocator

    objects = [[a for a in r["annotations"] if not a["iscrowd"]] for r in records]
    boxes = np.array([a["bbox"] for of_image in objects for a in of_image], float).reshape(-1, 4)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).clip(min=0))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    size, count, names = figure.subplots(1, 3)
    largest = max(1.0, sides.max(initial=1.0))
    bins = np.geomspace(min(1.0, max(1e-3, sides.min(initial=1.0))), largest * 1.01, 25)
    size.hist(sides, bins=bins, color=_COLOUR)
    size.set(xscale="log", xlabel="square root of the box's area (px)", ylabel="boxes")
    size.xaxis.set_major_formatter("{x:g}")
    size.xaxis.set_minor_formatter("")
    counts = [len(of_image) for of_image in objects]
    step = max(1, -(-max(counts, default=0) // 40))
    edges = np.arange(0, max(counts, default=0) + 2 * step, step) - 0.5
    count.hist(counts, bins=edges, color=_COLOUR)
    count.set(xlabel="boxes in an image", ylabel="images")
    count.xaxis.set_major_locator(MaxNLocator(integer=True))
    found = Counter(a["category_id"] for of_image in objects for a in of_image)
    most = sorted(range(len(class_names)), key=lambda index: -found[index])[:_MOST_CLASSES]
    names.bar(range(len(most)), [found[index] for index in most], color=_COLOUR)
    shown = [class_names[index].replace("$", r"\$")[:20] for index in most]
    names.set_xticks(range(len(most)), shown, rotation=90, fontsize=8)
    more = f", {_MOST_CLASSES} of {len(class_names)} classes" * (len(most) < len(class_names))
    names.set(ylabel=f"boxes{more}")
    for axis in (size, count, names):
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    with atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=110)
