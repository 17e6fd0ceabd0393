"""Makes label images: VOC 2012's ``trainaug`` from SBD's .mat files, and Cityscapes' trainIds.

A file that exists is kept, so that a second call continues where the first stopped.
Source:
    VOC: B. Hariharan et al., Semantic contours from inverse detectors, ICCV 2011 (SBD, in the
    layout of benchmark_RELEASE). ``trainaug`` has the images of SBD and of VOC's train that are not
    in VOC's val, 10582 of the published files; VOC's own masks are taken where there is one.
    Cityscapes: cityscapesscripts 2.3.0 preparation/createTrainIdLabelImgs.py, whose files are equal
    bit for bit, and the table of helpers/labels.py.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ....runtime.errors import InputError, MissingFileError
from ....runtime.files import atomic_path, atomic_write_text
from ....runtime.progress import progress
from ....runtime.text import read_text
from ...images.decode import read_size
from ...images.near_names import lies_near
from .labels import IGNORED, check_ids, read_ids, voc_palette

VOC_AUG, CITYSCAPES = "voc-aug", "cityscapes"
"""What can be made."""

TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes' ids of the 19 classes, in the order of their trainIds."""

_NUM_VOC_CLASSES, _NUM_CITYSCAPES_IDS = 21, 34
_POLYGONS, _IDS = "_gtFine_polygons.json", "_gtFine_labelIds.png"
_THREADS = 8


@dataclass
class Made:
    """What was done."""

    written: int = 0
    kept: int = 0  # files that were there
    problems: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_voc_aug(voc: Path, sbd: Path) -> Made:
    """Write ``voc``/SegmentationClassAug and, when all its files are there,
    ImageSets/Segmentation/trainaug.txt. MissingFileError if a folder or list is missing, InputError
    if scipy is not installed or another trainaug.txt is there.
    """
    if importlib.util.find_spec("scipy") is None:
        raise InputError(
            "SBD's .mat files need the package scipy, which is not installed. Install it with: pip"
            " install 'moco-transfer[sbd]'."
        )
    places = [sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"]
    dataset = next((place for place in places if (place / "cls").is_dir()), None)
    if dataset is None:
        raise MissingFileError(
            f"{sbd} has neither cls nor dataset/cls; give SBD's folder benchmark_RELEASE."
        )
    lists = voc / "ImageSets" / "Segmentation"
    train, val = (_ids(lists / f"{split}.txt") for split in ("train", "val"))
    of_sbd = {i for split in ("train", "val") for i in _ids(dataset / f"{split}.txt")}
    ids = sorted((of_sbd | train) - val)
    text, target = "".join(f"{i}\n" for i in ids), lists / "trainaug.txt"
    if target.exists() and _ids(target) != set(ids):
        raise InputError(
            f"{target} lists {len(_ids(target))} images, others than the {len(ids)} of {dataset}"
            f" and {lists / 'train.txt'}. Rename it to have it made."
        )
    folder = voc / "SegmentationClassAug"
    makers = {folder / f"{i}.png": functools.partial(_voc_labels, voc, dataset, i) for i in ids}
    made = _make(makers, "SegmentationClassAug")
    if not made.problems and not target.exists():
        atomic_write_text(target, text)
        made.notes.append(f"{target}: {len(ids)} images")
    return made


def _ids(path: Path) -> set[str]:
    try:
        return set(read_text(path).split())
    except MissingFileError as error:
        near = lies_near(path, lambda name: name.endswith(".txt"))
        raise MissingFileError(f"{path} does not exist.{near}") from error


def _voc_labels(voc: Path, sbd: Path, image_id: str, target: Path) -> None:
    own = voc / "SegmentationClass" / f"{image_id}.png"
    if own.exists():
        read_ids(own, _NUM_VOC_CLASSES, voc_colours=True)
        with atomic_path(target) as tmp:
            shutil.copyfile(own, tmp)
        return
    file = sbd / "cls" / f"{image_id}.mat"
    ids = _read_mat(file)
    image = voc / "JPEGImages" / f"{image_id}.jpg"
    if ids.shape != read_size(str(image)):
        raise InputError(
            f"{file} is {ids.shape[1]} x {ids.shape[0]} px, but {image} has another size. Is it of"
            " VOC 2012?"
        )
    _save(ids, target, voc_palette())


def _read_mat(file: Path) -> np.ndarray:
    """Return the class of each pixel, uint8 (H, W)."""
    from scipy.io import loadmat

    if not file.exists():
        raise MissingFileError(f"{file} does not exist. Unpack all of SBD's benchmark.tgz.")
    try:
        content = loadmat(str(file), variable_names=["GTcls"], squeeze_me=True)
        ids = np.asarray(content["GTcls"]["Segmentation"][()])
    except Exception as error:  # scipy raises nearly any kind for a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file} has no GTcls.Segmentation ({reason}); get it again.") from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InputError(f"{file}: GTcls.Segmentation is {ids.dtype} {ids.shape}, expected ids.")
    check_ids(ids, file, _NUM_VOC_CLASSES)
    return ids.astype(np.uint8)


def make_train_ids(gt_root: Path) -> Made:
    """Write each missing ``*_gtFine_labelTrainIds.png`` below gtFine or one of its splits: from the
    labelIds where there are some, else from the polygons with cityscapesscripts.

    MissingFileError if there are neither, InputError if a polygon's file needs cityscapesscripts
    and it is not installed.
    """
    found = {
        ending: {str(path).removesuffix(ending) for path in gt_root.rglob(f"*{ending}")}
        for ending in (_IDS, _POLYGONS)
    }
    stems = sorted(found[_IDS] | found[_POLYGONS])
    if not stems:
        fault = (
            "does not exist" if not gt_root.is_dir() else f"has neither *{_IDS} nor *{_POLYGONS}"
        )
        raise MissingFileError(f"{gt_root} {fault}; give Cityscapes' folder gtFine.")
    targets = {Path(f"{stem}_gtFine_labelTrainIds.png"): stem for stem in stems}
    drawn = [t for t, stem in targets.items() if stem not in found[_IDS] and not t.exists()]
    if drawn and importlib.util.find_spec("cityscapesscripts") is None:
        raise InputError(
            f"{len(drawn)} images have polygons alone, which cityscapesscripts draws; it is not"
            " installed. Install it with: pip install 'moco-transfer[cityscapes]'."
        )
    makers = {
        target: functools.partial(_train_ids, Path(f"{stem}{_IDS}"), Path(f"{stem}{_POLYGONS}"))
        for target, stem in targets.items()
    }
    return _make(makers, "labelTrainIds")


def _train_ids(label_ids: Path, polygons: Path, target: Path) -> None:
    if label_ids.exists():
        table = np.full(256, IGNORED, np.uint8)
        table[list(TRAIN_IDS)] = range(len(TRAIN_IDS))
        _save(table[read_ids(label_ids, _NUM_CITYSCAPES_IDS)], target)
        return
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    annotation = Annotation()
    try:
        annotation.fromJsonFile(str(polygons))
        drawn = createLabelImage(annotation, "trainIds")
    except (Exception, SystemExit) as error:  # it exits for an unknown label
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{polygons} cannot be drawn ({reason}); copy it again.") from error
    _save(np.asarray(drawn), target)


def _save(ids: np.ndarray, target: Path, palette: np.ndarray | None = None) -> None:
    image = Image.fromarray(ids)
    if palette is not None:
        image.putpalette(palette.tobytes())
    with atomic_path(target) as tmp:
        image.save(tmp, format="PNG")


def _make(makers: Mapping[Path, Callable[[Path], None]], what: str) -> Made:
    """Write the files that are missing; a file that cannot be made does not stop the others."""
    there = {folder: set(os.listdir(folder)) for folder in _folders(makers) if folder.is_dir()}
    missing = {t: m for t, m in makers.items() if t.name not in there.get(t.parent, ())}
    made = Made(kept=len(makers) - len(missing))

    def make(target: Path) -> InputError | None:
        try:
            missing[target](target)
            return None
        except InputError as problem:
            return problem

    with ThreadPoolExecutor(_THREADS) as threads:
        results = threads.map(make, missing)
        try:
            bar = progress(results, what, total=len(missing), unit="images")
            made.problems = [problem for problem in bar if problem]
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    made.written = len(missing) - len(made.problems)
    return made


def _folders(makers: Iterable[Path]) -> set[Path]:
    return {target.parent for target in makers}
