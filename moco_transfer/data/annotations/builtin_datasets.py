"""The data sets that are known without being registered, by Detectron2's names and in Detectron2's
folders.

Source:
    detectron2/data/datasets/builtin.py. Added: voc_2012_test, whose annotations VOC does not
    publish.
"""

from __future__ import annotations

from dataclasses import dataclass

from .voc import VOC_CLASSES


@dataclass(frozen=True)
class DatasetSource:
    """Where a data set lies and how it is read and scored; all that registering it says.

    Attributes:
        kind: ``coco`` (one json) or ``voc`` (a split of XML files); also names the evaluator.
        json_file, image_root: For coco.
        root, split, class_names: For voc.
        year: For voc, the metric: 2007 is the 11-point AP, 2012 the area under the curve.
        first_pixel: For voc, 1 for inclusive pixels counted from 1, 0 for continuous coordinates
            from 0.
        is_builtin: Whether the paths are relative to the folder in DETECTRON2_DATASETS.
        unique_annotation_ids: For coco, see :func:`~moco_transfer.data.coco.read_coco`.
    """

    kind: str
    json_file: str | None = None
    image_root: str | None = None
    root: str | None = None
    split: str | None = None
    class_names: tuple[str, ...] | None = None
    year: int | None = None
    first_pixel: int = 1
    is_builtin: bool = False
    unique_annotation_ids: bool = True


def builtin_sources() -> dict[str, DatasetSource]:
    """Return all built-in data sets by name; their paths are relative to the folder in
    DETECTRON2_DATASETS.
    """
    coco = {
        "coco_2014_train": ("train2014", "instances_train2014"),
        "coco_2014_val": ("val2014", "instances_val2014"),
        "coco_2014_minival": ("val2014", "instances_minival2014"),
        "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
        "coco_2017_train": ("train2017", "instances_train2017"),
        "coco_2017_val": ("val2017", "instances_val2017"),
        "coco_2017_test": ("test2017", "image_info_test2017"),
        "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
        "coco_2017_val_100": ("val2017", "instances_val2017_100"),
        "keypoints_coco_2014_train": ("train2014", "person_keypoints_train2014"),
        "keypoints_coco_2014_val": ("val2014", "person_keypoints_val2014"),
        "keypoints_coco_2014_minival": ("val2014", "person_keypoints_minival2014"),
        "keypoints_coco_2014_valminusminival": ("val2014", "person_keypoints_valminusminival2014"),
        "keypoints_coco_2017_train": ("train2017", "person_keypoints_train2017"),
        "keypoints_coco_2017_val": ("val2017", "person_keypoints_val2017"),
        "keypoints_coco_2017_val_100": ("val2017", "person_keypoints_val2017_100"),
    }
    published_with_repeated_ids = {
        "instances_minival2014",
        "instances_valminusminival2014",
        "person_keypoints_minival2014",
        "person_keypoints_valminusminival2014",
    }
    sources = {
        name: DatasetSource(
            kind="coco",
            json_file=f"coco/annotations/{stem}.json",
            image_root=f"coco/{images}",
            is_builtin=True,
            unique_annotation_ids=stem not in published_with_repeated_ids,
        )
        for name, (images, stem) in coco.items()
    }
    for year in (2007, 2012):
        for split in ("train", "val", "trainval", "test"):
            sources[f"voc_{year}_{split}"] = DatasetSource(
                kind="voc",
                root=f"VOC{year}",
                split=split,
                class_names=VOC_CLASSES,
                year=year,
                is_builtin=True,
            )
    return sources
