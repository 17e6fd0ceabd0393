#!/usr/bin/env python
"""Time of evaluating a VOC test set, compared with Detectron2's evaluator.

Draws a test set of the size of VOC 2007's (4,952 images, 20 classes) with detections that are
shifted objects, duplicates and false ones. Both evaluators read the same files and take the same
detections. The time runs from reading the annotations to the numbers, which must agree. Prints
seconds of wall clock and of this process; the last line is JSON. Needs Detectron2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # runs from a source tree without installation

import numpy as np
import torch

SIDE = 500  # px, both sides of every image


def draw_set(
    num_images: int, num_classes: int, objects_per_image: int, detections_per_image: int
) -> tuple[list, list]:
    """Return for each image its objects (classes (G,), boxes (G, 4) whole px, 0-based corners)
    and a model's output.
    """
    rng = np.random.default_rng(0)
    truth, outputs = [], []
    for _ in range(num_images):
        count = int(rng.integers(1, 2 * objects_per_image))
        corners, sizes = rng.integers(0, SIDE - 210, (count, 2)), rng.integers(12, 200, (count, 2))
        boxes, classes = (
            np.concatenate([corners, corners + sizes], axis=1),
            rng.integers(0, num_classes, count),
        )
        source = rng.integers(0, count, detections_per_image)
        found = boxes[source] + rng.normal(
            0, rng.choice([1, 6, 40], (detections_per_image, 1)), (detections_per_image, 4)
        )
        found = np.concatenate(
            [np.minimum(found[:, :2], found[:, 2:] - 1), found[:, 2:]], axis=1
        ).clip(0, SIDE)
        wrong = rng.random(detections_per_image) < 0.2
        guesses = np.where(wrong, rng.integers(0, num_classes), classes[source])
        output = {"boxes": found, "scores": rng.random(detections_per_image), "classes": guesses}
        truth.append((classes, boxes))
        outputs.append(
            {
                name: torch.from_numpy(np.asarray(v, np.int64 if name == "classes" else np.float32))
                for name, v in output.items()
            }
        )
    return truth, outputs


def timed(work: Callable[[], dict]) -> tuple[dict, float, float]:
    """Return what the work returns, the seconds it took and those of this process."""
    wall, own = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        result = work()
    return result, time.perf_counter() - wall, time.process_time() - own


def compare(
    name: str, ours: Callable[[], dict], theirs: Callable[[], dict], tolerance: float
) -> dict:
    """Run both, print a line, and fail where the numbers differ."""
    our, our_wall, our_cpu = timed(ours)
    their, their_wall, their_cpu = timed(theirs)
    worst = max(abs(our[key] - their[key]) for key in ("AP", "AP50", "AP75"))
    row = {
        "name": name,
        "ours_sec": our_wall,
        "theirs_sec": their_wall,
        "times": their_wall / our_wall,
    }
    row |= {"ours_cpu_sec": our_cpu, "theirs_cpu_sec": their_cpu, "times_cpu": their_cpu / our_cpu}
    row = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()
    } | {"largest_difference": worst, "AP": our["AP"]}
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if worst > tolerance:
        raise SystemExit(f"{name}: the numbers differ by {worst}: {our} against {their}")
    return row


def write_voc(folder: Path, truth: list, class_names: list[str]) -> list[str]:
    """Write a test set in VOC's layout, with empty images; returns the ids."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    ids = [f"{number:06d}" for number in range(len(truth))]
    (folder / "ImageSets/Main/test.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    for image_id, (classes, boxes) in zip(ids, truth, strict=True):
        objects = "".join(
            f"<object><name>{class_names[c]}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(number % 7 == 6)}</difficult>"
            f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for number, (c, (x0, y0, x1, y1)) in enumerate(zip(classes, boxes, strict=True))
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        (folder / f"Annotations/{image_id}.xml").write_text(
            f"<annotation><filename>{image_id}.jpg</filename>{size}{objects}</annotation>"
        )
        (folder / f"JPEGImages/{image_id}.jpg").touch()
    return ids


def bench_voc(folder: Path, num_images: int) -> dict:
    """Time VOC's AP at ten IoU thresholds, 20 classes."""
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    from moco_transfer.data import register_dataset
    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.evaluate.voc_eval import VocEvaluator

    class_names = [f"class{number}" for number in range(20)]
    truth, outputs = draw_set(num_images, 20, 3, 25)
    ids = write_voc(folder, truth, class_names)
    register_dataset(
        "bench_voc", "voc", root=str(folder), split="test", class_names=class_names, year=2007
    )
    MetadataCatalog.get("bench_voc").set(
        dirname=str(folder), split="test", year=2007, thing_classes=class_names
    )
    instances = []
    for output in outputs:
        fields = {
            "pred_boxes": Boxes(output["boxes"]),
            "scores": output["scores"],
            "pred_classes": output["classes"],
        }
        instances.append({"instances": Instances((SIDE, SIDE), **fields)})

    def run(evaluator, found: list) -> dict:
        evaluator.reset()
        for image_id, output in zip(ids, found, strict=True):
            evaluator.process([{"image_id": image_id}], [output])
        return evaluator.evaluate()["bbox"]

    return compare(
        f"VOC, {num_images} images, 20 classes, 10 thresholds, compared with Detectron2",
        lambda: run(VocEvaluator(get_dataset("bench_voc")), outputs),
        lambda: run(PascalVOCDetectionEvaluator("bench_voc"), instances),
        1e-9,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--voc-images", type=int, default=4952, help="images of the test set (default: 4952)"
    )
    args = parser.parse_args()
    if importlib.util.find_spec("detectron2") is None:
        raise SystemExit("Detectron2 is not installed: there is nothing to compare with.")
    with tempfile.TemporaryDirectory() as folder:
        rows = [bench_voc(Path(folder), args.voc_images)]
    print(json.dumps({"rows": rows, "load": os.getloadavg()[0], "torch": torch.__version__}))


if __name__ == "__main__":
    main()
