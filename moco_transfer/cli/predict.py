"""A trained detector or segmenter on images of one's own."""

from __future__ import annotations

import argparse
import collections
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Predict and draw; returns 0, images that were skipped are counted and named."""
    from ..finetune.predict import (
        CLASSES_FILE,
        DETECTIONS_FILE,
        Image,
        find_images,
        load_detector,
        named_images,
        predict_images,
    )
    from ..runtime.errors import InputError
    from ..runtime.log import set_up_logging

    set_up_logging()
    images: Iterable[Image]
    if "-" in args.images:
        if len(args.images) > 1:
            raise InputError("'-' reads the names from stdin; give it alone.")
        images = named_images(map(os.fsdecode, sys.stdin.buffer), args.output)
    else:
        images = find_images(args.images, args.output)
    detector = load_detector(
        args.detector,
        score_threshold=args.threshold,
        device=args.device,
        class_names=args.classes.split(",") if args.classes else None,
        config_file=args.config_file,
    )
    head, entries = predict_images(detector, images, args.output)
    what = "images and frames" if any("frame" in entry for entry in entries) else "images"
    drawn = f"{len(entries)} {what} drawn in {args.output}"
    if detector.score_threshold is None:
        pixels: collections.Counter[str] = collections.Counter()
        for each in (each for entry in entries for each in entry["classes"]):
            pixels[each["class"]] += each["pixels"]
        shares = (f"{name} {100 * n / pixels.total():.1f} %" for name, n in pixels.most_common())
        print(f"{drawn}; pixels: {', '.join(shares)}.")
        print(f"The pixels of each class: {Path(args.output) / CLASSES_FILE}")
    else:
        counts = collections.Counter(d["class"] for entry in entries for d in entry["detections"])
        found = ", ".join(f"{name} {counts[name]}" for name in head["classes"] if counts[name])
        print(f"{drawn}; detections above {detector.score_threshold:g}: {found or 'none'}.")
        print(f"Every detection: {Path(args.output) / DETECTIONS_FILE}")
    if skipped := [each["file"] for each in head["skipped"]]:
        print(f"Skipped, because they cannot be read: {len(skipped)} ({', '.join(skipped)})")
    return 0
