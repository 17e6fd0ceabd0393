#!/usr/bin/env python
"""Time of evaluating test sets of COCO's and VOC's size, next to pycocotools and Detectron2.

    python tools/bench_evaluate.py         (VOC needs Detectron2; taskset -c 0 for one core)

Detections are shifted objects, duplicates and false ones. COCO: 5,000 images, 80 classes, boxes,
masks and keypoints (of one class). Timed is the way from ground truth and results in memory to the
numbers, which must agree to 1e-10; "numbers" is what pycocotools gives, "all" has the TIDE errors
and the file of matches as well. VOC: 4,952 images and 20 classes, from reading the annotations to
the numbers, TIDE errors and matches. Ours and theirs take turns. Printed are the medians of wall
clock and of this process's seconds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

import numpy as np
import torch

SIDE = 500  # px, both sides of every image
NUM_POINTS = 17
RESULT_KEYS = {"bbox": ["bbox"], "segm": ["segmentation"], "keypoints": ["bbox", "keypoints"]}


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
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        classes = rng.integers(0, num_classes, count)
        source = rng.integers(0, count, detections_per_image)
        spread = rng.choice([1, 6, 40], (detections_per_image, 1))
        found = boxes[source] + rng.normal(0, spread, (detections_per_image, 4))
        found[:, :2] = np.minimum(found[:, :2], found[:, 2:] - 1)
        wrong = rng.random(detections_per_image) < 0.2
        guesses = np.where(wrong, rng.integers(0, num_classes), classes[source])
        truth.append((classes, boxes))
        outputs.append(
            {
                "boxes": torch.from_numpy(found.clip(0, SIDE).astype(np.float32)),
                "scores": torch.from_numpy(rng.random(detections_per_image).astype(np.float32)),
                "classes": torch.from_numpy(guesses.astype(np.int64)),
            }
        )
    return truth, outputs


def take_turns(
    name: str, works: dict[str, Callable[[], dict]], rounds: int, tolerance: float
) -> dict:
    """Run all in turn, print a line, and fail where the numbers of the first and last differ."""
    seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in works}
    for _ in range(rounds):
        results = {}
        for key, work in works.items():
            wall, own = time.perf_counter(), time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                results[key] = work()
            spent = time.perf_counter() - wall, time.process_time() - own
            seconds[key].append(spent)
    our, their = list(results.values())[0], list(results.values())[-1]
    worst = max(abs(our[key] - their[key]) for key in ("AP", "AP50", "AP75"))
    row: dict = {"name": name, "AP": our["AP"], "largest_difference": worst}
    last = list(works)[-1]
    for key, spent in seconds.items():
        row[key] = {
            kind: round(statistics.median(s[i] for s in spent), 3)
            for i, kind in enumerate(("wall_sec", "cpu_sec"))
        }
        for i, kind in enumerate(("times_wall", "times_cpu")):
            ratios = [t[i] / s[i] for s, t in zip(spent, seconds[last], strict=True)]
            row[key][kind] = round(statistics.median(ratios), 2)
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if worst > tolerance:
        raise SystemExit(f"{name}: the numbers differ by {worst}: {our} against {their}")
    return row


def draw_coco(num_images: int, num_classes: int) -> tuple[dict, list[dict], list]:
    """Return the content of a json file, results with boxes, masks and keypoints, and what of
    them evaluators hold as arrays.
    """
    from pycocotools import mask as mask_api

    rng = np.random.default_rng(1)
    truth, outputs = draw_set(num_images, num_classes, 7, 36)
    images: list[dict] = []
    annotations: list[dict] = []
    results: list[dict] = []

    def points(boxes: np.ndarray, third: np.ndarray) -> list:
        """Draw keypoints (N, 17, 3) on the diagonals of the boxes."""
        part = np.linspace(0, 1, NUM_POINTS)[None, :, None]
        place = boxes[:, None, :2] + part * (boxes[:, None, 2:] - boxes[:, None, :2])
        return np.concatenate([place.round(), third], axis=2).reshape(len(boxes), -1).tolist()

    def polygons(boxes: np.ndarray) -> list[list[list[float]]]:
        """Return an ellipse of 16 points in each box."""
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        unit = (1 + np.stack([np.cos(angles), np.sin(angles)], axis=1)) / 2
        place = boxes[:, None, :2] + unit * (boxes[:, None, 2:] - boxes[:, None, :2])
        return [[outline] for outline in place.round(2).reshape(len(boxes), -1).tolist()]

    for number, ((classes, boxes), output) in enumerate(zip(truth, outputs, strict=True), start=1):
        size = {"height": SIDE, "width": SIDE}
        images.append({"id": number, "file_name": f"{number}.jpg", **size})
        visible = rng.integers(0, 3, (len(boxes), NUM_POINTS, 1))
        columns = classes.tolist(), boxes.tolist(), polygons(boxes), points(boxes, visible)
        for c, (x0, y0, x1, y1), outline, keypoints in zip(*columns, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": c + 1}
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": 0.785 * (x1 - x0) * (y1 - y0)}
            crowd = int(rng.random() < 0.01)
            counted = sum(v > 0 for v in keypoints[2::3])
            entry |= {"iscrowd": crowd, "segmentation": outline}
            annotations.append(entry | {"keypoints": keypoints, "num_keypoints": counted})
        found = output["boxes"].numpy()
        sizes = np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], axis=1).tolist()
        confidence = rng.random((len(found), NUM_POINTS, 1))
        keypoints_of = points(found.astype(float), confidence)
        outlines = polygons(found.astype(float))
        columns = output["classes"].tolist(), output["scores"].tolist(), sizes, keypoints_of
        for c, score, box, keypoints, outline in zip(*columns, outlines, strict=True):
            encoded = mask_api.merge(mask_api.frPyObjects(outline, SIDE, SIDE))
            segmentation = {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}
            result = {"image_id": number, "category_id": c + 1, "score": score, "bbox": box}
            results.append(result | {"segmentation": segmentation, "keypoints": keypoints})
    names = [f"point{i}" for i in range(NUM_POINTS)]
    categories = [{"id": c + 1, "name": f"class{c}"} for c in range(num_classes)]
    categories = [category | {"keypoints": names} for category in categories]
    arrays = [{key: value.numpy() for key, value in output.items()} for output in outputs]
    found = list(enumerate(arrays, start=1))
    return {"images": images, "annotations": annotations, "categories": categories}, results, found


def bench_coco(folder: Path, task: str, num_images: int, rounds: int) -> dict:
    """Time COCO's numbers of a task."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from moco_transfer.data import register_dataset
    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.evaluate.coco_eval import CocoEvaluator, evaluate_results

    content, results, found = draw_coco(num_images, 1 if task == "keypoints" else 80)
    folder.mkdir()
    for image in content["images"]:
        (folder / image["file_name"]).touch()
    (folder / "truth.json").write_text(json.dumps(content))
    where = {"json_file": str(folder / "truth.json"), "image_root": str(folder)}
    register_dataset(f"bench_{task}", "coco", **where)
    dataset = get_dataset(f"bench_{task}")
    num_objects = sum(len(record["annotations"]) for record in dataset.records)  # read now

    def theirs() -> dict:
        api, keys = COCO(), ("image_id", "category_id", "score", *RESULT_KEYS[task])
        api.dataset = content | {
            "annotations": [dict(a) for a in content["annotations"]],
            "info": {},
        }
        api.createIndex()
        loaded = api.loadRes([{key: result[key] for key in keys} for result in results])
        scored = COCOeval(api, loaded, task)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        return dict(zip(("AP", "AP50", "AP75"), (100 * scored.stats[:3]).tolist(), strict=True))

    evaluator = CocoEvaluator(dataset, (task,), output_file=folder / "predictions.json")
    works = {
        "numbers": lambda: evaluate_results(results, dataset, (task,), found=found)[task],
        "all": lambda: evaluator.score(found, results)[task],
        "pycocotools": theirs,
    }
    about = f"COCO {task}, {num_images} images, {num_objects} objects, {len(results)} detections"
    return take_turns(about, works, rounds, 1e-10)


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


def bench_voc(folder: Path, num_images: int, rounds: int) -> dict:
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

    works = {
        "all": lambda: run(VocEvaluator(get_dataset("bench_voc")), outputs),
        "detectron2": lambda: run(PascalVOCDetectionEvaluator("bench_voc"), instances),
    }
    about = f"VOC, {num_images} images, {25 * num_images} detections, 10 thresholds"
    return take_turns(about, works, rounds, 1e-9)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tasks", nargs="*", default=["bbox", "segm", "keypoints"], choices=list(RESULT_KEYS)
    )
    parser.add_argument("--coco-images", type=int, default=5000, help="default: 5000")
    parser.add_argument(
        "--voc-images", type=int, default=4952, help="0 leaves VOC out (default: 4952)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    args = parser.parse_args()
    voc = args.voc_images and importlib.util.find_spec("detectron2") is not None
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            bench_coco(Path(folder) / task, task, args.coco_images, args.rounds)
            for task in args.tasks
        ]
        if voc:
            rows.append(bench_voc(Path(folder) / "voc", args.voc_images, args.rounds))
        else:
            print("VOC is left out: Detectron2 is not installed, or --voc-images is 0.")
    print(json.dumps({"rows": rows, "load": os.getloadavg()[0], "torch": torch.__version__}))


if __name__ == "__main__":
    main()
