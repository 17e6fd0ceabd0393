"""Look a detection data set over before a run: every problem at once, not the first alone, and what
training will leave out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...runtime.errors import InputError
from .catalog import DetectionDataset, get_dataset
from .check_images import equal_images, look_at_images

#: Images of the splits as published, by name; a copy with other counts is not wrong, but its
# numbers compare with nobody's.
_PUBLISHED_COUNTS = {
    "coco_2014_train": 82783,
    "coco_2014_val": 40504,
    "coco_2014_minival": 5000,
    "coco_2014_valminusminival": 35504,
    "coco_2017_train": 118287,
    "coco_2017_val": 5000,
    "coco_2017_val_100": 100,
    "keypoints_coco_2017_train": 118287,
    "keypoints_coco_2017_val": 5000,
    "voc_2007_train": 2501,
    "voc_2007_val": 2510,
    "voc_2007_trainval": 5011,
    "voc_2007_test": 4952,
    "voc_2012_train": 5717,
    "voc_2012_val": 5823,
    "voc_2012_trainval": 11540,
}

_LEFT_OUT_WORDS = {
    "images_without_boxes": "images without a box (left out of training, kept in a test set)",
    "crowd_regions": "crowd regions (not trained on, ignored in the evaluation)",
    "boxes_without_area": "boxes without area (not trained on)",
    "boxes_reaching_out": (
        "boxes that reach out of the image by a pixel or more (cut off at its edge in training)"
    ),
    "invalid_polygons": "objects whose polygons all have fewer than 3 points (left out)",
}


@dataclass
class DatasetReport:
    """What :func:`check_dataset` found.

    Attributes:
        name: The data set.
        problems: One sentence each; a run on this data set would stop at the first.
        remarks: One sentence each; a run goes on, but its numbers may surprise.
        num_images: Records that could be read.
        num_boxes: Boxes that can be trained on, crowd regions not counted.
        boxes_of_class: The same by class name, in the order of the class indices.
        left_out: Counts of what training leaves out.
        metric: The metric that the data set is scored by.
        num_masks: Objects that have a mask.
        digests: Digest of each image's bytes by file name; empty when no image was opened.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    num_images: int = 0
    num_boxes: int = 0
    boxes_of_class: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    metric: str = ""
    num_masks: int = 0
    digests: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_usable(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def text(self, max_problems: int = 20) -> str:
        """Return the report for people; at most ``max_problems`` of the problems in full."""
        counted = (
            (self.num_images, "image"),
            (self.num_boxes, "box"),
            (len(self.boxes_of_class), "class"),
        )
        masks = f", {_counted(self.num_masks, 'mask')}" if self.num_masks else ""
        lines = [
            f"{self.name}: {', '.join(_counted(*pair) for pair in counted)}{masks}, scored by"
            f" {self.metric}"
        ]
        lines += [
            f"  {_LEFT_OUT_WORDS[key]}: {count}" for key, count in self.left_out.items() if count
        ]
        if self.boxes_of_class:
            lines.append(
                "  boxes by class: "
                + ", ".join(f"{name} {count}" for name, count in self.boxes_of_class.items())
            )
        lines += [f"  remark: {remark}" for remark in self.remarks]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems[:max_problems]]
        if len(self.problems) > max_problems:
            lines.append(f"  ... and {len(self.problems) - max_problems} more")
        lines.append(
            "  usable"
            if self.is_usable
            else f"  NOT usable: {_counted(len(self.problems), 'problem')}"
        )
        return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{count} {noun if count == 1 else plural}"


def check_dataset(name: str, *, open_images: bool = True) -> DatasetReport:
    """Read a data set's annotations and its images, and collect all that is wrong.

    Args:
        name: A name of the catalogue.
        open_images: Whether each image is decoded, to find damaged ones, other sizes than the
            annotations' and equal images.

    Returns:
        The report; it lists problems instead of raising them.

    Raises:
        UnknownKeyError: If no data set has that name.
    """
    dataset = get_dataset(name)
    points = "VOC AP by 11 points" if dataset.year == 2007 else "VOC AP by the area under the curve"
    report = DatasetReport(name, metric=points if dataset.evaluator == "voc" else "COCO AP")
    problems: list[InputError] = []
    try:
        contents = dataset.read(on_problem=problems.append)
    except InputError as problem:  # no folder, no json: nothing more can be said
        report.problems = [str(p) for p in (*problems, problem)]
        return report
    class_names = dataset.source.class_names if dataset.kind == "voc" else contents.class_names
    report.problems = [str(problem) for problem in problems]
    report.left_out = contents.left_out
    _count(report, contents.records, class_names)
    _remark(report, dataset, contents)
    if open_images:
        problems_of_images, report.digests = look_at_images(contents.records, description=name)
        report.problems += problems_of_images
        _remark_equal_images(report)
    return report


def shared_images(reports: Sequence[DatasetReport]) -> list[str]:
    """Return one sentence for each pair of data sets that have images in common, byte for byte;
    those of unopened images have none.
    """
    sentences = []
    for i, one in enumerate(reports):
        for other in reports[i + 1 :]:
            theirs = set(other.digests.values())
            shared = [path for path, digest in one.digests.items() if digest in theirs]
            if shared:
                sentences.append(
                    f"{one.name} and {other.name} have {_counted(len(shared), 'image')} in"
                    f" common, the first is {shared[0]}: trained on the one and tested on the"
                    " other, AP is too good."
                )
    return sentences


def _count(report: DatasetReport, records: list[dict], class_names: tuple[str, ...]) -> None:
    boxes = Counter(
        a["category_id"] for record in records for a in record["annotations"] if not a["iscrowd"]
    )
    repeated = {name for name, n in Counter(class_names).items() if n > 1}
    report.num_images, report.num_boxes = len(records), sum(boxes.values())
    report.num_masks = sum(
        bool(a.get("segmentation"))
        for record in records
        for a in record["annotations"]
        if not a["iscrowd"]
    )
    report.boxes_of_class = {
        f"{name} (index {i})" if name in repeated else name: boxes[i]
        for i, name in enumerate(class_names)
    }


def _remark(report: DatasetReport, dataset: DetectionDataset, contents) -> None:
    published = _PUBLISHED_COUNTS.get(dataset.name)
    if published is not None and report.num_images != published:
        report.remarks.append(
            f"the published split has {published} images, this copy {report.num_images}: results"
            " do not compare with published ones."
        )
    _remark_duplicates(report, contents.records)
    absent = [name for name, count in report.boxes_of_class.items() if count == 0]
    if report.num_boxes == 0:
        report.remarks.append("there is no box at all: neither training nor AP is possible.")
    elif absent:
        report.remarks.append(
            f"{len(absent)} of {len(report.boxes_of_class)} classes have no box:"
            f" {', '.join(absent)}."
        )
    difficult = sum(
        a.get("difficult", 0) for record in contents.records for a in record["annotations"]
    )
    if difficult:
        is_or_are = "is" if difficult == 1 else "are"
        report.remarks.append(
            f"{difficult} of the boxes {is_or_are} difficult: trained on, ignored in the"
            " evaluation."
        )
    if dataset.kind == "coco" and contents.category_ids != tuple(
        range(1, len(contents.category_ids) + 1)
    ):
        report.remarks.append(
            f"category ids {contents.category_ids[0]} to {contents.category_ids[-1]} are mapped to"
            f" class indices 0 to {len(contents.category_ids) - 1}, in their order."
        )


def _remark_duplicates(report: DatasetReport, records: list[dict]) -> None:
    """Count boxes that stand twice in one image, and images that are listed twice."""
    boxes = Counter(
        (number, a["category_id"], *a["bbox"])
        for number, r in enumerate(records)
        for a in r["annotations"]
        if not a["iscrowd"]
    )
    repeated = [key for key, count in boxes.items() if count > 1]
    if repeated:
        number, where = (
            sum(boxes[key] - 1 for key in repeated),
            records[repeated[0][0]]["file_name"],
        )
        report.remarks.append(
            f"boxes that repeat another of the same class in the same image: {number} (in"
            f" {where}, for one)."
        )
    listed = Counter(record["file_name"] for record in records)
    twice = [path for path, count in listed.items() if count > 1]
    if twice:
        report.remarks.append(
            f"images that are listed more than once: {len(twice)} ({twice[0]}, for one); each"
            " listing has boxes of its own."
        )


def _remark_equal_images(report: DatasetReport) -> None:
    groups = equal_images(report.digests)
    if groups:
        number = sum(len(group) - 1 for group in groups)
        copy, original = groups[0][1], groups[0][0]
        report.remarks.append(
            f"copies of other images, byte for byte: {number} ({copy} of {original}, for one)."
        )
