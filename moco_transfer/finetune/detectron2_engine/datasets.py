"""Our data sets in Detectron2's catalogues, and our evaluators behind its interface."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from torch import Tensor

from moco_transfer.data.annotations.catalog import DetectionDataset, dataset_names, get_dataset
from moco_transfer.data.annotations.cityscapes import CITYSCAPES_LABELS
from moco_transfer.data.annotations.semantic.labels import IGNORED
from moco_transfer.data.images.decode import read_image
from moco_transfer.runtime.errors import InputError

from ..datasets import evaluated_tasks, make_evaluator
from .dense_pose import PROJECT_NAMES, load_project

# Detectron2's reader of Cityscapes imports a package that nobody outside its company has (issue
# 5436), that of LVIS one that needs NumPy < 1.24. Label images have ids and a size to check.
_UNREADABLE = ("cityscapes", "lvis", "semantic")


_THEIR_READER = detection_utils.read_image


def _read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image for Detectron2's mappers by the decoder of the embedded engine. Their own clips
    16 bits at 255, and turns a TIFF a second time as its orientation says.
    """
    if format not in ("RGB", "BGR"):  # label images, and networks with other inputs
        return _THEIR_READER(file_name, format)
    return np.array(read_image(str(file_name), format))  # a copy: it may be changed


def add_datasets(names: Iterable[str] | None = None) -> None:
    """Make data sets of ``moco_transfer.data``'s catalogue (by default all) known to Detectron2; a
    name that Detectron2 knows already stays as it is there, unless it cannot read its files. From
    then on Detectron2 reads images as the embedded engine does.

    Raises:
        UnknownKeyError: If our catalogue lacks a name.
        InputError: If Detectron2 knows a name and reads it from another place.
    """
    detection_utils.read_image = _read_image
    for name in dataset_names() if names is None else names:
        dataset = get_dataset(name)
        if name in PROJECT_NAMES:
            load_project()
        if (dataset.kind in _UNREADABLE or name in PROJECT_NAMES) and name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        if name in DatasetCatalog:
            _check_same_place(dataset)
        else:  # read by name when it is needed: the files may not be here at all
            DatasetCatalog.register(name, lambda name=name: _records(get_dataset(name)))
            _describe(dataset)


class _Evaluator(DatasetEvaluator):
    """An evaluator of this project, whose numbers are Detectron2's, with Detectron2's interface."""

    def __init__(self, ours: Any) -> None:
        self.reset, self.evaluate, self._ours = ours.reset, ours.evaluate, ours

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the outputs of a model of Detectron2 for a batch."""
        if "sem_seg" in outputs[0]:  # logits
            found = [{"sem_seg": output["sem_seg"].argmax(dim=0)} for output in outputs]
        else:
            found = [detections(output["instances"]) for output in outputs]
        self._ours.process(inputs, found)


def build_evaluator(
    cfg: Any, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Return the evaluator that ``moco-transfer train`` uses, for a data set of our catalogue.

    Unlike Detectron2's evaluator of VOC it needs no ``<pose>`` and ``<truncated>`` in the XML, and
    heeds ``first_pixel``. It writes its predictions into ``output_folder`` (by default
    OUTPUT_DIR/inference).

    Raises:
        UnknownKeyError: If our catalogue lacks the name.
    """
    folder = Path(output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))
    dataset, tasks = get_dataset(dataset_name), evaluated_tasks(cfg.MODEL)
    ours = make_evaluator(dataset, tasks, folder, oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)
    return _Evaluator(ours)


def detections(instances: Any) -> dict[str, Tensor]:
    """Return Detectron2's output for an image as the embedded engine gives it."""
    fields = {"scores": "scores", "classes": "pred_classes"}
    fields |= {"masks": "pred_masks", "keypoints": "pred_keypoints"}
    found = {ours: instances.get(f) for ours, f in fields.items() if instances.has(f)}
    if instances.has("pred_densepose"):  # for its own evaluator
        found["instances"] = instances
    return {"boxes": instances.pred_boxes.tensor, **found}


def _records(dataset: DetectionDataset) -> list[dict]:
    if dataset.kind == "semantic":
        return [dict(record) for record in dataset.records]
    common: dict[str, Any] = {"bbox_mode": BoxMode.XYXY_ABS}
    if dataset.keypoint_names:  # each object needs some: 0 is not labelled
        common["keypoints"] = [0.0] * 3 * len(dataset.keypoint_names)
    return [r | {"annotations": [common | a for a in r["annotations"]]} for r in dataset.records]


def _describe(dataset: DetectionDataset) -> None:
    metadata = MetadataCatalog.get(dataset.name)
    if dataset.kind == "voc":
        metadata.set(evaluator_type="pascal_voc", thing_classes=list(dataset.class_names))
        metadata.set(dirname=dataset.root, split=dataset.split, year=dataset.year)
        return
    if dataset.kind == "cityscapes":
        classes = list(dataset.chosen or CITYSCAPES_LABELS)
        metadata.set(evaluator_type="cityscapes_instance", thing_classes=classes)
        metadata.set(image_dir=dataset.image_root, gt_dir=dataset.root)
        return
    if dataset.kind == "semantic":
        metadata.set(evaluator_type="sem_seg", stuff_classes=list(dataset.class_names))
        metadata.set(ignore_label=IGNORED, image_root=dataset.image_root, sem_seg_root=dataset.root)
        return
    kind = "lvis" if dataset.kind == "lvis" else "coco"  # as Detectron2 calls them
    metadata.set(evaluator_type=kind, image_root=dataset.image_root)
    if dataset.json_file is not None:
        metadata.set(json_file=dataset.json_file)
    if not os.path.exists(dataset.json_file or dataset.root or ""):
        return
    indices = {category: index for index, category in enumerate(dataset.category_ids)}
    classes = list(dataset.class_names)
    metadata.set(thing_classes=classes, thing_dataset_id_to_contiguous_id=indices)
    if names := dataset.keypoint_names:
        pairs = [(names[i], names[j]) for i, j in enumerate(dataset.keypoint_mirror) if i < j]
        metadata.set(keypoint_names=list(names), keypoint_flip_map=pairs)


def _check_same_place(dataset: DetectionDataset) -> None:
    """Reject a name that means another data set in Detectron2, which fixed its folders when it was
    imported.
    """
    theirs = MetadataCatalog.get(dataset.name).get(
        "dirname" if dataset.kind == "voc" else "json_file"
    )
    ours = (dataset.root if dataset.kind == "voc" else dataset.json_file) or ""
    if theirs is not None and os.path.realpath(theirs) != os.path.realpath(ours):
        raise InputError(
            f"Data set {dataset.name!r} is {theirs} in Detectron2's catalogue and {ours} in this"
            " one's. Set DETECTRON2_DATASETS before Detectron2 is imported, or choose another"
            " name."
        )
