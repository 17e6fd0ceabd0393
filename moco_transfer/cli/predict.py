"""Draw a trained detector's boxes, masks and labels on images of one's own.

Writes each image, drawn on, into the folder of --output, and detections.json with every
detection's class, score and box (XYXY, px; masks as COCO's RLE). The names of the classes are those
that the run recorded. Images that cannot be read are named and skipped.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

EPILOG = """examples:
  A folder of images, with the newest checkpoint of a run:
    moco-transfer predict out/cells/moco BCCD/JPEGImages --output out/cells/drawn
  Some images, a certain checkpoint, only what is fairly sure:
    moco-transfer predict out/cells/moco/checkpoint_0000250.pth a.jpg b.png --output drawn \\
        --threshold 0.7
  In Python:
    from moco_transfer.finetune import load_detector
    found = load_detector("out/cells/moco")("a.jpg")    # boxes, scores, classes[, masks]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument(
        "detector",
        metavar="RUN_FOLDER_OR_CHECKPOINT",
        help="OUTPUT_DIR of `moco-transfer train`, or a checkpoint in it",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, and folders that are searched at any depth",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the drawings and detections.json"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="show what scores more than this, 0-1 (default 0.5)",
    )
    parser.add_argument(
        "--classes",
        metavar="A,B,...",
        help="names of the classes in their order, where the run did not record them",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of a checkpoint that does not hold it, e.g. one of Detectron2's",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where to compute (default: a GPU when there is one)",
    )


def run(args: argparse.Namespace) -> int:
    """Predict and draw.

    Returns:
        0; images that were skipped are counted and named.

    Raises:
        InputError: If the detector or a path cannot be used, or no image can be read.
    """
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
    print(
        f"{len(entries)} images drawn in {args.output}; detections above {args.threshold:g}:"
        f" {found or 'none'}."
    )
    print(f"Every detection: {Path(args.output) / DETECTIONS_FILE}")
    if skipped := [each["file"] for each in head["skipped"]]:
        print(f"Skipped, because they cannot be read: {len(skipped)} ({', '.join(skipped)})")
    return 0
