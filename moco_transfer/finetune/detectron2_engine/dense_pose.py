"""Dense pose, with Detectron2's project DensePose: its keys, head, batches and evaluator.

The project's code runs unchanged, and is imported when a run needs it. Its data sets are read by
this project, so that they lie below DETECTRON2_DATASETS and not below a fixed ``datasets``.

Source:
    facebookresearch/detectron2@02b5c4e projects/DensePose: which images are trained on and scored
    (data/build.py: with points of a person, with an annotation), and the numbers by GPS and GPSm
    (evaluation/evaluator.py; Guler et al. 2018, arXiv:1802.00434).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from moco_transfer.data.annotations.catalog import DetectionDataset, get_dataset
from moco_transfer.data.annotations.coco_fields import DENSE_POSE
from moco_transfer.runtime.errors import InputError

from ..datasets import has_objects
from ..engine import (
    DENSEPOSE_GUIDE,
    DENSEPOSE_PROJECT,
    DENSEPOSE_URL,
    GEODESIC_FILES,
    MIRROR_FILE,
    densepose_files_missing,
    densepose_problem,
)

# Which the project registers itself when it is imported, and only where they are new.
PROJECT_NAMES = tuple(
    f"densepose_coco_2014_{split}"
    for split in ("train", "minival", "minival_100", "valminusminival")
)
#: Values of keys that move the points as they move the pixels, or are the project's own.
POSSIBLE: dict[str, tuple[Any, ...]] = {
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.CROP.ENABLED": (False,),
    "TEST.AUG.ENABLED": (False,),
}
_MORE = ("AP", "AP50", "AP75")  # by GPSm as well, which multiplies GPS by the IoU of the masks


def load_project() -> None:
    """Import the project if it is there."""
    with contextlib.suppress(Exception):  # reported where a run needs it
        importlib.import_module(DENSEPOSE_PROJECT)


def add_keys(theirs: Any) -> None:
    """Add the project's keys to a config of Detectron2.

    Raises:
        InputError: If the project is not there.
    """
    if problem := densepose_problem():
        raise InputError(
            "MODEL.DENSEPOSE_ON True needs Detectron2's project DensePose, which cannot be imported"
            f" ({problem}). Install it from {DENSEPOSE_GUIDE}."
        )
    importlib.import_module(DENSEPOSE_PROJECT).add_densepose_config(theirs)


def prepare(train: Sequence[str], test: Sequence[str]) -> None:
    """Prepare Detectron2's catalogue for a run on data sets of these names.

    Raises:
        InputError: If a file of the project is missing that the run would need later.
    """
    is_scored = any(has_objects(get_dataset(name)) for name in test)
    files = (MIRROR_FILE, *GEODESIC_FILES) if is_scored else (MIRROR_FILE,)
    if missing := densepose_files_missing(files):
        what = "training and evaluation need" if is_scored else "training needs"
        raise InputError(f"Dense pose: {what} files of the project DensePose; {missing}.")
    for name in (*train, *test):
        about = MetadataCatalog.get(name)
        about.set(densepose_transform_src=DENSEPOSE_URL + MIRROR_FILE, class_to_mesh_name={})


def mapper(theirs: Any, is_train: bool) -> Any:
    """Return what makes the input of the model of a record, with the points of each person."""
    return importlib.import_module(f"{DENSEPOSE_PROJECT}.data").DatasetMapper(theirs, is_train)


def is_annotated(record: dict) -> bool:
    """Return whether a person in an image has points."""
    return any(all(key in a for key in DENSE_POSE) for a in record["annotations"])


class DensePoseEvaluator:
    """An evaluator of boxes, and next to it the project's own: both over the same detections."""

    def __init__(self, ours: Any, dataset: DetectionDataset) -> None:
        evaluation = importlib.import_module(f"{DENSEPOSE_PROJECT}.evaluation")
        self._ours = ours
        self._theirs = evaluation.DensePoseCOCOEvaluator(dataset.name, distributed=True)
        self._scored = {r["image_id"] for r in dataset.records if r["annotations"]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ours, name)  # what was found next to the metrics

    def reset(self) -> None:
        """Forget all detections."""
        self._ours.reset()
        self._theirs.reset()

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Take the detections in a batch, with Detectron2's ``instances``."""
        self._ours.process(batch, outputs)
        for image, output in zip(batch, outputs, strict=True):
            if image["image_id"] in self._scored and "instances" in output:
                self._theirs.process([image], [{"instances": output["instances"]}])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return ``bbox`` and ``densepose``: by GPS, and by GPSm with that in the name. Collective.

        What cannot be computed, which the project gives as -1, is left out; no detections are AP 0.
        """
        metrics = self._ours.evaluate()
        # It asks for a file with a timeout, an option that the released iopath does not have.
        PathManager.set_strict_kwargs_checking(False)
        try:
            found = self._theirs.evaluate()
        finally:
            PathManager.set_strict_kwargs_checking(True)
        if not found:  # another process than the main one
            return metrics
        by_gps, by_gpsm = found["densepose_gps"], found["densepose_gpsm"]
        by_gpsm = {f"GPSm-{name}": by_gpsm[name] for name in _MORE}
        zeros = dict.fromkeys([*_MORE, *by_gpsm], 0.0)
        found = {name: value for name, value in (by_gps | by_gpsm).items() if value >= 0}
        return metrics | {"densepose": zeros | found}
