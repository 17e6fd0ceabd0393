"""Check a data set before a run: all problems at once, and what training leaves out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ...runtime.errors import InputError
from ...runtime.files import sha256_of
from ...runtime.progress import progress
from ...runtime.seed import generator_at
from ..batches.transforms import TurnedError, read_and_check
from ..images.decode import UNREADABLE, has_16_bits, orientation_of
from ..images.image_source import missing_files
from ..views.view_batch import ViewMaker
from .catalog import DetectionDataset, get_dataset
from .keypoints import mirrored_pairs
from .plausible import (
    near_pairs,
    odd_frequencies,
    odd_scales,
    perceptual_hash,
    sizes_in_words,
    unit_fault,
)
from .records import LEFT_OUT, Contents
from .semantic.check import LabelFacts, look_at_labels

_METRICS = {
    "coco": "COCO AP",
    "lvis": "LVIS AP",
    "yolo": "COCO AP",
    "cityscapes": "COCO AP of boxes and Cityscapes AP of masks",
    "semantic": "mIoU",
}
PRETRAINING_BATCH = 256  # default of DATA.BATCH_SIZE_TOTAL, which this folder may not ask
_VIEWS = ViewMaker("v2", 224, (0.2, 1.0), num_views=1, pipeline="fast")  # of a default config
_SHOWN = 100  # classes that are listed; of LVIS's 1230 these are the most frequent
_NOISE = 2  # levels by which a compressed image of one colour may differ
_THREADS = 8  # more than cores: they hide the wait for the disk


@dataclass
class DatasetReport:
    """What :func:`check_dataset` found; crowd regions are not counted as boxes."""

    name: str
    metric: str  # that the data set is scored by
    problems: list[str] = field(default_factory=list)  # a run would stop at the first
    remarks: list[str] = field(default_factory=list)  # a run works, its numbers may surprise
    num_images: int = 0
    num_boxes: int = 0
    boxes_of_class: dict[str, int] = field(default_factory=dict)  # in the order of class indices
    sizes: str = ""  # of the boxes, and how many an image has
    num_masks: int = 0
    num_encoded: int = 0  # of them, in run-length form
    num_with_keypoints: int = 0  # objects with a labelled keypoint
    keypoints: tuple[str, ...] = ()  # their names
    left_out: dict[str, int] = field(default_factory=dict)  # counts of what training leaves out
    labels: LabelFacts | None = None  # of semantic segmentation, in place of boxes
    digests: dict[str, str] = field(default_factory=dict, repr=False)  # by file name, if opened
    hashes: dict[str, int] = field(default_factory=dict, repr=False)  # perceptual, as digests

    is_opened: bool = False  # the images, which one of the two steps may not read

    @property
    def is_usable(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    @property
    def unit(self) -> str:
        """What :attr:`counts` counts."""
        return "boxes" if self.labels is None else "pixels"

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each class."""
        return self.boxes_of_class if self.labels is None else self.labels.pixels

    def text(self, max_problems: int = 20) -> str:
        """Return the report for people, with at most ``max_problems`` problems."""
        more, count = len(self.problems) - max_problems, len(self.problems)
        lines = [
            *(self._of_boxes() if self.labels is None else self._of_labels(self.labels)),
            *(f"  remark: {remark}" for remark in self.remarks),
            *(f"  PROBLEM: {problem}" for problem in self.problems[:max_problems]),
            *([f"  ... and {more} more"] if more > 0 else []),
            f"  usable{self._as_far()}" if not count else f"  NOT usable: {count} problem(s)",
        ]
        return "\n".join(lines)

    def _as_far(self) -> str:
        """Return what pre-training on the images asks for; "" where its defaults do."""
        if not self.is_opened:
            return ", as far as annotations tell: no image was opened"
        if self.num_images == 1:
            return " for fine-tuning; pre-training needs two images"
        if self.num_images < PRETRAINING_BATCH:
            few = f" (pre-training: DATA.BATCH_SIZE_TOTAL at most {self.num_images}"
            return f"{few}, the default is {PRETRAINING_BATCH})"
        return ""

    def _of_boxes(self) -> list[str]:
        encoded = f" ({self.num_encoded} run-length encoded)" if self.num_encoded else ""
        masks = f", masks: {self.num_masks}{encoded}" if self.num_masks else ""
        points = [
            f"  objects with keypoints: {self.num_with_keypoints}, {len(self.keypoints)} each"
        ]
        pairs = ", ".join(map("/".join, mirrored_pairs(self.keypoints))) or "none"
        points.append(f"  keypoints that change places in a mirrored image: {pairs}")
        counts = list(self.boxes_of_class.items())
        if left := max(0, len(counts) - _SHOWN):
            counts = sorted(counts, key=lambda pair: -pair[1])[:_SHOWN] + [("other classes:", left)]
        classes = ", ".join(f"{name} {count}" for name, count in counts)
        return [
            f"{self.name}: images: {self.num_images}, boxes: {self.num_boxes}, classes:"
            f" {len(self.boxes_of_class)}{masks}, scored by {self.metric}",
            *(f"  {LEFT_OUT[key]}: {number}" for key, number in self.left_out.items() if number),
            *([f"  boxes by class: {classes}"] if classes else []),
            *([f"  {self.sizes}"] if self.sizes else []),
            *(points if self.keypoints else []),
        ]

    def _of_labels(self, labels: LabelFacts) -> list[str]:
        classes = ", ".join(f"{name} {share:.2%}" for name, share in labels.shares().items())
        total = labels.ignored + sum(labels.pixels.values())
        counts = sorted(labels.classes_of_images) or [0]
        return [
            f"{self.name}: images: {self.num_images}, pixels: {total}, classes:"
            f" {len(labels.pixels)}, scored by {self.metric}",
            f"  pixels by class: {classes}",
            f"  ignored pixels: {labels.ignored / max(1, total):.2%}; classes in an image: median"
            f" {counts[len(counts) // 2]}, most {counts[-1]}",
        ]


def check_dataset(name: str, *, open_images: bool = True) -> DatasetReport:
    """Read a data set's annotations and images, and list all that is wrong.

    ``open_images`` decodes each image and draws a view of it, as fine-tuning and pre-training will,
    to find damaged images, wrong sizes and equal images.
    UnknownKeyError if no data set has that name.
    """
    dataset = get_dataset(name)
    points = "11 points" if dataset.year == 2007 else "the area under the curve"
    report = DatasetReport(name, _METRICS.get(dataset.kind, f"VOC AP by {points}"))
    report.labels, report.is_opened = None, open_images
    if dataset.kind == "semantic":
        report.labels = LabelFacts()
    problems: list[InputError] = []
    try:
        contents = dataset.read(on_problem=problems.append)
    except InputError as problem:  # no folder or no json: nothing else can be checked
        report.problems = [str(p) for p in (*problems, problem)]
        return report
    report.problems = [str(problem) for problem in problems]
    if dataset.kind == "semantic":
        _check_labels(report, dataset, contents)
    else:
        _check_boxes(report, dataset, contents)
    if open_images:
        _open_images(report, contents.records, dataset.exif)
    return report


def _check_boxes(report: DatasetReport, dataset: DetectionDataset, contents: Contents) -> None:
    if unit_fault(contents.records, xywh=dataset.json_file is not None) is None:
        report.remarks += odd_scales(contents.records)
    report.left_out, report.num_images = contents.left_out, len(contents.records)
    objects = [a for r in contents.records for a in r["annotations"] if not a["iscrowd"]]
    boxes, names = Counter(a["category_id"] for a in objects), Counter(contents.class_names)
    report.num_boxes, report.sizes = len(objects), sizes_in_words(contents.records)
    report.num_masks = sum(bool(a.get("segmentation")) for a in objects)
    report.num_encoded = sum(isinstance(a.get("segmentation"), dict) for a in objects)
    report.keypoints = contents.keypoint_names
    report.num_with_keypoints = sum(any(a.get("keypoints", ())[2::3]) for a in objects)
    for i, name in enumerate(contents.class_names):
        report.boxes_of_class[f"{name} (index {i})" if names[name] > 1 else name] = boxes[i]
    _remark(report, dataset, contents)


def shared_images(reports: Sequence[DatasetReport]) -> list[str]:
    """Return sentences for each pair of data sets with images in common, byte for byte or as they
    look, and for classes that are far more frequent in one of them.
    """
    sentences = []
    for one, other in itertools.combinations(reports, 2):
        theirs = set(other.digests.values())
        shared = [path for path, digest in one.digests.items() if digest in theirs]
        if shared:
            sentences.append(
                f"{one.name} and {other.name} have {len(shared)} image(s) in common, the first is"
                f" {shared[0]}: results are too high if one is trained on and the other tested on."
            )
        files, others = list(one.hashes), list(other.hashes)
        pairs = near_pairs(list(one.hashes.values()), list(other.hashes.values()))
        near = [(files[i], others[j]) for i, j in pairs if files[i] not in shared]
        if near:
            sentences.append(
                f"{len(near)} image(s) of {one.name} look like one of {other.name}, for example"
                f" {near[0][0]} like {near[0][1]}: versions of one photograph make results too"
                " high."
            )
        if one.unit != other.unit:
            continue
        shares = one.counts, other.counts
        if one.labels is not None:
            sentences += _absent(one, other) + _absent(other, one)
            names = [n for n in one.counts if one.counts[n] and other.counts.get(n)]
            shares = {n: one.counts[n] for n in names}, {n: other.counts[n] for n in names}
        if odd := odd_frequencies(*shares):
            sentences.append(
                f"classes whose share of the {one.unit} differs tenfold between {one.name} and"
                f" {other.name}: {', '.join(odd[:10])}{', ...' * (len(odd) > 10)}."
            )
    return sentences


def _absent(one: DatasetReport, other: DatasetReport) -> list[str]:
    names = [name for name, n in one.counts.items() if n and other.counts.get(name, 1) == 0]
    text = f"classes with pixels in {one.name} and none in {other.name}: {', '.join(names)}."
    return [text] if names else []


def _check_labels(report: DatasetReport, dataset: DetectionDataset, contents: Contents) -> None:
    """Decode the label images: they are annotations, which ``check-data --fast`` reads as well."""
    report.num_images = len(contents.records)
    report.labels = look_at_labels(contents.records, contents.class_names, report.name)
    report.problems += report.labels.problems
    report.remarks += contents.remarks
    _remark_images(report, dataset, contents.records)
    report.remarks += report.labels.remarks


def _remark_images(
    report: DatasetReport, dataset: DetectionDataset, records: Sequence[dict]
) -> None:
    if dataset.published_images not in (0, report.num_images):
        report.remarks.append(
            f"the published split has {dataset.published_images} images, this copy"
            f" {report.num_images}: results do not compare with published ones."
        )
    twice = [path for path, n in Counter(r["file_name"] for r in records).items() if n > 1]
    if twice:
        text = f"images listed more than once: {len(twice)}, for example {twice[0]}."
        report.remarks.append(text)


def _remark(report: DatasetReport, dataset: DetectionDataset, contents: Contents) -> None:
    records, remarks = contents.records, report.remarks
    remarks += contents.remarks
    _remark_images(report, dataset, records)
    objects = [(i, a) for i, r in enumerate(records) for a in r["annotations"] if not a["iscrowd"]]
    boxes = Counter((i, a["category_id"], *a["bbox"]) for i, a in objects)
    repeated = [key for key, count in boxes.items() if count > 1]
    if repeated:
        number, where = sum(boxes[key] - 1 for key in repeated), records[repeated[0][0]]
        what = f"boxes that repeat another of the same class in the same image: {number}"
        remarks.append(f"{what}, for example in {where['file_name']}.")
    absent = [name for name, count in report.boxes_of_class.items() if count == 0]
    if report.num_boxes == 0 and not report.problems:  # else a consequence of theirs
        report.problems.append(
            "there is no box to train on or to score, crowd regions not counted. Predictions alone"
            " take --eval-only."
        )
    elif absent:
        names = ", ".join(absent[:_SHOWN]) + ", ..." * (len(absent) > _SHOWN)
        remarks.append(f"classes without a box: {len(absent)} ({names}).")
    difficult = sum(a.get("difficult", 0) for record in records for a in record["annotations"])
    if difficult:
        remarks.append(f"difficult boxes: {difficult} (trained on, ignored in the evaluation).")
    if dataset.kind == "voc" and dataset.first_pixel == 1:
        from_0 = sum(min(a["bbox"][:2]) == -1 for _, a in objects)
        if from_0:
            remarks.append(
                f"boxes that begin at pixel 0: {from_0}. If their tool counts from 0, use"
                " first_pixel=0; else they are out by a pixel."
            )
    ids = contents.category_ids
    if dataset.json_file and ids != tuple(range(1, len(ids) + 1)):
        remarks.append(f"category ids {ids[0]} to {ids[-1]} become indices 0 to {len(ids) - 1}.")


@dataclass(frozen=True)
class _Opened:
    """What was seen of an image."""

    problem: InputError | None = None
    digest: str = ""
    is_turned: bool = False  # by its EXIF tag
    is_dark: bool = False  # 16 bits of which the upper 4 are not used
    is_plain: bool = False  # of one colour
    hash: int = 0  # perceptual


def _open_images(report: DatasetReport, records: Sequence[dict], exif: str) -> None:
    """Decode all images; add the problems, the digests and remarks."""
    with ThreadPoolExecutor(_THREADS) as threads:
        # Missing ones have been reported already, all in one sentence.
        missing = set(missing_files([record["file_name"] for record in records]))
        records = [record for i, record in enumerate(records) if i not in missing]
        results = threads.map(_open_image, records)
        opened = list(progress(results, report.name, total=len(records), unit="images"))
    files = [record["file_name"] for record in records]
    problems = [one.problem for one in opened if one.problem]
    turned = [problem for problem in problems if isinstance(problem, TurnedError)]
    report.problems += [str(problem) for problem in problems if problem not in turned]
    if turned:  # one line for a repeated fault
        more = f" ({len(turned)} images are so.)" if len(turned) > 1 else ""
        report.problems.append(f"{turned[0]}{more}")
    pairs = zip(files, opened, strict=True)
    report.digests |= {file: one.digest for file, one in pairs if one.digest}
    pairs = zip(files, opened, strict=True)
    report.hashes |= {file: one.hash for file, one in pairs if one.digest}
    first: dict[str, str] = {}
    digests = report.digests.items()
    copies = [(p, first[digest]) for p, digest in digests if first.setdefault(digest, p) != p]
    if copies:
        example = f"{copies[0][0]} of {copies[0][1]}"
        remark = f"copies of other images, byte for byte: {len(copies)}, for example {example}."
        report.remarks.append(remark)
    advice = "if their stored pixels were annotated, add the option exif=apply to --dataset"
    if exif:
        advice = "their annotations are turned too"
    for field_name, text in _SEEN.items():
        found = [f for f, one in zip(files, opened, strict=True) if getattr(one, field_name)]
        if found:
            remark = text.format(count=len(found), total=len(files), advice=advice)
            report.remarks.append(f"{remark}, for example {found[0]}.")


_SEEN = {
    "is_turned": ("images that their EXIF tag turns: {count}. They are read upright; {advice}"),
    "is_dark": (
        "images of 16 bits without a value above 4095, as 12-bit data have: {count}. They are"
        " nearly black, because the upper 8 bits are used: multiply them by 16"
    ),
    "is_plain": "images of one colour: {count} of {total}",
}


def _draw_view(file: str, pixels: np.ndarray) -> None:
    """Do with an image's pixels, upright as DATA.EXIF has them, what pre-training does."""
    try:
        view = np.empty((1, _VIEWS.size, _VIEWS.size, 3), np.uint8)
        _VIEWS.make(pixels, generator_at(0, "check-data"), view)
    except UNREADABLE as error:
        raise InputError(f"The image {file} cannot be pre-trained on ({error}).") from error


def _open_image(record: dict) -> _Opened:
    """Return why a run would refuse an image, or what is odd about it."""
    try:
        pixels = read_and_check(record, "RGB")
        _draw_view(record["file_name"], pixels)
    except InputError as problem:
        return _Opened(problem)
    file, brightest = record["file_name"], int(pixels.max())
    is_dark = brightest < 16 and has_16_bits(file)
    spread = pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))
    is_plain = bool(spread.max() <= _NOISE)
    seen = orientation_of(file) != 1, is_dark, is_plain, perceptual_hash(pixels)
    return _Opened(None, sha256_of(file), *seen)
