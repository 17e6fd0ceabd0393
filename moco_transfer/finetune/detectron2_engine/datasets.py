"""Our data sets in Detectron2's catalogues, and its evaluators for them."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import BoxMode

from moco_transfer.data.annotations.catalog import DetectionDataset, dataset_names, get_dataset
from moco_transfer.runtime.errors import InputError

# What Detectron2's evaluator of VOC reads of each object by int(), without asking for it.
_VOC_NUMBERS = (
    "truncated",
    "difficult",
    *(f"bndbox/{x}" for x in ("xmin", "ymin", "xmax", "ymax")),
)


def add_datasets(names: Iterable[str] | None = None) -> None:
    """Make data sets of ``moco_transfer.data``'s catalogue (by default all) known to Detectron2; a
    name that Detectron2 knows already stays as it is there.

    Raises:
        UnknownKeyError: If our catalogue lacks a name.
        InputError: If Detectron2 knows a name and reads it from another place.
    """
    for name in dataset_names() if names is None else names:
        dataset = get_dataset(name)
        if name in DatasetCatalog:
            _check_same_place(dataset)
        else:  # read by name when it is needed: the files may not be here at all
            DatasetCatalog.register(name, lambda name=name: _records(get_dataset(name)))
            _describe(dataset)


def build_evaluator(
    cfg: Any, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Return Detectron2's own evaluator for a data set, by the ``evaluator_type`` of its metadata.

    Detectron2's evaluator of VOC fails at the end of a training on XML files that lack what it does
    not use, and reads every file as counted from pixel 1; so the files are checked here.

    Args:
        cfg: OUTPUT_DIR and TEST.KEYPOINT_OKS_SIGMAS are used.
        dataset_name: A name in Detectron2's catalogue.
        output_folder: Where COCO's evaluator writes; OUTPUT_DIR/inference by default.

    Raises:
        InputError: If the metadata name no evaluator that is known here, or Detectron2's would fail
            on this data set or score it wrongly.
    """
    kind = getattr(MetadataCatalog.get(dataset_name), "evaluator_type", None)
    if kind == "coco":
        folder, sigmas = output_folder, cfg.TEST.KEYPOINT_OKS_SIGMAS
        folder = folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return COCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)
    if kind != "pascal_voc":
        raise InputError(
            f"Data set {dataset_name!r} has evaluator_type {kind!r} in its metadata, expected"
            " 'coco' or 'pascal_voc'."
        )
    _check_voc(dataset_name)
    return PascalVOCDetectionEvaluator(dataset_name)


def _check_voc(dataset_name: str) -> None:
    metadata = MetadataCatalog.get(dataset_name)
    fix = "or evaluate with `moco-transfer train`."
    if metadata.get("first_pixel", 1) != 1:
        raise InputError(
            f"Data set {dataset_name!r} counts pixels from {metadata.first_pixel}, but Detectron2's"
            f" evaluator of VOC reads every XML as counted from 1. Write the XML from 1, {fix}"
        )
    root = Path(metadata.dirname)
    image_list = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
    ids = image_list.read_text(encoding="utf-8").split() if image_list.exists() else []
    files = [root / "Annotations" / f"{image_id}.xml" for image_id in ids]
    for file in filter(Path.exists, files):
        for number, node in enumerate(ElementTree.parse(file).getroot().findall("object"), 1):
            values = {field: node.findtext(field) for field in ("pose", *_VOC_NUMBERS)}
            for field, text in values.items():
                is_whole = text is not None and text.strip().lstrip("-").isdecimal()
                if text is None or not (is_whole or field == "pose"):
                    raise InputError(
                        f"{file}, object {number}: {field.split('/')[-1]} is"
                        f" {'missing' if text is None else repr(text)}, and Detectron2's evaluator"
                        f" of VOC needs {'it' if text is None else 'a whole number'}. Write it,"
                        f" {fix}"
                    )


def _records(dataset: DetectionDataset) -> list[dict]:
    kind = {"bbox_mode": BoxMode.XYXY_ABS}
    return [r | {"annotations": [a | kind for a in r["annotations"]]} for r in dataset.records]


def _describe(dataset: DetectionDataset) -> None:
    metadata, classes = MetadataCatalog.get(dataset.name), list(dataset.class_names)
    if dataset.kind == "voc":
        metadata.set(evaluator_type="pascal_voc", thing_classes=classes, dirname=dataset.root)
        # ``first_pixel`` is not Detectron2's word: build_evaluator asks for it.
        metadata.set(split=dataset.split, year=dataset.year, first_pixel=dataset.first_pixel)
        return
    metadata.set(evaluator_type="coco", json_file=dataset.json_file, image_root=dataset.image_root)
    if not os.path.exists(dataset.json_file or ""):
        return
    indices = {category: index for index, category in enumerate(dataset.category_ids)}
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
