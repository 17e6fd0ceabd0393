"""Draw a trained detector's boxes, masks and labels on images of one's own.

Writes each image, drawn on, into the folder of --output, and detections.json with every
detection's class, score and box (XYXY, px; masks as COCO's RLE). The names of the classes are those
that the run recorded. Images that cannot be read are named and skipped.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    add = parser.add_argument
    detector = "OUTPUT_DIR of `moco-transfer train`, or a checkpoint in it"
    add("detector", metavar="RUN_FOLDER_OR_CHECKPOINT", help=detector)
    images = "files, and folders that are searched at any depth"
    add("images", nargs="+", metavar="IMAGES", help=images)
    output = "folder for the drawings and detections.json"
    add("--output", required=True, metavar="DIR", help=output)
    threshold = "show what scores more than this, 0-1 (default 0.5)"
    add("--threshold", type=float, default=0.5, metavar="SCORE", help=threshold)
    classes = "names of the classes in their order, where the run did not record them"
    add("--classes", metavar="A,B,...", help=classes)
    config = "config of a checkpoint that does not hold it, e.g. one of Detectron2's"
    add("--config-file", metavar="FILE", help=config)
    devices, where = ("auto", "cpu", "cuda"), "where to compute (default: a GPU when there is one)"
    add("--device", default="auto", choices=devices, help=where)


def run(args: argparse.Namespace) -> int:
    """Predict and draw; returns 0, images that were skipped are counted and named."""
    from ..finetune.predict import DETECTIONS_FILE, find_images, load_detector, predict_images
    from ..runtime.log import set_up_logging

    set_up_logging()
    images = find_images(args.images, args.output)
    detector = load_detector(
        args.detector,
        score_threshold=args.threshold,
        device=args.device,
        class_names=args.classes.split(",") if args.classes else None,
        config_file=args.config_file,
    )
    head, entries = predict_images(detector, images, args.output)
    counts = collections.Counter(d["class"] for entry in entries for d in entry["detections"])
    found = ", ".join(f"{name} {counts[name]}" for name in head["classes"] if counts[name])
    drawn = f"{len(entries)} images drawn in {args.output}"
    print(f"{drawn}; detections above {args.threshold:g}: {found or 'none'}.")
    print(f"Every detection: {Path(args.output) / DETECTIONS_FILE}")
    if skipped := [each["file"] for each in head["skipped"]]:
        print(f"Skipped, because they cannot be read: {len(skipped)} ({', '.join(skipped)})")
    return 0
