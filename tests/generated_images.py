"""Generated images for tests: objects that differ in shape and texture, never in colour.

A pool of images with one object each stands for ImageNet; scenes of several objects, in PASCAL
VOC's layout, stand for the detection data. Images are BGR, the same on every machine.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from moco_transfer.runtime.files import atomic_write_text
from moco_transfer.runtime.seed import generator_at

SHAPES, TEXTURES = ("disc", "square", "triangle", "star"), ("striped", "dotted")
CLASSES = tuple(f"{texture}_{shape}" for shape in SHAPES for texture in TEXTURES)
_SUPERSAMPLE = 3  # objects are drawn this much larger and shrunk, so that edges are smooth

Box = tuple[str, int, int, int, int]  # class name, x0, y0, x1, y1: px, 0-based, [x0, x1), [y0, y1)


def write_pool(folder: Path, *, count: int, size: int, seed: int) -> None:
    """Write ``count`` images of one object as ``<folder>/<class>/<number>.jpg``.

    The object fills 45 to 90 % of the side of ``size`` px.
    """
    for i in range(count):
        name, rng = CLASSES[i % len(CLASSES)], generator_at(seed, "pool", i)
        image = _background(rng, size)
        side = int(size * rng.uniform(0.45, 0.9))
        x, y = int(rng.integers(0, size - side + 1)), int(rng.integers(0, size - side + 1))
        _paste(image, name, rng, x, y, side)
        _write_jpeg(folder / name / f"{i:05d}.jpg", image)


def write_voc_scenes(root: Path, *, splits: dict[str, int], size: int, seed: int) -> dict[str, int]:
    """Write scenes of 1 to 6 objects in VOC's layout, and their class names in ``classes.txt``.

    ``splits`` holds the number of scenes by split, ``size`` is their side in px. Returns the number
    of objects by split.
    """
    objects = dict.fromkeys(splits, 0)
    for split, count in splits.items():
        ids = [f"{split}_{i:04d}" for i in range(count)]
        for i, image_id in enumerate(ids):
            image, boxes = _draw_scene(generator_at(seed, "scene", split, i), size)
            objects[split] += len(boxes)
            _write_jpeg(root / "JPEGImages" / f"{image_id}.jpg", image)
            xml = _XML.format(id=image_id, size=size, objects="".join(map(_object_xml, boxes)))
            atomic_write_text(root / "Annotations" / f"{image_id}.xml", xml)
        atomic_write_text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(ids) + "\n")
    atomic_write_text(root / "classes.txt", "\n".join(CLASSES) + "\n")
    return objects


def _draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Box]]:
    """Return a uint8 (size, size, 3) image of objects that hardly overlap, and their boxes."""

    def overlap(x: int, y: int, side: int, box: Box) -> float:
        w = min(x + side, box[3]) - max(x, box[1])
        h = min(y + side, box[4]) - max(y, box[2])
        return max(0, w) * max(0, h) / side**2

    image = _background(rng, size)
    boxes: list[Box] = []
    for _ in range(int(rng.integers(1, 7))):
        for _ in range(20):
            side = int(size * rng.uniform(0.18, 0.42))
            x, y = int(rng.integers(0, size - side + 1)), int(rng.integers(0, size - side + 1))
            if all(overlap(x, y, side, other) < 0.05 for other in boxes):
                name = CLASSES[int(rng.integers(len(CLASSES)))]
                boxes.append(_paste(image, name, rng, x, y, side))
                break
    return image, boxes


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return two colours that blend smoothly under random noise: texture alone is no clue."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    kind = int(rng.integers(3))
    if kind == 0:
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        mix = 0.5 + 0.5 * np.sin(along * 2 * np.pi / rng.uniform(20, 60))
    else:
        coarse = rng.random((int(rng.integers(4, 12)),) * 2).astype(np.float32)
        mix = np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)
    first, second = rng.uniform(30, 225, (2, 3))
    image = first + (second - first) * 0.6 * mix[..., None]
    noise = rng.normal(0, rng.uniform(2, 10), (size, size, 1))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _outline(shape: str) -> np.ndarray:
    """Return the outline of a shape with radius 1 around the origin, float (P, 2)."""
    corners = {"disc": 40, "square": 4, "triangle": 3, "star": 10}[shape]
    step = np.pi / 5 if shape == "star" else 2 * np.pi / corners
    angles = np.arange(corners) * step + (np.pi / 4 if shape == "square" else 0)
    radii = np.tile([1.0, 0.45], 5) if shape == "star" else np.ones(corners)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _paste(
    image: np.ndarray, name: str, rng: np.random.Generator, x: int, y: int, side: int
) -> Box:
    """Draw an object into the square (x, y, side), in place; return the box of its visible part."""
    texture, shape = name.split("_")
    big = side * _SUPERSAMPLE
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    outline = 0.5 * big * _outline(shape) @ rotation.T
    # Fill the square: a rotated triangle would otherwise be smaller than a rotated disc.
    low, high = outline.min(0), outline.max(0)
    outline = (outline - (low + high) / 2) * (big - 2) / (high - low).max() + big / 2
    mask = np.zeros((big, big), np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 255)
    ys, xs = (np.mgrid[0:big, 0:big] - big / 2).astype(np.float32)
    grain = rng.uniform(0, 2 * np.pi)
    us, vs = xs * np.cos(grain) + ys * np.sin(grain), ys * np.cos(grain) - xs * np.sin(grain)
    period = big * rng.uniform(0.16, 0.24)
    us, vs = (us / period) % 1.0, (vs / period) % 1.0
    pattern = us < 0.5 if texture == "striped" else (us - 0.5) ** 2 + (vs - 0.5) ** 2 < 0.1
    # Two colours whose brightness differs enough to show the texture; hues and order are random.
    dark = rng.uniform(0, 110, 3)
    light = dark + rng.uniform(90, 145, 3)
    dark, light = (dark, light) if rng.random() < 0.5 else (light, dark)
    painted = np.where(pattern[..., None], light, dark).astype(np.float32)
    alpha = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)[..., None]
    alpha = alpha.astype(np.float32) / 255
    small = cv2.resize(painted, (side, side), interpolation=cv2.INTER_AREA)
    area = image[y : y + side, x : x + side]
    area[:] = np.clip(alpha * small + (1 - alpha) * area, 0, 255).astype(np.uint8)
    rows, columns = (np.flatnonzero(alpha.max(axes) > 0.5).tolist() for axes in ((1, 2), (0, 2)))
    return name, x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())  # no fsync: the images can be drawn again


_XML = """<annotation>
  <filename>{id}.jpg</filename>
  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>{objects}
</annotation>
"""


def _object_xml(box: Box) -> str:
    name, x0, y0, x1, y1 = box
    # VOC counts pixels from 1 and includes the last one: [x0, x1) becomes x0 + 1 ... x1.
    corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return f"""
  <object>
    <name>{name}</name><difficult>0</difficult>
    <bndbox>{corners}</bndbox>
  </object>"""
