"""The catalogue of detection data sets: Detectron2's names, and the user's own.

``catalog.yaml`` lists the built-in names. They are found below the folder in DETECTRON2_DATASETS
(default ``datasets``), in Detectron2's layout:
    coco/{train2017,val2017,annotations,...}  VOC2007/{Annotations,ImageSets,JPEGImages}  VOC2012/
    lvis/lvis_v0.5_train.json, ... (of COCO's images)
    cityscapes/{leftImg8bit,gtFine}/{train,val}  VOC2012/{SegmentationClass,SegmentationClassAug}
What a data set is (format, classes, year of the VOC metric) is stored with its name, not guessed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import tarfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ...runtime.errors import InputError, MissingFileError, UnknownKeyError, did_you_mean
from ..images.near_names import lies_near
from .class_selection import group_classes, parse_classes, select_classes
from .coco import read_coco
from .keypoints import mirror_of
from .plausible import unit_fault
from .records import Contents, OnProblem, raise_problem
from .semantic.reader import how_to_make, read_semantic, select_ids, semantic_fields
from .upright import turn_upright
from .voc import VOC_CLASSES, read_voc
from .yolo import read_yolo

DATASETS_VARIABLE = "DETECTRON2_DATASETS"

_Path: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """A data set; its files are read when its records or classes are first asked for."""

    name: str
    kind: str  # coco and lvis (one json), voc (a split of XML files), yolo, cityscapes or semantic
    image_root: str
    json_file: str | None = None  # of coco and lvis
    root: str | None = None  # of voc; of cityscapes gtFine/SPLIT, of yolo data.yaml; of labels
    split: str | None = None  # of voc and yolo
    classes: tuple[str, ...] = ()  # all that a voc or semantic may have
    chosen: tuple[str, ...] = ()  # those that are used, see select_classes; empty for all
    year: int | None = None  # of the metric: 2007 is the 11-point AP, 2012 the area
    first_pixel: int = 1  # 1 for inclusive pixels from 1, 0 for continuous coordinates from 0
    masks: str = "instanceIds"  # of cityscapes, see read_cityscapes
    list_file: str | None = None  # of semantic, see read_semantic; as the endings
    endings: tuple[str, str] = ("", "")
    exif: str = ""  # apply: the annotations were drawn on the pixels as stored, see upright.py
    published_images: int = 0  # in the published split; 0 if there is none
    image_ids: frozenset[str] | None = None  # only these images are used; None for all

    def read(self, on_problem: OnProblem = raise_problem) -> Contents:
        """Read the files; ``on_problem`` may collect problems instead of raising the first."""
        contents = self._read(on_problem)
        if self.kind == "semantic":
            return select_ids(contents, self.chosen, self.name)
        if fault := unit_fault(contents.records, xywh=self.json_file is not None):
            on_problem(InputError(f"{self.json_file or self.root}: {fault}."))
        if self.exif == "apply":
            turn_upright(contents.records)
        if not self.chosen:
            return contents
        can_merge = self.kind not in ("lvis", "cityscapes")
        return select_classes(contents, self.chosen, self.name, can_merge=can_merge)

    def _read(self, on_problem: OnProblem) -> Contents:
        self._check_place()
        if self.kind == "cityscapes":
            from .cityscapes import read_cityscapes  # imports torch, which `doctor` may not find

            gt_root, masks = self.root or "", self.masks
            return read_cityscapes(self.image_root, gt_root, masks=masks, on_problem=on_problem)
        how: dict[str, Any] = {"as_stored": self.exif == "apply", "on_problem": on_problem}
        if self.kind == "voc":
            where = self.root or "", self.split or "", self.classes
            return read_voc(*where, first_pixel=self.first_pixel, **how)
        if self.kind == "semantic":
            roots = self.image_root, self.root or "", self.classes
            return read_semantic(*roots, self.list_file, self.endings, **how)
        if self.kind == "yolo":
            return read_yolo(self.root or "", self.split or "", **how)
        files = self.json_file or "", self.image_root
        return read_coco(*files, lvis=self.kind == "lvis", **how)

    @cached_property
    def _contents(self) -> Contents:
        return self.read()

    @property
    def records(self) -> list[dict]:
        """All records, images without boxes included; see :mod:`.records` for their fields."""
        records, ids = self._contents.records, self.image_ids
        return records if ids is None else [r for r in records if str(r["image_id"]) in ids]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the contiguous class indices."""
        if self.classes and self.chosen:
            return group_classes(self.chosen, self.classes, self.name)[0]
        return self.classes or self._contents.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The file's category id of each contiguous class index; for voc the index itself."""
        names = self.chosen or self.classes
        is_listed = self.kind in ("voc", "semantic")
        return (*range(len(names)),) if is_listed else self._contents.category_ids

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the keypoints in their order; empty if there are none, or the categories have
        different ones.
        """
        return self._contents.keypoint_names if self.json_file else ()

    @property
    def keypoint_mirror(self) -> tuple[int, ...]:
        """For each keypoint the index of the one that takes its place in a mirrored image."""
        return mirror_of(self.keypoint_names)

    @property
    def skeleton(self) -> tuple[tuple[int, int], ...]:
        """Indices of the keypoints that the lines of a drawing connect."""
        return self._contents.skeleton if self.kind == "coco" else ()

    @property
    def has_ground_truth(self) -> bool:
        """False for a test set without published annotations."""
        return not self.json_file or self._contents.has_annotations

    @property
    def remarks(self) -> tuple[str, ...]:
        """What may surprise in how its files were read."""
        return self._contents.remarks

    @property
    def frequencies(self) -> tuple[str, ...]:
        """Of LVIS, by class: "r", "c" or "f" (rare, common, frequent); empty for others."""
        return self._contents.frequencies if self.kind == "lvis" else ()

    def _check_place(self) -> None:
        place = Path(self.json_file or self.root or "")
        if place.is_dir() or self.kind in ("coco", "lvis", "yolo") and place.exists():
            return
        if self.name not in _BUILTIN:
            near = lies_near(place, lambda name: name.lower().endswith(place.suffix.lower()))
            if place.exists():
                from ...runtime.checkpoint import is_zip  # imports torch; doctor needs none

                is_archive = is_zip(place) or tarfile.is_tarfile(place)
                what = "an archive: unpack it" if is_archive else "a file"
                raise InputError(f"Data set {self.name!r}: {place} is {what}; expected a folder.")
            text = f"Data set {self.name!r}: {place} does not exist.{near * bool(place.suffix)}"
            raise MissingFileError(text)
        value, parts = os.environ.get(DATASETS_VARIABLE), place.relative_to(datasets_root()).parts
        holds = "/".join(parts[: 2 if self.kind == "cityscapes" else 1])  # cityscapes/gtFine
        raise MissingFileError(
            f"Data set {self.name!r} is expected at {place}, which does not exist;"
            f" {DATASETS_VARIABLE} is {repr(value) if value else 'not set (datasets is used)'}. Set"
            f" it to the folder that holds {holds}.{how_to_make(place)}"
        )


def datasets_root() -> Path:
    """Return the folder of the built-in data sets: DETECTRON2_DATASETS, or ``datasets``."""
    return Path(os.path.expanduser(os.environ.get(DATASETS_VARIABLE) or "datasets"))


def builtin_datasets() -> dict[str, DetectionDataset]:
    """Return the data sets of ``catalog.yaml``, with paths relative to :func:`datasets_root`."""
    table = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    for fields in table.values():
        of_kind = VOC_CLASSES if fields["kind"] == "voc" else ()
        fields["classes"] = tuple(fields.get("classes", of_kind))
        fields["endings"] = tuple(fields.get("endings", ("", "")))
    return {n: DetectionDataset(n, **f) for n, f in table.items()}


_BUILTIN = builtin_datasets()
_OWN: dict[str, DetectionDataset] = {}
_ORDERS: dict[tuple, tuple[str, ...]] = {}  # fields of a data set -> classes, see align_classes
# Reading a json of COCO's size takes seconds: callers share a data set while one of them holds it.
_LOADED: weakref.WeakValueDictionary[tuple, DetectionDataset] = weakref.WeakValueDictionary()

_PLACES = ("image_root", "json_file", "root", "list_file")
# Of --dataset NAME=KIND:...: what the parts are, and the pattern of an option in the last one.
_PARTS = {
    "coco": ("json_file", "image_root"),
    "lvis": ("json_file", "image_root"),
    "voc": ("root", "split", "class_names"),
    "yolo": ("data_yaml", "split"),
    "cityscapes": ("image_root", "gt_root"),
    "semantic": ("image_root", "label_root", "class_names"),
}
_OPTION = {
    "coco": "exif=apply",
    "lvis": "exif=apply",
    "voc": r"((year|first_pixel)=\d+|exif=apply)",
    "yolo": "exif=apply",
    "cityscapes": "masks=(instanceIds|polygons)",
    "semantic": "((list_file|image_ending|label_ending)=[^,=]+|exif=apply)",
}


def register_dataset(
    name: str, kind: str = "coco", *, classes: Sequence[str] = (), **where: Any
) -> None:
    """Add a data set to the catalogue, for DATASETS.TRAIN and DATASETS.TEST.

    Args:
        name: New name. Registering the same data set again is allowed.
        kind: ``coco``, ``lvis``, ``voc``, ``yolo``, ``cityscapes`` or ``semantic``.
        classes: The classes that are used, in their order; ``a+b`` makes one of two. Empty for all.
        **where: For coco and lvis ``json_file`` and ``image_root``. For voc ``root``, ``split``,
            ``class_names`` in the order of the class indices, ``year`` (2012, default, scores with
            the area under the precision-recall curve, 2007 with 11 points) and ``first_pixel`` (1,
            default, for VOC's inclusive pixels from 1, 0 for continuous coordinates from 0). For
            yolo ``data_yaml`` and ``split``. For these ``exif="apply"`` where annotations belong to
            the pixels as stored. For cityscapes ``image_root``, ``gt_root`` and ``masks``, see
            :func:`read_cityscapes`. For semantic ``image_root``, ``label_root``, ``class_names``,
            ``list_file``, ``image_ending`` and ``label_ending``, see :func:`read_semantic`.

    InputError if the kind or a field is unknown, a field is missing, or the name is taken.
    """
    makers: dict[str, Callable[..., DetectionDataset]] = {
        "coco": functools.partial(_own_json, kind="coco"),
        "lvis": functools.partial(_own_json, kind="lvis"),
        "voc": _own_voc,
        "yolo": _own_yolo,
        "cityscapes": _own_cityscapes,
        "semantic": lambda name, **w: DetectionDataset(name, "semantic", **semantic_fields(**w)),
    }
    if kind not in makers:
        raise InputError(f"Data set {name!r}: kind is {kind!r}, expected {' or '.join(makers)}.")
    try:
        dataset = dataclasses.replace(makers[kind](name, **where), chosen=tuple(classes))
        if dataset.exif not in ("", "apply"):
            raise TypeError(f"exif is {dataset.exif!r}, expected apply or nothing")
    except TypeError as error:
        raise InputError(f"Data set {name!r}: {error}.") from error
    known = _OWN.get(name, dataset)
    if name in _BUILTIN or dataclasses.astuple(known) != dataclasses.astuple(dataset):
        raise InputError(f"Data set {name!r} is registered already with other data.")
    _OWN[name] = dataset


def _own_json(
    name: str, *, kind: str, json_file: _Path, image_root: _Path, exif: str = ""
) -> DetectionDataset:
    return DetectionDataset(name, kind, os.fspath(image_root), os.fspath(json_file), exif=exif)


def _own_voc(
    name: str,
    *,
    root: _Path,
    split: str,
    class_names: Sequence[str],
    year: int = 2012,
    first_pixel: int = 1,
    exif: str = "",
) -> DetectionDataset:
    classes, of_set = tuple(class_names), f"Data set {name!r}:"
    if isinstance(class_names, str) or not classes or len(set(classes)) != len(classes):
        raise InputError(f"{of_set} class_names {class_names!r} is not a list of different names.")
    if year not in (2007, 2012) or first_pixel not in (0, 1):
        raise InputError(
            f"{of_set} year is {year!r}, expected 2007 (11-point AP) or 2012 (area AP); first_pixel"
            f" is {first_pixel!r}, expected 1 (VOC's) or 0."
        )
    where = str(Path(root) / "JPEGImages"), None, os.fspath(root), split
    return DetectionDataset(
        name, "voc", *where, classes, year=year, first_pixel=first_pixel, exif=exif
    )


def _own_yolo(name: str, *, data_yaml: _Path, split: str, exif: str = "") -> DetectionDataset:
    where = str(Path(data_yaml).parent), None, os.fspath(data_yaml), split
    return DetectionDataset(name, "yolo", *where, exif=exif)


def _own_cityscapes(
    name: str, *, image_root: _Path, gt_root: _Path, masks: str = "instanceIds"
) -> DetectionDataset:
    if masks not in ("instanceIds", "polygons"):
        known = "expected instanceIds or polygons"
        raise InputError(f"Data set {name!r}: masks is {masks!r}, {known}.")
    where = os.fspath(image_root), None, os.fspath(gt_root)
    return DetectionDataset(name, "cityscapes", *where, masks=masks)


def dataset_names() -> list[str]:
    """Return all names in the catalogue, built-in ones first."""
    return [*_BUILTIN, *_OWN]


def get_dataset(name: str) -> DetectionDataset:
    """Return the data set of a name, or raise UnknownKeyError; nothing is read from disk yet."""
    known = _known(name)
    paths = {key: getattr(known, key) for key in _PLACES}
    if name in _BUILTIN:
        paths = {key: path and str(datasets_root() / path) for key, path in paths.items()}
    chosen = _ORDERS.get(dataclasses.astuple(known), known.chosen)
    dataset = dataclasses.replace(known, chosen=chosen, **paths)
    return _LOADED.setdefault(dataclasses.astuple(dataset), dataset)


def _known(name: str) -> DetectionDataset:
    known = _OWN.get(name) or _BUILTIN.get(name)
    if known is None:
        names = dataset_names()
        raise UnknownKeyError(
            f"There is no data set {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."
            " Add your own with --dataset."
        )
    return known


def parse_dataset_flag(flag: str) -> str:
    """Register what a ``--dataset`` flag describes and return its name. InputError if the flag has
    another form, or :func:`register_dataset` refuses it.
    """
    name, _, place = flag.partition("=")
    kind, *parts = place.split(":")
    names, option = _PARTS.get(kind, ()), _OPTION.get(kind, "")
    words, more = parts[: len(names)], parts[len(names) :]
    chosen = [part.removeprefix("classes=") for part in more if part.startswith("classes=")]
    options = ":".join(part for part in more if not part.startswith("classes="))
    is_legal = name and names and all([*parts, *chosen]) and len(words) == len(names)
    is_legal = is_legal and len(chosen) <= 1
    if not is_legal or options and not re.fullmatch(f"{option}(,{option})*", options):
        raise InputError(
            f"--dataset {flag!r} is not understood; expected NAME=coco:JSON:IMAGES[:OPTIONS],"
            " NAME=lvis:JSON:IMAGES[:OPTIONS], NAME=voc:ROOT:SPLIT:CLASSES[:OPTIONS],"
            " NAME=yolo:data.yaml:SPLIT[:OPTIONS], NAME=cityscapes:LEFTIMG:GTFINE[:OPTIONS] or"
            " NAME=semantic:IMAGES:LABELS:CLASSES[:OPTIONS]. CLASSES is a comma list or a file with"
            " a class a line; OPTIONS are exif=apply, of VOC year=2007|2012 and first_pixel=0|1, of"
            " Cityscapes masks=instanceIds|polygons, of semantic list_file=, image_ending= and"
            " label_ending=, and for all :classes=a,c=b+d: some classes, or several as one."
        )
    where: dict[str, Any] = dict(zip(names, words, strict=True))
    if "class_names" in where:
        where["class_names"] = parse_classes(where["class_names"])
    for key, value in re.findall(r"(\w+)=([^,]+)", options):
        where[key] = int(value) if value.isdecimal() else value
    register_dataset(
        name, kind, classes=[c.strip() for c in ",".join(chosen).split(",") if c], **where
    )
    return name


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Forget afterwards the names, and orders of classes, that were registered inside."""
    kept: list[tuple[dict, dict]] = [(table, table.copy()) for table in (_OWN, _ORDERS)]
    try:
        yield
    finally:
        for table, before in kept:
            table.clear()
            table.update(before)


def align_classes(datasets: Sequence[DetectionDataset]) -> list[DetectionDataset]:
    """Return the data sets of a run, with classes in the order of the first: they are matched by
    name. ``get_dataset`` returns them so from now on. InputError if their classes differ.
    """
    for dataset in datasets[:1]:
        _ORDERS.pop(dataclasses.astuple(_known(dataset.name)), None)
    aligned = [get_dataset(dataset.name) for dataset in datasets]
    for place, other in enumerate(aligned[1:], start=1):
        mine, theirs = aligned[0].class_names, other.class_names
        if mine != theirs and len(set(mine)) == len(mine) and sorted(mine) == sorted(theirs):
            words = dict(zip(theirs, other.chosen or theirs, strict=True))  # c=a+b of the class c
            _ORDERS[dataclasses.astuple(_known(other.name))] = tuple(words[name] for name in mine)
            aligned[place] = get_dataset(other.name)
            continue
        for index, (a, b) in enumerate(itertools.zip_longest(mine, theirs, fillvalue="nothing")):
            if a != b:
                raise InputError(
                    f"Data sets {aligned[0].name!r} and {other.name!r} have different classes:"
                    f" index {index} is {a!r} in the first and {b!r} in the second. Choose the same"
                    " ones with :classes=NAME,... at the end of --dataset."
                )
    return aligned
