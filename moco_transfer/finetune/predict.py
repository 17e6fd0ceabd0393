"""A trained detector or segmenter on images of one's own: loading it, finding images, predicting
and drawing.

Boxes are XYXY, px of the image turned upright as its EXIF orientation says.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from ..config import load_detection_config, read_detection_config
from ..config.schema_file import SEGMENTOR
from ..data.batches.transforms import TestMapper
from ..data.drawing import draw_detections, draw_labels
from ..data.images.decode import read_image
from ..data.images.image_source import EXTENSIONS
from ..evaluate.predictions import to_coco_results
from ..evaluate.semantic_eval import encode_classes
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.device import best_device
from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import atomic_write_bytes, atomic_write_text
from ..runtime.progress import progress
from .handover import DETECTOR, coverage_gap, load_weights, read_weights, weights_coverage

logger = logging.getLogger(__name__)

SCHEMA = 1
DETECTIONS_FILE, CLASSES_FILE, COCO_FILE = "detections.json", "classes.json", "coco.json"
_LIST = ".txt"  # of images, one path a line, relative to the list
_DEFAULT_THRESHOLD = 0.5
_EXPECTED = "expected the OUTPUT_DIR of moco-transfer train, or a checkpoint in it."
_JPEG, _PNG = (".jpg", ".jpeg"), ".png"  # drawings are saved as these; other images as .png


@dataclass(frozen=True)
class Detector:
    """A trained detector or segmenter that takes images; :func:`load_detector` makes one.

    ``mapper`` has the order of channels and the size that ``model`` takes; ``source`` is the
    checkpoint. A segmenter has no ``score_threshold``. ``keypoint_names`` and ``skeleton`` (pairs
    of indices) are those that the run recorded.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    mapper: TestMapper
    score_threshold: float | None
    device: torch.device
    source: str
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __call__(self, source: str | os.PathLike[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Return what is found in an image file, or in pixels RGB uint8 (H, W, 3).

        Returns:
            ``boxes`` float32 (N, 4) XYXY in px of the source, ``scores`` float32 (N,) 0-1
            descending, ``classes`` int64 (N,) indices into ``class_names``, and with a mask head
            ``masks`` bool (N, H, W), with a keypoint head ``keypoints`` float32 (N, K, 3): x, y in
            px of the source, and score. Of a segmenter ``sem_seg`` int64 (H, W) alone, indices into
            ``class_names``.

        Raises:
            InputError: If the file cannot be read, or the array is not RGB uint8.
        """
        pixels = source if isinstance(source, np.ndarray) else read_image(os.fspath(source), "RGB")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputError(
                f"A source must be RGB uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}."
            )
        height, width = pixels.shape[:2]
        ordered = pixels if self.mapper.image_format == "RGB" else pixels[:, :, ::-1]
        image = self.mapper.prepare(np.ascontiguousarray(ordered)).to(self.device)
        with torch.inference_mode():
            (output,) = self.model([{"image": image, "height": height, "width": width}])
        return {name: values.cpu().numpy() for name, values in output.items()}


def load_detector(
    path: str | os.PathLike[str],
    *,
    score_threshold: float | None = None,
    device: str = "auto",
    class_names: Sequence[str] | None = None,
    config_file: str | None = None,
) -> Detector:
    """Load a fine-tuned detector or segmenter for use on images; no code in its files is run.

    Args:
        path: OUTPUT_DIR of ``moco-transfer train`` or of Detectron2, or a checkpoint.
        score_threshold: Detections score more than this, 0-1; None for 0.5. Not for a segmenter.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        class_names: By default those that the run recorded.
        config_file: By default the config in the checkpoint, else config.yaml next to it.

    Raises:
        InputError: If it is no detector, its config is missing, or the two do not match, or a
            segmenter shall have a threshold.
    """
    from .torchvision_engine.build import build_model
    from .torchvision_engine.implemented_keys import WAY_OUT

    if score_threshold is not None and not 0 <= score_threshold < 1:
        raise InputError(
            f"The score threshold must be at least 0 and less than 1, got {score_threshold}."
        )
    chosen = best_device() if device == "auto" else torch.device(device)
    checkpoint = Path(path) if Path(path).is_file() else CheckpointFolder(Path(path)).last()
    if checkpoint is None:
        raise MissingFileError(
            f"{path} is no file, and no folder with last_checkpoint; {_EXPECTED}"
        )
    weights = read_weights(str(checkpoint))
    if weights.content is None or weights.kind != DETECTOR:
        raise InputError(f"{checkpoint} holds no detector; {_EXPECTED}")
    top = weights.content.top
    cfg = _config(checkpoint, top, config_file).clone()
    cfg.defrost()
    segments = cfg.MODEL.META_ARCHITECTURE == SEGMENTOR
    if segments and score_threshold is not None:
        raise InputError(
            f"{checkpoint} gives each pixel a class, without a score: leave out the threshold."
        )
    threshold = (
        None
        if segments
        else float(_DEFAULT_THRESHOLD if score_threshold is None else score_threshold)
    )
    if threshold is not None:
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    try:
        model = build_model(cfg)
    except InputError as error:
        raise InputError(
            f"{checkpoint}: {str(error).removesuffix(WAY_OUT).rstrip()} Only Detectron2 runs such a"
            " detector; train --eval-only --engine detectron2 writes its predictions on a data set."
        ) from error
    gap = coverage_gap(weights_coverage(model.state_dict(), weights), weights, "")
    if gap is not None:
        raise InputError(gap)
    load_weights(model, weights)
    inputs, heads = cfg.INPUT, cfg.MODEL.SEM_SEG_HEAD if segments else cfg.MODEL.ROI_HEADS
    names = class_names, top.get("class_names")
    return Detector(
        model=model.eval().to(chosen),
        class_names=_class_names(checkpoint, *names, heads.NUM_CLASSES),
        mapper=TestMapper(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, inputs.FORMAT),
        score_threshold=threshold,
        device=chosen,
        source=str(checkpoint),
        **_keypoints(
            top, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
        ),
    )


def _config(checkpoint: Path, top: Mapping[str, Any], config_file: str | None) -> CfgNode:
    sibling = checkpoint.parent / "config.yaml"
    if config_file is None and isinstance(top.get("config"), str):
        return read_detection_config(top["config"], str(checkpoint))
    if config_file is None and not sibling.is_file():
        raise InputError(
            f"{checkpoint} does not hold its config and there is no {sibling}. Name the config that"
            " it was trained with: --config-file FILE."
        )
    return load_detection_config(config_file or sibling)


def _class_names(
    checkpoint: Path, given: Sequence[str] | None, recorded: Any, count: int
) -> tuple[str, ...]:
    """Return the names that the user or the checkpoint gives, else numbers."""
    if given is not None and len(given) != count:
        raise InputError(f"{checkpoint} has {count} classes, but {len(given)} names are given.")
    for names in (given, recorded):
        if isinstance(names, (list, tuple)) and len(names) == count:
            return tuple(map(str, names))
    logger.warning("%s does not name its %d classes. Name them with --classes.", checkpoint, count)
    return tuple(f"class {index}" for index in range(count))


def _keypoints(recorded: Mapping[str, Any], count: int) -> dict[str, tuple]:
    """Return names and skeleton as a checkpoint records them, empty if they do not fit."""
    names, skeleton = (recorded.get(key) for key in ("keypoints", "skeleton"))
    if not isinstance(names, list) or len(names) != count or not isinstance(skeleton, list):
        return {}
    pairs = [line for line in skeleton if isinstance(line, list) and len(line) == 2]
    lines = tuple((a, b) for a, b in pairs if a in range(count) and b in range(count))
    return {"keypoint_names": tuple(map(str, names)), "skeleton": lines}


class Image(NamedTuple):
    """An image to look at: its file, and where below the output folder its drawing goes."""

    path: str
    drawn: str


def find_images(paths: Sequence[str], output_dir: str) -> list[Image]:
    """Return the images that files and folders stand for, each once, with a name of its own below
    the output folder. Folders are searched at any depth, without the output folder.

    Raises:
        InputError: If a path does not exist, a folder holds no image, or a drawing would overwrite
            an image.
    """
    output = Path(output_dir).resolve()
    found: dict[Path, tuple[Path, Path]] = {}  # by resolved path, so that each comes once
    for path in map(Path, paths):
        if not path.exists():
            raise MissingFileError(f"The image {path} does not exist.")
        files = sorted(path.rglob("*")) if path.is_dir() else _listed(path)
        if path.is_dir():
            files = [f for f in files if f.suffix.lower() in EXTENSIONS and f.is_file()]
            files = [f for f in files if output not in f.resolve().parents]
        if not files:
            raise InputError(f"The folder {path} holds no image ({', '.join(EXTENSIONS)}).")
        for file in files:
            relative = file.relative_to(path) if path.is_dir() else Path(file.name)
            found.setdefault(file.resolve(), (file, relative))
    images: dict[str, Image] = {}
    for file, relative in found.values():
        kept = relative.suffix.lower() in (*_JPEG, _PNG)
        stem, suffix = (relative.with_suffix(""), relative.suffix) if kept else (relative, _PNG)
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{suffix}" for n in itertools.count(1))
        drawn = next(name for name in names if name not in images)
        images[drawn] = Image(str(file), drawn)
        if (output / drawn).resolve() in found:
            raise InputError(f"--output {output_dir} would overwrite the image {output / drawn}.")
    return list(images.values())


def _listed(path: Path) -> list[Path]:
    """Return the images of a list, or the image itself."""
    if path.suffix.lower() != _LIST:
        return [path]
    lines = path.read_text(encoding="utf-8").splitlines()
    files = [path.parent / line.strip() for line in lines if line.strip()]
    if missing := [file for file in files if not file.is_file()]:
        raise MissingFileError(
            f"{path} names {len(missing)} of {len(files)} images that do not exist; the first is"
            f" {missing[0]}. Paths are relative to the list."
        )
    return files


def coco_content(
    entries: Sequence[Mapping[str, Any]], head: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Return detections as the content of a COCO file, which FiftyOne and CVAT import; its
    ``annotations`` are also COCO's result format. Ids count from 1; ``file_name`` is the path.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, start=1):
        size = {key: entry[key] for key in ("width", "height")}
        images.append({"id": number, "file_name": entry["file"], **size})
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
    detector: Detector, images: Sequence[Image], output_dir: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw what a detector finds on each image that can be read, and write ``detections.json`` and,
    the same in COCO's form, ``coco.json``, or ``classes.json`` of a segmenter.

    Returns what the file holds: its head (``skipped``: file and reason), and an entry for
    each image. Raises InputError if no image could be read.
    """
    entries, skipped = [], []
    for image in progress(images, "predicting", unit="images"):
        try:
            pixels = read_image(image.path, "RGB")
        except InputError as error:
            logger.warning("skipped: %s", error)
            skipped.append({"file": image.path, "reason": str(error)})
            continue
        predicted, target = detector(pixels), Path(output_dir) / image.drawn
        if "sem_seg" in predicted:
            drawn = draw_labels(pixels, predicted["sem_seg"], detector.class_names)
            found = {"classes": _class_entries(predicted["sem_seg"], detector.class_names)}
        else:
            drawn = draw_detections(pixels, predicted, detector.class_names, detector.skeleton)
            found = {"detections": _entries(image.path, predicted, detector.class_names)}
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if target.suffix.lower() in _JPEG else []
        encoded = cv2.imencode(target.suffix.lower(), drawn[:, :, ::-1], quality)[1]
        atomic_write_bytes(target, encoded.tobytes())
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        entries.append({"file": image.path, "drawn": image.drawn, **size, **found})
    if not entries:
        raise InputError(
            f"None of the {len(images)} images can be read; the first: {skipped[0]['reason']}"
        )
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
    return head, entries


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
