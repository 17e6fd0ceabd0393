"""Predictions drawn on images, and written: detections.json and coco.json, or classes.json."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...data.drawing import draw_detections, draw_labels
from ...data.images.decode import read_image
from ...evaluate.predictions import to_coco_results
from ...evaluate.semantic_eval import encode_classes
from ...runtime.errors import InputError
from ...runtime.files import atomic_write_bytes, atomic_write_text
from ...runtime.progress import progress
from .detector import Detector
from .images import JPEG, Image
from .video import Video, drawn_video

logger = logging.getLogger(__name__)

SCHEMA = 1
DETECTIONS_FILE, CLASSES_FILE, COCO_FILE = "detections.json", "classes.json", "coco.json"


def coco_content(
    entries: Sequence[Mapping[str, Any]], head: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Return detections as the content of a COCO file, which FiftyOne and CVAT import; its
    ``annotations`` are also COCO's result format. Ids count from 1; ``file_name`` is the path, of
    frames of clip.mp4 ``clip/frame_000000.png``, …
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, start=1):
        size = {key: entry[key] for key in ("width", "height")}
        name = entry["file"]
        if "frame" in entry:
            name = f"{Path(name).stem}/frame_{entry['frame']:06d}.png"
        images.append({"id": number, "file_name": name, **size})
        for found in entry["detections"]:
            x0, y0, x1, y1 = found["box"]
            width, height = round(x1 - x0, 2), round(y1 - y0, 2)
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": found["class_index"] + 1,
                "bbox": [x0, y0, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": found["score"],
            }
            if "segmentation" in found:
                annotation["segmentation"] = found["segmentation"]
            if "keypoints" in found:
                # Pixel indices, each marked as visible, as annotation tools expect it.
                points = [(x - 0.5, y - 0.5, 2) for x, y, _ in found["keypoints"]]
                annotation |= {"keypoints": [*itertools.chain.from_iterable(points)]}
                annotation["num_keypoints"] = len(points)
            annotations.append(annotation)
    named = {"keypoints": head["keypoints"]} if "keypoints" in head else {}
    categories = [
        {"id": number, "name": name, **named} for number, name in enumerate(head["classes"], 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def predict_images(
    detector: Detector, images: Iterable[Image], output_dir: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw what a detector finds on each image and on each frame of a video, as they come, and
    write ``detections.json`` and, the same in COCO's form, ``coco.json``, or ``classes.json`` of a
    segmenter. After Ctrl-C the files hold what was found until then.

    Returns what the file holds: its head (``skipped``: file and reason), and an entry for each
    image or frame. Raises InputError if none could be read.
    """
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    try:
        for image in progress(images, "predicting", unit="images"):
            target = Path(output_dir) / image.drawn
            try:
                source = Video(image.path) if image.is_video else read_image(image.path, "RGB")
                if isinstance(source, Video):
                    entries += _look_at_frames(detector, image, source, target)
                    continue
            except InputError as error:
                logger.warning("skipped: %s", error)
                skipped.append({"file": image.path, "reason": str(error)})
                continue
            drawn, found = _look(detector, image.path, source)
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if target.suffix.lower() in JPEG else []
            encoded = cv2.imencode(target.suffix.lower(), drawn[:, :, ::-1], quality)[1]
            atomic_write_bytes(target, encoded.tobytes())
            entries.append({"file": image.path, "drawn": image.drawn, **found})
    except KeyboardInterrupt:
        if entries:
            _write(detector, entries, skipped, output_dir)
        raise
    if not entries:
        raise InputError(
            f"None of the {len(skipped)} images can be read; the first: {skipped[0]['reason']}"
            if skipped
            else "No image was named."
        )
    return _write(detector, entries, skipped, output_dir), entries


def _look_at_frames(
    detector: Detector, image: Image, video: Video, target: Path
) -> list[dict[str, Any]]:
    """Write the drawn video; return an entry for each frame, ``frame`` counted from 0."""
    entries = []
    frames = progress(video, Path(image.path).name, total=len(video), unit="frames")
    with drawn_video(target, video) as append:
        for number, pixels in enumerate(frames):
            drawn, found = _look(detector, image.path, pixels)
            append(drawn)
            entries.append({"file": image.path, "frame": number, "drawn": image.drawn, **found})
    return entries


def _look(detector: Detector, path: str, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return pixels with what is found in them drawn, and the size and findings for an entry."""
    predicted, names = detector(pixels), detector.class_names
    size = {"width": pixels.shape[1], "height": pixels.shape[0]}
    if "sem_seg" in predicted:
        labels = predicted["sem_seg"]
        return draw_labels(pixels, labels, names), size | {"classes": _class_entries(labels, names)}
    drawn = draw_detections(pixels, predicted, names, detector.skeleton)
    return drawn, size | {"detections": _entries(path, predicted, names)}


def _write(
    detector: Detector,
    entries: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, str]],
    output_dir: str,
) -> dict[str, Any]:
    """Write what was found; return the head."""
    head = {
        "schema": SCHEMA,
        "detector": detector.source,
        "score_threshold": detector.score_threshold,
        "classes": list(detector.class_names),
        "skipped": skipped,
    }
    if detector.score_threshold is None:
        del head["score_threshold"]
    if detector.keypoint_names:
        head["keypoints"] = list(detector.keypoint_names)
    text = json.dumps(head | {"images": entries}, indent=1, ensure_ascii=False) + "\n"
    name = CLASSES_FILE if detector.score_threshold is None else DETECTIONS_FILE
    atomic_write_text(Path(output_dir) / name, text)
    if name == DETECTIONS_FILE:
        content = json.dumps(coco_content(entries, head), ensure_ascii=False)
        atomic_write_text(Path(output_dir) / COCO_FILE, content + "\n")
    return head


def _class_entries(labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the classes of an image's pixels, the most frequent first; masks are COCO's RLE."""
    counts = np.bincount(labels.ravel())
    order = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
    masks = encode_classes(labels, np.array(order))
    return [
        {
            "class": class_names[index],
            "class_index": index,
            "pixels": int(counts[index]),
            "segmentation": mask,
        }
        for index, mask in zip(order, masks, strict=True)
    ]


def _entries(
    path: str, detections: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return an image's detections for detections.json; masks are COCO's compressed RLE."""
    tensors = {name: torch.from_numpy(values) for name, values in detections.items()}
    coco = to_coco_results(path, tensors, tuple(range(len(class_names))))
    entries: list[dict[str, Any]] = []
    for index, result in enumerate(coco):
        entry: dict[str, Any] = {
            "class": class_names[result["category_id"]],
            "class_index": result["category_id"],
            "score": round(result["score"], 5),
            "box": [round(v, 2) for v in detections["boxes"][index].tolist()],
        }
        if "segmentation" in result:
            entry["segmentation"] = result["segmentation"]
        if "keypoints" in detections:
            points = detections["keypoints"][index].tolist()
            entry["keypoints"] = [[round(x, 2), round(y, 2), round(p, 5)] for x, y, p in points]
        entries.append(entry)
    return entries
