"""Which detections hit an object: what a bootstrap over test images needs to compute AP again.

A file ``matches_<test set>.npz`` has ``image_ids`` (I,), ``metric`` (how AP follows from the rest:
coco, voc_area or voc_11; ``T/metric`` of a task with another one, cityscapes), and for each task T:
    T/image    (D,) int32    index into image_ids
    T/class    (D,) int32    contiguous class index
    T/score    (D,) float32
    T/hit      (D,) uint16   bit t is set if it is a true positive at IoU 0.50 + 0.05 t
    T/ignored  (D,) uint16   bit t is set if it counts as neither right nor wrong
    T/truth    (N, 3) int32  image, class, number of objects that count
Detections come by class, then by falling score in the evaluator's own order, so that AP over all
images is the evaluator's.

Of semantic segmentation it has ``image_ids``, ``metric`` (semantic) and the M entries of the
images' confusion matrices that are not 0:
    sem_seg/image      (M,) int32    index into image_ids
    sem_seg/true       (M,) uint16   contiguous class of the ground truth
    sem_seg/predicted  (M,) uint16   contiguous class that was predicted
    sem_seg/pixels     (M,) int64    how many pixels
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..runtime.files import atomic_path

_FLAGS = ("dtMatches", "dtIgnore")  # of COCOeval's evalImgs: ids of objects, 0 for none


@dataclass(frozen=True)
class TaskMatches:
    """The arrays of one task; ``hit`` and ``ignored`` are (T, D) bool, T thresholds of IoU."""

    image: np.ndarray
    classes: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truth: np.ndarray
    metric: str = ""  # of this task, if it is not that of the file

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a file by name."""
        metric = {"metric": np.array(self.metric)} if self.metric else {}
        return metric | {
            "image": self.image.astype(np.int32),
            "class": self.classes.astype(np.int32),
            "score": self.score.astype(np.float32),
            "hit": _bits(self.hit),
            "ignored": _bits(self.ignored),
            "truth": self.truth.astype(np.int32).reshape(-1, 3),
        }


def _bits(flags: np.ndarray) -> np.ndarray:
    """Return (D,) with bit t from row t of (T, D)."""
    bit = 2 ** np.arange(len(flags), dtype=np.uint16)
    return (flags * bit[:, None]).sum(axis=0, dtype=np.uint16)


class Arrays(Protocol):
    """What a task has in a file of matches."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""


def write_matches(
    path: Path, image_ids: Sequence[int | str], metric: str, by_task: Mapping[str, Arrays]
) -> str:
    """Write a file of matches and return its name."""
    arrays = {"image_ids": np.array(image_ids), "metric": np.array(metric)}
    for task, matches in by_task.items():
        arrays |= {f"{task}/{name}": array for name, array in matches.arrays().items()}
    with atomic_path(path) as tmp, open(tmp, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path.name


def matches_of_coco(scored: Any, category_ids: Sequence[int]) -> TaskMatches:
    """Return what a COCOeval of one area range found; its images are numbered from 1."""
    class_of = {category: index for index, category in enumerate(category_ids)}
    entries = [entry for entry in scored.evalImgs if entry is not None]
    entries.sort(key=lambda entry: (class_of[entry["category_id"]], entry["image_id"]))
    images = np.array([entry["image_id"] - 1 for entry in entries], np.int64)
    classes = np.array([class_of[entry["category_id"]] for entry in entries], np.int64)
    objects = [len(entry["gtIgnore"]) - int(sum(entry["gtIgnore"])) for entry in entries]
    truth = np.stack([images, classes, objects], axis=1).astype(np.int64)
    counts = np.array([len(entry["dtScores"]) for entry in entries], np.int64)
    scores = np.fromiter(itertools.chain.from_iterable(e["dtScores"] for e in entries), float)
    num_thresholds = len(scored.params.iouThrs)
    matched, ignored = (_joined(entries, k, counts, num_thresholds) for k in _FLAGS)
    of_class = np.repeat(classes, counts)
    order = np.lexsort((-scores, of_class))  # stable: equal scores stay in the order of images
    return TaskMatches(
        image=np.repeat(images, counts)[order],
        classes=of_class[order],
        score=scores[order],
        hit=(matched & ~ignored)[:, order],
        ignored=ignored[:, order],
        truth=truth[truth[:, 2] > 0],
    )


def _joined(entries: list[Any], key: str, counts: np.ndarray, num_thresholds: int) -> np.ndarray:
    """Return the flags (T, d) of all entries as (T, D)."""
    rows = itertools.chain.from_iterable(entry[key] for entry in entries)
    flat = np.fromiter(itertools.chain.from_iterable(rows), bool)
    begin = np.repeat(np.cumsum(counts) - counts, counts)  # of each detection's entry
    row = np.arange(num_thresholds)[:, None] * np.repeat(counts, counts)
    return flat[(num_thresholds - 1) * begin + row + np.arange(len(begin))]
