"""What label images hold: ids that are no classes, pixels by class, what is probably not meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ....runtime.errors import InputError
from ....runtime.files import regular
from ....runtime.progress import progress
from .labels import IGNORED, read_labels, voc_palette

_SAMPLE = 32  # label images that a plan opens
_SHOWN = 100
_THREADS = 8


@dataclass
class LabelFacts:
    """What :func:`look_at_labels` found."""

    problems: list[str] = field(default_factory=list)  # a run would stop at the first
    remarks: list[str] = field(default_factory=list)
    pixels: dict[str, int] = field(default_factory=dict)  # by class, in the order of the indices
    ignored: int = 0  # pixels
    classes_of_images: list[int] = field(default_factory=list)  # how many each image has

    def shares(self) -> dict[str, float]:
        """Return each class's share of the pixels that are not ignored."""
        total = max(1, sum(self.pixels.values()))
        return {name: count / total for name, count in self.pixels.items()}


@dataclass(frozen=True)
class _Seen:
    counts: np.ndarray | None = None  # int64 (C + 1,): pixels by class, then ignored ones
    problem: str = ""
    has_other_palette: bool = False  # VOC's colours at other indices than VOC's


def look_at_labels(records: Sequence[dict], class_names: Sequence[str], name: str) -> LabelFacts:
    """Decode the label images of all records of the data set ``name``."""
    facts, table = LabelFacts(), np.zeros(len(class_names) + 1, np.int64)
    seen: list[tuple[str, _Seen]] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda record: _look(record, len(class_names)), records)
        bar = progress(found, f"{name}, labels", total=len(records), unit="images")
        for record, one in zip(records, bar, strict=True):
            seen.append((record["sem_seg_file_name"], one))
            if one.counts is not None:
                table += one.counts
                facts.classes_of_images.append(int((one.counts[:-1] > 0).sum()))
    facts.problems += _grouped([one.problem for _, one in seen if one.problem])
    facts.pixels = dict(zip(class_names, table[:-1].tolist(), strict=True))
    facts.ignored = int(table[-1])
    if not facts.problems and (fault := _fault(table, class_names)):
        facts.problems.append(f"{name}: {fault}")
    empty = [f for f, one in seen if one.counts is not None and not one.counts[:-1].any()]
    if empty:
        remark = (
            f"label images of which each pixel is ignored: {len(empty)}, for example {empty[0]}"
        )
        facts.remarks.append(f"{remark} (they train and score nothing).")
    if other := [file for file, one in seen if one.has_other_palette]:
        facts.remarks.append(
            f"palettes with VOC's colours at other indices: {len(other)}, for example {other[0]}."
            " The indices are used, not the colours: look at the sheet."
        )
    absent = [name for name, count in facts.pixels.items() if count == 0]
    if absent and not facts.problems:
        names = ", ".join(absent[:_SHOWN]) + ", ..." * (len(absent) > _SHOWN)
        facts.remarks.append(f"classes without a pixel: {len(absent)} ({names}).")
    return facts


def label_faults(records: Sequence[dict], class_names: Sequence[str]) -> Iterator[str]:
    """Yield what prevents a run, seen in a sample of the label images: opened before a run begins,
    because a loader would find it hours later, and masks of 0 and 255 never. The whole set is
    opened where the sample looks like such masks.
    """
    if not records:
        return
    places = np.unique(np.linspace(0, len(records) - 1, _SAMPLE).astype(int)).tolist()
    seen = [_look(records[place], len(class_names)) for place in places]
    problems = _grouped([one.problem for one in seen if one.problem])
    yield from problems
    if problems:
        return
    table = np.sum([one.counts for one in seen if one.counts is not None], axis=0)
    for record in records:
        if not (fault := _fault(table, class_names)):
            return
        if (counts := _look(record, len(class_names)).counts) is not None:
            table = table + counts
    yield fault


def _look(record: dict, num_classes: int) -> _Seen:
    try:
        labels = read_labels(record)
    except InputError as problem:
        return _Seen(problem=str(problem))
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    counts = np.append(counts[:num_classes], counts[IGNORED])
    return _Seen(counts, has_other_palette=_has_other_palette(record["sem_seg_file_name"]))


def _has_other_palette(file: str) -> bool:
    with Image.open(regular(file)) as image:
        if image.mode != "P":
            return False
        used = sorted({index for _, index in image.getcolors() or ()})
        colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    known = voc_palette().tolist()
    mine = [colours[index].tolist() for index in used if index < len(colours)]
    return mine != [known[index] for index in used] and all(colour in known for colour in mine)


def _grouped(problems: Sequence[str]) -> list[str]:
    """Return one sentence for a repeated fault: the same words about other files and numbers."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        words = " ".join(word for word in problem.split() if "/" not in word and "\\" not in word)
        groups.setdefault(re.sub(r"[\d,()]+\s*", "", words), []).append(problem)
    return [
        f"{same[0]}{f' ({len(same)} label images are so.)' if len(same) > 1 else ''}"
        for same in groups.values()
    ]


def _fault(table: np.ndarray, class_names: Sequence[str]) -> str:
    """Return what is wrong with the pixels by class (C + 1,), the last of them ignored; or ""."""
    used, ignored = np.flatnonzero(table[:-1]), int(table[-1])
    if len(used) == 0:
        return (
            "each pixel is ignored (255): there is nothing to train on or to score. Write the class"
            " indices, counted from 0."
        )
    if len(used) == 1 and ignored and len(class_names) > 1:
        name, share = class_names[used[0]], ignored / table.sum()
        return (
            f"each pixel is {name!r} (index {used[0]}) or ignored (255, {share:.1%} of the pixels),"
            " as in masks of 0 and 255: write the class's index in place of 255."
        )
    return ""
