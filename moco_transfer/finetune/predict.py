"""A trained detector on images of one's own: which images, what it finds in them, and the files
that show it.

Conventions:
    Boxes are XYXY, px of the image as it is looked at, that is turned upright as its EXIF
    orientation says.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..data.batches.geometry import ResizeAndFlip, resized_shape
from ..data.batches.transforms import read_image, to_tensor
from ..data.drawing import draw_detections
from ..data.images.image_source import EXTENSIONS
from ..evaluate.predictions import to_coco_results
from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import atomic_write_bytes, atomic_write_text

logger = logging.getLogger(__name__)

SCHEMA = 1
DETECTIONS_FILE = "detections.json"
_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # other images are drawn as .png
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Detector:
    """A trained detector that takes images; ``finetune.load_detector`` makes one.

    Attributes:
        model: In evaluation mode, on ``device``.
        class_names: Name of each class index.
        image_format: ``RGB`` or ``BGR``, what the model takes.
        min_size: Length that the shorter edge is resized to, px; 0 for none.
        max_size: Upper limit of the longer edge after that, px.
        score_threshold: Detections score more than this.
        device: Where the model is.
        source: The checkpoint.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    image_format: str
    min_size: int
    max_size: int
    score_threshold: float
    device: torch.device
    source: str

    def __call__(self, source: str | os.PathLike[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Return what is found in an image.

        Args:
            source: A file, or pixels RGB uint8 (H, W, 3).

        Returns:
            ``boxes`` float32 (N, 4) XYXY in px of the source, ``scores`` float32 (N,) 0-1
            descending, ``classes`` int64 (N,) indices into ``class_names``, and with a mask head
            ``masks`` bool (N, H, W).

        Raises:
            MissingFileError: If the file does not exist.
            InputError: If it cannot be decoded, or the array is not RGB uint8.
        """
        pixels = source if isinstance(source, np.ndarray) else read_image(os.fspath(source), "RGB")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputError(
                f"A source must be RGB uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}."
            )
        ordered = pixels if self.image_format == "RGB" else pixels[:, :, ::-1]
        new_shape = resized_shape(
            *pixels.shape[:2], shorter_edge=self.min_size, max_size=self.max_size
        )
        image = to_tensor(
            ResizeAndFlip(pixels.shape[:2], new_shape).apply_image(np.ascontiguousarray(ordered))
        )
        item = {"image": image.to(self.device), "height": pixels.shape[0], "width": pixels.shape[1]}
        with torch.inference_mode():
            output = self.model([item])[0]
        return {name: values.cpu().numpy() for name, values in output.items()}


@dataclass(frozen=True)
class Image:
    """An image to look at: its file, and where below the output folder its drawing goes."""

    path: str
    drawn: str


@dataclass
class Summary:
    """What :func:`predict_images` did: images drawn, detections by class name, and (file,
    reason) of the images skipped.
    """

    num_images: int = 0
    num_detections: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def find_images(paths: Sequence[str], output_dir: str) -> list[Image]:
    """Return the images that files and folders stand for, each once, with a name of its own below
    the output folder.

    A folder is searched at any depth, its own structure is kept below the output folder, and what
    lies in the output folder is left out.

    Args:
        paths: Files of any kind, and folders of images.
        output_dir: Where drawings will be written.

    Raises:
        MissingFileError: If a path does not exist.
        InputError: If a folder holds no image, or a drawing would overwrite an image.
    """
    output = Path(output_dir).resolve()
    found: list[tuple[Path, Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [
                f
                for f in sorted(path.rglob("*"))
                if f.suffix.lower() in EXTENSIONS
                and f.is_file()
                and output not in f.resolve().parents
            ]
            if not inside:
                raise InputError(f"The folder {path} holds no image ({', '.join(EXTENSIONS)}).")
            found += [(file, file.relative_to(path)) for file in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise MissingFileError(f"The image {path} does not exist.")
    images, sources, names = [], set(), set()
    for file, relative in found:
        if file.resolve() in sources:
            continue
        sources.add(file.resolve())
        drawn = _free_name(relative, names)
        names.add(drawn)
        images.append(Image(str(file), drawn))
    for image in images:
        if (output / image.drawn).resolve() in sources:
            raise InputError(
                f"--output {output_dir} would overwrite the image {output / image.drawn}."
                " Choose another folder."
            )
    return images


def _free_name(relative: Path, names: set[str]) -> str:
    stem = (
        str(relative)
        if relative.suffix.lower() not in _KEPT_SUFFIXES
        else str(relative.with_suffix(""))
    )
    suffix = relative.suffix if relative.suffix.lower() in _KEPT_SUFFIXES else ".png"
    candidates = (
        f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
        for number in range(1, len(names) + 2)
    )
    return next(name for name in candidates if name not in names)


def predict_images(detector: Detector, images: Sequence[Image], output_dir: str) -> Summary:
    """Draw what a detector finds on each image and write ``detections.json`` beside the drawings.

    Args:
        detector: A trained detector.
        images: From :func:`find_images`.
        output_dir: Made when it is missing; drawings of the same name in it are replaced.

    Returns:
        Counts, and the images that could not be read: those are skipped.

    Raises:
        InputError: If no image could be read, or the folder cannot be written to.
    """
    summary = Summary(num_detections=dict.fromkeys(detector.class_names, 0))
    entries: list[dict[str, Any]] = []
    for found_image in tqdm(images, desc="predicting", unit="image", disable=None):
        try:
            pixels = read_image(found_image.path, "RGB")
        except InputError as error:
            logger.warning("skipped: %s", error)
            summary.skipped.append((found_image.path, str(error)))
            continue
        detections = detector(pixels)
        target = Path(output_dir) / found_image.drawn
        atomic_write_bytes(
            target,
            _encode(draw_detections(pixels, detections, detector.class_names), target.suffix),
        )
        entries.append(_entry(found_image, pixels, detections, detector.class_names))
        summary.num_images += 1
        for found in entries[-1]["detections"]:
            summary.num_detections[found["class"]] += 1
    if not entries:
        raise InputError(
            f"None of the {len(images)} images can be read; the first: {summary.skipped[0][1]}"
        )
    record = {
        "schema": SCHEMA,
        "detector": detector.source,
        "score_threshold": detector.score_threshold,
        "classes": list(detector.class_names),
        "skipped": [{"file": file, "reason": reason} for file, reason in summary.skipped],
        "images": entries,
    }
    atomic_write_text(Path(output_dir) / DETECTIONS_FILE, _one_line_an_image(record))
    return summary


def _one_line_an_image(record: Mapping[str, Any]) -> str:
    head = json.dumps(
        {key: value for key, value in record.items() if key != "images"},
        indent=1,
        ensure_ascii=False,
    )
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in record["images"])
    return f'{head.removesuffix("}").rstrip()},\n "images": [\n{lines}\n ]\n}}\n'


def _entry(
    image: Image,
    pixels: np.ndarray,
    detections: Mapping[str, np.ndarray],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Return what detections.json says of an image; masks are COCO's compressed RLE."""
    tensors = {name: torch.from_numpy(values) for name, values in detections.items()}
    coco = to_coco_results(image.path, tensors, tuple(range(len(class_names))))
    found = [
        {
            "class": class_names[result["category_id"]],
            "class_index": result["category_id"],
            "score": round(result["score"], 5),
            "box": [round(v, 2) for v in box],
            **({"segmentation": result["segmentation"]} if "segmentation" in result else {}),
        }
        for result, box in zip(coco, detections["boxes"].tolist(), strict=True)
    ]
    height, width = pixels.shape[:2]
    return {
        "file": image.path,
        "drawn": image.drawn,
        "width": width,
        "height": height,
        "detections": found,
    }


def _encode(image: np.ndarray, suffix: str) -> bytes:
    options = (
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix.lower() in (".jpg", ".jpeg") else []
    )
    return cv2.imencode(suffix.lower(), image[:, :, ::-1], options)[1].tobytes()
