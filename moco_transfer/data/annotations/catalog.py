"""The catalogue of detection data sets: Detectron2's names, and the user's own.

Built-in names are found under the folder in DETECTRON2_DATASETS (default ``datasets``), laid out as
    Detectron2 wants: coco/{train2017,val2017,annotations,...}
        VOC2007/{Annotations,ImageSets,JPEGImages}    VOC2012/...
What a data set is (format, classes, evaluator, year of the VOC metric) is stored beside its name
and never guessed from it.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError, MissingFileError, UnknownKeyError, did_you_mean
from .builtin_datasets import DatasetSource, builtin_sources
from .coco import CocoContents, read_coco
from .records import OnProblem, raise_problem
from .voc import VocContents, read_voc

DATASETS_VARIABLE = "DETECTRON2_DATASETS"

# Left and right swap when a person's image is mirrored; COCO names the points, not the pairs.
_MIRRORED_PARTS = ("left_", "right_")


@dataclass(eq=False)
class DetectionDataset:
    """A registered data set; its files are read when its records or classes are first asked for.

    Attributes:
        name: The name in the catalogue.
        kind: ``coco`` or ``voc``, the format.
        evaluator: ``coco`` or ``voc``, the metric that belongs to it.
        year: 2007 (11-point AP) or 2012 (area AP) for voc, None for coco.
        json_file: COCO's annotation file, None for voc.
        image_root: Folder of the images.
        source: All that was registered, its paths absolute or relative to the working folder.
    """

    name: str
    kind: str
    evaluator: str
    year: int | None
    json_file: str | None
    image_root: str
    source: DatasetSource

    def read(self, on_problem: OnProblem = raise_problem) -> CocoContents | VocContents:
        """Read the files again; ``on_problem`` may collect problems instead of stopping at the
        first.
        """
        source = self.source
        self._check_place()
        if self.kind == "voc":
            return read_voc(
                source.root,
                source.split,
                source.class_names,
                first_pixel=source.first_pixel,
                on_problem=on_problem,
            )
        return read_coco(
            source.json_file,
            source.image_root,
            unique_annotation_ids=source.unique_annotation_ids,
            on_problem=on_problem,
        )

    @cached_property
    def _contents(self) -> CocoContents | VocContents:
        return self.read()

    @property
    def records(self) -> list[dict]:
        """All records, images without boxes included; see
        :mod:`moco_transfer.data.detection_records`.
        """
        return self._contents.records

    @property
    def left_out(self) -> dict[str, int]:
        """Counts of what training leaves out, such as ``images_without_boxes``."""
        return self._contents.left_out

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the contiguous class indices."""
        return self.source.class_names if self.kind == "voc" else self._contents.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own category id of each contiguous class index; for voc the index itself."""
        return (
            tuple(range(len(self.class_names)))
            if self.kind == "voc"
            else self._contents.category_ids
        )

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the key points in their order, empty if the data set has none."""
        return () if self.kind == "voc" else self._contents.keypoint_names

    @property
    def keypoint_mirror(self) -> tuple[int, ...]:
        """For each key point the index of the one that takes its place when the image is
        mirrored.
        """
        names = self.keypoint_names
        left, right = _MIRRORED_PARTS
        swapped = [
            (
                n.replace(left, right)
                if n.startswith(left)
                else n.replace(right, left)
                if n.startswith(right)
                else n
            )
            for n in names
        ]
        return tuple(names.index(other) if other in names else i for i, other in enumerate(swapped))

    @property
    def has_ground_truth(self) -> bool:
        """False for a test set whose annotations are not published."""
        return self.kind == "voc" or self._contents.has_annotations

    def _check_place(self) -> None:
        source = self.source
        place = Path(source.root if self.kind == "voc" else source.json_file)
        if place.is_dir() if self.kind == "voc" else place.exists():
            return
        if not source.is_builtin:
            raise MissingFileError(
                f"Data set {self.name!r}: {place} does not exist; correct the path that it was"
                " registered with."
            )
        value = os.environ.get(DATASETS_VARIABLE)
        state = f"is set to {value!r}" if value else "is not set, so 'datasets' is used"
        raise MissingFileError(
            f"Data set {self.name!r} is expected at {place}, which does not exist;"
            f" {DATASETS_VARIABLE} {state}. Set it to the folder that holds"
            f" {place.relative_to(datasets_root()).parts[0]}."
        )


def datasets_root() -> Path:
    """Return the folder of the built-in data sets:

    DETECTRON2_DATASETS, or ``datasets`` where that is not set.
    """
    return Path(os.path.expanduser(os.environ.get(DATASETS_VARIABLE) or "datasets"))


_BUILTIN = builtin_sources()
_OWN: dict[str, DatasetSource] = {}
# A json of COCO's size takes seconds to read: share it between callers, and let go of it with the
# last of them.
_LOADED: weakref.WeakValueDictionary[tuple[str, DatasetSource], DetectionDataset] = (
    weakref.WeakValueDictionary()
)

_FIELDS = {
    "coco": ({"json_file", "image_root"}, set()),
    "voc": ({"root", "split", "class_names"}, {"year", "first_pixel"}),
}


def register_dataset(name: str, kind: str = "coco", **where: Any) -> None:
    """Make a data set known under a name, for DATASETS.TRAIN and DATASETS.TEST.

    Args:
        name: New name; registering the same again is allowed, another data set under a known name
            is not.
        kind: ``coco`` or ``voc``.
        **where: For coco ``json_file`` and ``image_root``. For voc ``root``, ``split``,
            ``class_names`` (in the order of the class indices), and optionally ``year``: 2012
            (default) scores with the area under the precision-recall curve, 2007 with VOC 2007's 11
            points; and ``first_pixel``: 1 (default) for VOC's inclusive pixels from 1, 0 for
            continuous coordinates from 0.

    Raises:
        InputError: If the kind or a field is unknown, a field is missing, or the name is taken.
    """
    if kind not in _FIELDS:
        raise InputError(
            f"Data set {name!r}: kind is {kind!r}, expected one of {', '.join(_FIELDS)}."
        )
    required, optional = _FIELDS[kind]
    unknown, absent = sorted(set(where) - required - optional), sorted(required - set(where))
    if unknown or absent:
        fault = f"unknown field {unknown[0]!r}" if unknown else f"field {absent[0]!r} is missing"
        raise InputError(
            f"Data set {name!r}: {fault}; kind {kind!r} takes {', '.join(sorted(required))}"
            + (f" and optionally {', '.join(sorted(optional))}." if optional else ".")
        )
    source = _own_source(name, kind, where)
    if name in _BUILTIN or _OWN.get(name, source) != source:
        raise InputError(
            f"Data set {name!r} is registered already, as something else; choose another name."
        )
    _OWN[name] = source


def _own_source(name: str, kind: str, where: dict) -> DatasetSource:
    if kind == "coco":
        return DatasetSource(
            kind="coco",
            json_file=os.fspath(where["json_file"]),
            image_root=os.fspath(where["image_root"]),
        )
    class_names = tuple(where["class_names"])
    if (
        isinstance(where["class_names"], str)
        or not class_names
        or len(set(class_names)) != len(class_names)
    ):
        raise InputError(
            f"Data set {name!r}: class_names is {where['class_names']!r}, expected a list of"
            " different names."
        )
    year, first_pixel = where.get("year", 2012), where.get("first_pixel", 1)
    if year not in (2007, 2012):
        raise InputError(
            f"Data set {name!r}: year is {year!r}, expected 2007 (11-point AP) or 2012 (area AP)."
        )
    if first_pixel not in (0, 1):
        raise InputError(
            f"Data set {name!r}: first_pixel is {first_pixel!r}, expected 1 (VOC's) or 0."
        )
    return DatasetSource(
        kind="voc",
        root=os.fspath(where["root"]),
        split=where["split"],
        class_names=class_names,
        year=year,
        first_pixel=first_pixel,
    )


def dataset_names() -> list[str]:
    """Return all names in the catalogue, built-in ones first."""
    return [*_BUILTIN, *_OWN]


def get_dataset(name: str) -> DetectionDataset:
    """Return the data set of a name; nothing is read from disk yet.

    Raises:
        UnknownKeyError: If no data set has that name.
    """
    source = _OWN.get(name) or _BUILTIN.get(name)
    if source is None:
        names = dataset_names()
        raise UnknownKeyError(
            f"There is no data set {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."
            " Add your own with --dataset NAME=coco:JSON:IMAGES or --dataset"
            " NAME=voc:ROOT:SPLIT:CLASSES."
        )
    if source.is_builtin:
        base = datasets_root()
        placed = {
            key: str(base / value)
            for key in ("json_file", "image_root", "root")
            if (value := getattr(source, key))
        }
        source = DatasetSource(**{**source.__dict__, **placed})
    dataset = _LOADED.get((name, source))
    if dataset is None:
        image_root = source.image_root or str(Path(source.root) / "JPEGImages")
        dataset = DetectionDataset(
            name, source.kind, source.kind, source.year, source.json_file, image_root, source
        )
        _LOADED[name, source] = dataset
    return dataset


def parse_dataset_flag(flag: str) -> str:
    """Register what a ``--dataset`` flag describes and return its name.

    Args:
        flag: ``NAME=coco:JSON:IMAGES`` or ``NAME=voc:ROOT:SPLIT:CLASSES[:OPTIONS]``. CLASSES is a
            comma list (``RBC,WBC``) or a file with a class a line; OPTIONS is a comma list of
            ``year=2007|2012`` and ``first_pixel=0|1``.

    Raises:
        InputError: If the flag has another form, or :func:`register_dataset` refuses it.
    """
    name, _, rest = flag.partition("=")
    kind, *fields = rest.split(":")
    if name and kind == "coco" and len(fields) == 2 and all(fields):
        register_dataset(name, "coco", json_file=fields[0], image_root=fields[1])
    elif name and kind == "voc" and len(fields) in (3, 4) and all(fields):
        options = _parse_options(fields[3], flag) if len(fields) == 4 else {}
        register_dataset(
            name,
            "voc",
            root=fields[0],
            split=fields[1],
            class_names=_parse_classes(fields[2]),
            **options,
        )
    else:
        raise InputError(
            f"--dataset {flag!r} is not understood; expected NAME=coco:JSON:IMAGES or"
            " NAME=voc:ROOT:SPLIT:CLASSES[:OPTIONS], CLASSES being a comma list or a file with a"
            " class a line."
        )
    return name


def _parse_classes(text: str) -> tuple[str, ...]:
    path = Path(text)
    if path.is_file():
        names = tuple(
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        )
        if not names:
            raise InputError(f"{path} holds no class name; expected one a line.")
        return names
    if "/" in text or text.endswith(".txt"):
        raise MissingFileError(f"The file of class names {text} does not exist.")
    return tuple(name.strip() for name in text.split(","))


def _parse_options(text: str, flag: str) -> dict[str, int]:
    options = dict(option.partition("=")[::2] for option in text.split(","))
    if not set(options) <= {"year", "first_pixel"} or not all(
        value.isdecimal() for value in options.values()
    ):
        raise InputError(
            f"--dataset {flag!r}: options {text!r} are not understood; legal are year=2007|2012 and"
            " first_pixel=0|1."
        )
    return {key: int(value) for key, value in options.items()}


def check_class_count(
    dataset: DetectionDataset, num_classes: int, config_key: str = "MODEL.ROI_HEADS.NUM_CLASSES"
) -> None:
    """Refuse a config whose number of classes is not the data set's.

    Fewer would make a class index point outside the head, more would train outputs that no image
    has.

    Raises:
        InputError: With the config value that mends it.
    """
    names = dataset.class_names
    if len(names) != num_classes:
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise InputError(
            f"{config_key} is {num_classes}, but data set {dataset.name!r} has {len(names)}"
            f" categories ({some}); set {config_key} {len(names)}."
        )


def check_same_classes(datasets: list[DetectionDataset]) -> None:
    """Refuse to train on, or train and test on, data sets whose class indices mean different
    things.

    Raises:
        InputError: Naming the first two data sets that differ, and in which class.
    """
    for other in datasets[1:]:
        mine, theirs = datasets[0].class_names, other.class_names
        if mine != theirs:
            index = next(
                (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
                min(len(mine), len(theirs)),
            )
            pair = [names[index] if index < len(names) else "nothing" for names in (mine, theirs)]
            raise InputError(
                f"Data sets {datasets[0].name!r} ({len(mine)} classes) and {other.name!r}"
                f" ({len(theirs)}) have different classes: index {index} is {pair[0]!r} in the one"
                f" and {pair[1]!r} in the other; give both the same list in the same order."
            )
