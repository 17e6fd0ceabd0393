"""Detectron2's evaluators on sets that are drawn in the tests; needs Detectron2."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch


def _instances(found: list, masks: bool):
    from detectron2.structures import Boxes, Instances

    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(
        torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4)
    )
    instances.scores = torch.tensor([score for _, score, _ in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([c for c, _, _ in found], dtype=torch.int64)
    if masks:
        instances.pred_masks = box_masks(instances.pred_boxes.tensor)
    return instances


def box_masks(boxes: torch.Tensor) -> torch.Tensor:
    """Return masks (N, 100, 100) bool that fill the boxes, rounded to pixels."""
    y, x = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    x0, y0, x1, y1 = (boxes.round()[:, i, None, None] for i in range(4))
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def voc_numbers(
    folder: Path, truth: dict, detections: dict, class_names: tuple[str, ...], year: int
) -> dict:
    """Return Detectron2's VOC numbers; writes the truth as XML into the (new) folder, as Detectron2
    wants it.
    """
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text(
        "".join(f"{image_id}\n" for image_id in truth)
    )
    for image_id, objects in truth.items():
        nodes = "".join(
            f"<object><name>{class_names[c]}</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult>"
            f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for c, (x0, y0, x1, y1), difficult in objects
        )
        (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{nodes}</annotation>")
    name = f"voc_{folder}"
    MetadataCatalog.get(name).set(
        dirname=str(folder), split="test", year=year, thing_classes=list(class_names)
    )
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for image_id, found in detections.items():
        evaluator.process([{"image_id": image_id}], [{"instances": _instances(found, masks=False)}])
    return {key: float(value) for key, value in evaluator.evaluate()["bbox"].items()}


def coco_numbers(name: str, json_file: Path, detections: dict, tasks: tuple[str, ...]) -> dict:
    """Return Detectron2's COCO numbers by pycocotools; masks fill the boxes."""
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import COCOEvaluator

    categories = sorted(json.loads(json_file.read_text())["categories"], key=lambda c: c["id"])
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        thing_classes=[c["name"] for c in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
    )
    evaluator = COCOEvaluator(name, tasks=tasks, use_fast_impl=False)
    evaluator.reset()
    for image_id, found in detections.items():
        evaluator.process(
            [{"image_id": image_id}], [{"instances": _instances(found, masks="segm" in tasks)}]
        )
    with contextlib.redirect_stdout(io.StringIO()):
        results = evaluator.evaluate()
    return {
        task: {key: float(value) for key, value in numbers.items() if not np.isnan(value)}
        for task, numbers in results.items()
    }
