"""How far a difference in AP or mIoU depends on which test images there are: a paired bootstrap.

The test images are drawn again with replacement, the same for every run of a table, and AP is
computed from each run's file of matches: which detections hit an object in which image, or mIoU
from each image's confusion matrix (``evaluate/matches.py`` describes both). An image that is drawn
twice counts twice, with its detections, objects and pixels. The interval holds the middle 95 % of
the differences, each the mean over the seeds that both rows have.

Source:
    Efron and Tibshirani, An Introduction to the Bootstrap, 13.3: the percentile interval.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moco_transfer.evaluate.metric_names import headline_metric
from moco_transfer.runtime.files import atomic_write_text

from ..runtime.files import regular
from ..runtime.text import parse_json
from .aggregate import NUM_SAMPLES, Interval, Row, Table
from .records import Problem, RunRecord

_THRESHOLDS = 10  # of IoU
_RECALLS = {"coco": np.linspace(0, 1, 101), "voc_11": np.arange(0.0, 1.1, 0.1)}
_ENTRY = ("image", "true", "predicted")
_TOGETHER = 32  # samples at a time: fast, and their arrays stay in the processor's cache
_DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class SampledAP:
    """AP, of sem_seg mIoU, 0-100, of one run and one kind of result."""

    images: str  # identifies the test images and their order
    num_images: int
    ap: float  # on all of them, each once
    samples: np.ndarray  # (NUM_SAMPLES,) to 4 decimals; NaN where a sample has no object


class PixelClasses:
    """The pixels of I images by their C classes, and mIoU with any weights of the images."""

    def __init__(self, found: Mapping[str, np.ndarray], image_of: np.ndarray) -> None:
        """Sum the entries of confusion matrices; ``image_of`` (I,) is the new number of each
        image.
        """
        image, true, predicted = (found[name].astype(np.int64) for name in _ENTRY)
        classes = 1 + max(true.max(initial=0), predicted.max(initial=0))
        counts = np.zeros((3, classes, len(image_of)))  # right, labelled, predicted
        right = true == predicted
        for number, of_class, chosen in ((0, true, right), (1, true, ...), (2, predicted, ...)):
            places = of_class[chosen], image_of[image[chosen]]
            np.add.at(counts[number], places, found["pixels"][chosen])
        self.right, self.labelled, self.predicted = counts

    def scores(self, weight: np.ndarray) -> np.ndarray:
        """Return mIoU (S,), 0-100, where each image counts ``weight`` (I, S) times; NaN without a
        labelled pixel.
        """
        parts = (self.right, self.labelled, self.predicted)
        right, labelled, predicted = (part @ weight.astype(float) for part in parts)
        iou = right / np.maximum(labelled + predicted - right, 1)  # 0 of classes without a pixel
        shown = np.count_nonzero(labelled, axis=0)
        with np.errstate(invalid="ignore"):
            return 100 * np.where(labelled > 0, iou, 0).sum(axis=0) / np.where(shown, shown, np.nan)


@dataclass(frozen=True)
class _Hits:
    """The H true positives of a class at one IoU threshold, by falling score."""

    place: np.ndarray  # (H,) among the class's hitting detections
    ignored_image: np.ndarray  # images of what counts as neither right nor wrong
    ignored_before: np.ndarray  # (H,) how many of these come before each


@dataclass(frozen=True)
class _OfClass:
    """A class's U detections that hit at some threshold, and which detections lead to each."""

    number: int
    image: np.ndarray  # of all detections up to the last that hits
    hit_image: np.ndarray  # (U,)
    begin: np.ndarray  # (U,) where the detections begin that end with this one
    hits: list[_Hits]


class Ranking:
    """The detections of one run, and its AP with any weights of the images.

    Shapes: I images, D detections, N pairs of an image and a class that it shows, S samples.
    """

    def __init__(self, found: Mapping[str, np.ndarray], image_of: np.ndarray, metric: str) -> None:
        """Arrange the arrays of a task; ``image_of`` (I,) is the new number of each image."""
        classes, truth = found["class"].astype(np.int64), found["truth"].astype(np.int64)
        if len(classes) and (classes[0] < 0 or (np.diff(classes) < 0).any()):
            raise ValueError("its detections are not in the order of their classes")
        self.metric = metric
        self.truth_image, self.truth_class = image_of[truth[:, 0]], truth[:, 1]
        self.num_objects = truth[:, 2, None]
        numbers, begins = np.unique(classes, return_index=True)
        parts = [slice(*ends) for ends in itertools.pairwise([*begins, len(classes)])]
        arrays = image_of[found["image"]], found["hit"], found["ignored"], found["score"]
        arrange = _scores_of_class if metric == "cityscapes" else _of_class
        self.of_classes = [
            arrange(int(number), *(array[part] for array in arrays))
            for number, part in zip(numbers, parts, strict=True)
            if found["hit"][part].any()
        ]

    def aps(self, weight: np.ndarray) -> np.ndarray:
        """Return AP (S,), 0-100, where each image counts ``weight`` (I, S) times; NaN without any
        object.
        """
        last = max([one.number for one in self.of_classes], default=0)
        objects = np.zeros((1 + max(last, self.truth_class.max(initial=0)), weight.shape[1]))
        np.add.at(objects, self.truth_class, weight[self.truth_image] * self.num_objects)
        total = np.zeros(weight.shape[1])
        for one in self.of_classes:
            some = np.maximum(objects[one.number], 1)
            if isinstance(one, _ScoresOfClass):
                total += one.areas(weight) / some
            else:
                total += self._sum_over_thresholds(one, weight, some)
        shown = np.count_nonzero(objects, axis=0)
        with np.errstate(invalid="ignore"):
            return np.where(shown > 0, 100 * total / (_THRESHOLDS * shown), np.nan)

    def _sum_over_thresholds(
        self, one: _OfClass, weight: np.ndarray, objects: np.ndarray
    ) -> np.ndarray:
        """Return the sum (S,) of a class's APs, 0-1, where it has ``objects`` (S,)."""
        total = np.zeros(weight.shape[1])
        hit_weight = weight[one.hit_image]
        seen = np.cumsum(np.add.reduceat(weight[one.image], one.begin), axis=0, dtype=np.int32)
        for hits in one.hits:
            right = np.cumsum(hit_weight[hits.place], axis=0, dtype=np.int32)
            decided = seen[hits.place]
            if len(hits.ignored_image):
                ignored = np.zeros((1 + len(hits.ignored_image), len(total)), np.int32)
                np.cumsum(weight[hits.ignored_image], axis=0, out=ignored[1:])
                decided -= ignored[hits.ignored_before]
            best = right / np.maximum(decided, 1)  # precision, here or at a higher recall
            np.maximum.accumulate(best[::-1], axis=0, out=best[::-1])
            gained = self._reached(right / objects)
            gained[1:] -= gained[:-1].copy()
            total += (best * gained).sum(axis=0)
        return total

    def _reached(self, recall: np.ndarray) -> np.ndarray:
        """Return which share of recall, or of the recall points, is reached with each hit."""
        if self.metric not in _RECALLS:
            return recall
        points = _RECALLS[self.metric]
        nearest = np.rint(recall * (len(points) - 1)).astype(np.int64)
        return (nearest + (points.take(nearest) <= recall)) / len(points)


def _of_class(
    number: int, image: np.ndarray, hit: np.ndarray, ignored: np.ndarray, score: np.ndarray
) -> _OfClass:
    hitting = np.flatnonzero(hit)
    hits = []
    for threshold in range(_THRESHOLDS):
        place = np.flatnonzero(hit[hitting] >> threshold & 1)
        neither = np.flatnonzero(ignored >> threshold & 1)
        before = np.searchsorted(neither, hitting[place])
        hits += [_Hits(place, image[neither], before)] if len(place) else []
    begin = np.concatenate([[0], hitting[:-1] + 1])
    return _OfClass(number, image[: hitting[-1] + 1], image[hitting], begin, hits)


@dataclass(frozen=True)
class _ScoresOfClass:
    """A class's detections for Cityscapes' AP: the area below precision over recall, by trapezoids
    from score to score, where detections of equal scores count at once.
    """

    number: int
    image: np.ndarray  # of all detections
    # By threshold: images of hits, images of what is ignored, and for the detections with a higher
    # score than each hit and for those with at least its score, how many there are of
    # detections, hits and ignored ones.
    hits: list[tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]]

    def areas(self, weight: np.ndarray) -> np.ndarray:
        """Return the sum (S,) over the thresholds of the areas, in objects instead of recall."""
        total, seen = np.zeros(weight.shape[1]), _sums(weight[self.image])
        for hit_image, ignored_image, ends in self.hits:
            right, ignored = _sums(weight[hit_image]), _sums(weight[ignored_image])
            for num_seen, num_hits, num_ignored in ends:
                decided = seen[num_seen] - ignored[num_ignored]
                precision = np.where(decided > 0, right[num_hits] / np.maximum(decided, 1), 1)
                total += (weight[hit_image] * precision).sum(axis=0) / 2
        return total


def _scores_of_class(
    number: int, image: np.ndarray, hit: np.ndarray, ignored: np.ndarray, score: np.ndarray
) -> _ScoresOfClass:
    begins, which = np.unique(-score, return_index=True, return_inverse=True)[1:]
    limits = begins[which], np.append(begins[1:], len(score))[which]
    hits = []
    for threshold in range(_THRESHOLDS):
        hitting, neither = (np.flatnonzero(bits >> threshold & 1) for bits in (hit, ignored))
        ends = [limit[hitting] for limit in limits]
        counts = [(n, np.searchsorted(hitting, n), np.searchsorted(neither, n)) for n in ends]
        hits.append((image[hitting], image[neither], counts))
    return _ScoresOfClass(number, image, hits)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sums (n + 1, S) of the first 0, 1, ... n rows."""
    sums = np.zeros((1 + len(values), *values.shape[1:]), np.int32)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def sampled_aps(run: RunRecord) -> dict[str, SampledAP] | Problem:
    """Return AP or mIoU of each kind of result on samples of the test images; nothing where the run
    has no file of matches. What was computed is kept next to the file.
    """
    problem: Problem | None = None
    for file, read in ((kept_file(run, run.folder), _kept), (_matches(run), _compute)):
        if file.is_file():
            try:
                return read(file, run)
            except _DAMAGE as error:
                fault = f"no file of the matches of this run ({error or type(error).__name__})"
                what = f"{fault}; the run has no part in intervals over test images."
                problem = Problem(str(file), what)
    return problem or {}


def _matches(run: RunRecord) -> Path:
    return Path(run.folder) / run.matches


def _compute(file: Path, run: RunRecord) -> dict[str, SampledAP]:
    with np.load(regular(file)) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    ids, metric = found["image_ids"], str(found["metric"])
    image_of = np.argsort(np.argsort(ids))  # two runs may have read the images in another order
    sampled = {}
    for kind in (kind for kind in run.metrics if f"{kind}/image" in found):
        of_kind = {
            name.split("/")[1]: a for name, a in found.items() if name.startswith(f"{kind}/")
        }
        if kind == "sem_seg":
            scores = PixelClasses(of_kind, image_of).scores
        else:
            scores = Ranking(of_kind, image_of, str(of_kind.get("metric", metric))).aps
        ap = float(scores(np.ones((len(ids), 1), np.int32))[0])
        _check_ap(run, kind, ap)
        samples = np.concatenate([scores(weight) for weight in _draw(len(ids))])
        images = hashlib.sha256("\n".join(map(str, np.sort(ids))).encode()).hexdigest()
        sampled[kind] = SampledAP(images, len(ids), ap, samples.round(4))
    with contextlib.suppress(OSError):  # the folder may be read-only
        atomic_write_text(kept_file(run, run.folder), kept_text(sampled))
    return sampled


def _check_ap(run: RunRecord, kind: str, ap: float) -> None:
    metric = headline_metric(kind)
    recorded = run.value(kind, metric)
    if recorded is None or not abs(ap - recorded) < 1e-6:
        raise ValueError(f"it gives {kind} {metric} {ap}, results.json has {recorded}")


def _draw(num_images: int) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn (I, S), NUM_SAMPLES times in all."""
    # The sequence of RandomState is the same in every version of NumPy.
    random = np.random.RandomState(0)
    for begin in range(0, NUM_SAMPLES, _TOGETHER):
        drawn = [
            np.bincount(random.randint(0, num_images, num_images), minlength=num_images)
            for _ in range(min(_TOGETHER, NUM_SAMPLES - begin))
        ]
        yield np.stack(drawn, axis=1).astype(np.int32)


def kept_file(run: RunRecord, folder: str | Path) -> Path:
    """Return where the AP or mIoU of a run on samples of the test images are kept."""
    return Path(folder) / f"{Path(run.matches).stem}_bootstrap.json"


def kept_text(sampled: Mapping[str, SampledAP]) -> str:
    """Return the content of a file that keeps APs."""
    as_lists = ((kind, dataclasses.asdict(values)) for kind, values in sampled.items())
    found = {kind: values | {"samples": values["samples"].tolist()} for kind, values in as_lists}
    return json.dumps(found) + "\n"


def _kept(file: Path, run: RunRecord) -> dict[str, SampledAP]:
    found = parse_json(regular(file).read_text("utf-8"))
    sampled = {}
    for kind, values in found.items():
        _check_ap(run, kind, values["ap"])
        sampled[kind] = SampledAP(**values | {"samples": np.array(values["samples"], float)})
        if (shape := sampled[kind].samples.shape) != (NUM_SAMPLES,):
            raise ValueError(f"its samples have the shape {shape}, expected ({NUM_SAMPLES},)")
    return sampled


def with_intervals(
    tables: Iterable[Table], *, show: Callable[[Iterator[Any], int], Iterable[Any]] = lambda i, _: i
) -> list[Table]:
    """Return the tables with the interval of each row's difference to the baseline, as far as the
    runs have files of matches, and with problems for files that cannot be used.

    ``show`` passes on the results of the runs, whose number it gets, to tell how far the work is.
    """
    tables = list(tables)
    runs = [
        run
        for table in tables
        if table.has_differences
        for row in table.rows
        for run in row.runs
        if run.matches
    ]
    with ThreadPoolExecutor() as pool:  # numpy works on several threads at a time
        sampled = show(pool.map(sampled_aps, runs), len(runs))
        found = dict(zip(map(_key, runs), sampled, strict=True))
    return [_with_intervals(table, found) for table in tables]


def _key(run: RunRecord) -> tuple[str, tuple[str, ...]]:
    return run.folder, run.test_set


def _with_intervals(table: Table, found: Mapping[Any, dict[str, SampledAP] | Problem]) -> Table:
    base = table.baseline
    if base is None or not table.has_differences:
        return table
    of_runs = (found.get(_key(run)) for row in table.rows for run in row.runs)
    problems = [problem for problem in of_runs if isinstance(problem, Problem)]
    intervals = {}
    for row in table.rows:
        for kind in table.kinds:
            theirs, ours = (_by_seed(side, kind, found) for side in (base, row))
            if row is base or not (common := sorted(ours.keys() & theirs.keys())):
                continue
            pairs = [(ours[seed], theirs[seed]) for seed in common]
            if len({side.images for pair in pairs for side in pair}) > 1:
                message = f"no interval of its {kind} {headline_metric(kind)}: its runs and the"
                message += " baseline's were tested on different images."
                problems.append(Problem(f"row {row.init}", message))
                continue
            gaps = np.mean([a.samples - b.samples for a, b in pairs], axis=0)
            low, high = np.nanpercentile(gaps, [2.5, 97.5])
            interval = Interval(float(low), float(high), len(common), pairs[0][0].num_images)
            intervals[row.init, kind] = interval
    return dataclasses.replace(table, intervals=intervals, problems=(*table.problems, *problems))


def _by_seed(
    row: Row, kind: str, found: Mapping[Any, dict[str, SampledAP] | Problem]
) -> dict[int, SampledAP]:
    """Return a row's APs of a kind of result by seed."""
    of_runs = ((run.seed, found.get(_key(run))) for run in row.runs)
    return {seed: of[kind] for seed, of in of_runs if isinstance(of, dict) and kind in of}
