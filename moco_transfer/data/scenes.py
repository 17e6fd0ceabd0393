"""Generated images for the demo: objects told apart by shape and texture, never by colour, on
textured grounds.

Everything is a function of the seed, so the same call draws the same images on every machine
(JPEG files may differ by the encoder). A pool of object images stands for ImageNet: one object
each, in class folders that only the supervised baseline looks at. Scenes of several objects, in
PASCAL VOC's layout, stand for the detection data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from ..runtime.files import atomic_write_text
from ..runtime.seed import generator_at

SHAPES = ("disc", "square", "triangle", "star")
TEXTURES = ("striped", "dotted")
CLASSES = tuple(f"{texture}_{shape}" for shape in SHAPES for texture in TEXTURES)
_SUPERSAMPLE = 3  # objects are drawn this much larger and shrunk, so edges are smooth


@dataclass(frozen=True)
class SceneBox:
    """One object of a scene: class name and box, px, 0-based, [x0, x1) and [y0, y1)."""

    name: str
    x0: int
    y0: int
    x1: int
    y1: int


def draw_object_image(name: str, rng: np.random.Generator, *, size: int) -> np.ndarray:
    """Return a uint8 (size, size, 3) BGR image of one object that fills 45 to 90 % of the side."""
    image = _ground(rng, size, size)
    side = int(size * rng.uniform(0.45, 0.9))
    x = int(rng.integers(0, size - side + 1))
    y = int(rng.integers(0, size - side + 1))
    _paste(image, name, rng, x, y, side)
    return image


def draw_scene(
    rng: np.random.Generator, *, size: int, max_objects: int = 6
) -> tuple[np.ndarray, list[SceneBox]]:
    """Return a uint8 (size, size, 3) BGR image of 1 to ``max_objects`` objects that hardly
    overlap, and their boxes.
    """
    image = _ground(rng, size, size)
    boxes: list[SceneBox] = []
    for _ in range(int(rng.integers(1, max_objects + 1))):
        for _ in range(20):
            side = int(size * rng.uniform(0.18, 0.42))
            x, y = int(rng.integers(0, size - side + 1)), int(rng.integers(0, size - side + 1))
            if all(_overlap(x, y, side, other) < 0.05 for other in boxes):
                name = CLASSES[int(rng.integers(len(CLASSES)))]
                boxes.append(_paste(image, name, rng, x, y, side))
                break
    return image, boxes


def _overlap(x: int, y: int, side: int, box: SceneBox) -> float:
    w = min(x + side, box.x1) - max(x, box.x0)
    h = min(y + side, box.y1) - max(y, box.y0)
    return max(0, w) * max(0, h) / side**2


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth two-colour ground with a random grain, so that texture alone does not give an object
    away.
    """
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    kind = int(rng.integers(3))
    if kind == 0:
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        mix = 0.5 + 0.5 * np.sin(along * 2 * np.pi / rng.uniform(20, 60))
    else:
        coarse = rng.random((int(rng.integers(4, 12)),) * 2).astype(np.float32)
        mix = np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    first, second = rng.uniform(30, 225, (2, 3))
    image = first + (second - first) * 0.6 * mix[..., None]
    return np.clip(image + rng.normal(0, rng.uniform(2, 10), (height, width, 1)), 0, 255).astype(
        np.uint8
    )


def _outline(shape: str, radius: float) -> np.ndarray:
    """Return the outline of a shape around the origin, float (P, 2)."""
    if shape == "disc":
        angles, radii = np.linspace(0, 2 * np.pi, 40, endpoint=False), np.ones(40)
    elif shape == "square":
        angles, radii = np.pi / 4 + np.arange(4) * np.pi / 2, np.ones(4)
    elif shape == "triangle":
        angles, radii = np.arange(3) * 2 * np.pi / 3, np.ones(3)
    else:  # star
        angles, radii = np.arange(10) * np.pi / 5, np.tile([1.0, 0.45], 5)
    return radius * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _striped(xs: np.ndarray, ys: np.ndarray, period: float) -> np.ndarray:
    return (xs / period) % 1.0 < 0.5


def _dotted(xs: np.ndarray, ys: np.ndarray, period: float) -> np.ndarray:
    return ((xs / period) % 1.0 - 0.5) ** 2 + ((ys / period) % 1.0 - 0.5) ** 2 < 0.1


_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "striped": _striped,
    "dotted": _dotted,
}


def _paste(
    image: np.ndarray, name: str, rng: np.random.Generator, x: int, y: int, side: int
) -> SceneBox:
    """Draw an object into the square (x, y, side), in place, and return the box of what became
    visible.
    """
    texture, shape = name.split("_")
    big = side * _SUPERSAMPLE
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    outline = _outline(shape, 0.5 * big) @ rotation.T
    # Fill the square: a turned triangle would otherwise be smaller than a turned disc.
    low, high = outline.min(0), outline.max(0)
    outline = (outline - (low + high) / 2) * (big - 2) / (high - low).max() + big / 2
    mask = np.zeros((big, big), np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 255)
    ys, xs = (np.mgrid[0:big, 0:big] - big / 2).astype(np.float32)
    grain = rng.uniform(0, 2 * np.pi)
    us, vs = xs * np.cos(grain) + ys * np.sin(grain), ys * np.cos(grain) - xs * np.sin(grain)
    pattern = _PATTERNS[texture](us, vs, big * rng.uniform(0.16, 0.24))
    dark, light = _two_colours(rng)
    painted = np.where(pattern[..., None], light, dark).astype(np.float32)
    alpha = (
        cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None]
        / 255
    )
    painted = cv2.resize(painted, (side, side), interpolation=cv2.INTER_AREA)
    area = image[y : y + side, x : x + side]
    area[:] = np.clip(alpha * painted + (1 - alpha) * area, 0, 255).astype(np.uint8)
    rows, columns = np.flatnonzero(alpha.max((1, 2)) > 0.5), np.flatnonzero(alpha.max((0, 2)) > 0.5)
    return SceneBox(
        name, x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1
    )


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    # Far enough apart in brightness that the texture is seen; which is which, and the hues, are
    # random.
    dark = rng.uniform(0, 110, 3)
    light = dark + rng.uniform(90, 145, 3)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def write_pool(folder: Path, *, count: int, size: int, seed: int) -> int:
    """Write ``count`` object images as ``<folder>/<class>/<number>.jpg``.

    Returns:
        The number of images in the pool.
    """
    for i in range(count):
        name = CLASSES[i % len(CLASSES)]
        _write_jpeg(
            folder / name / f"{i:05d}.jpg",
            draw_object_image(name, generator_at(seed, "pool", i), size=size),
        )
    return count


def write_voc_scenes(root: Path, *, splits: dict[str, int], size: int, seed: int) -> dict[str, int]:
    """Write scenes in VOC's layout: JPEGImages, Annotations (1-based boxes), ImageSets/Main, and
    classes.txt.

    Args:
        root: Folder of the data set.
        splits: Number of scenes by split, e.g. ``{"train": 100, "test": 200}``.
        size: Side of a scene, px.
        seed: Seed of the images.

    Returns:
        Number of objects by split.
    """
    objects = {}
    for split, count in splits.items():
        ids = [f"{split}_{i:04d}" for i in range(count)]
        objects[split] = 0
        for i, image_id in enumerate(ids):
            image, boxes = draw_scene(generator_at(seed, "scene", split, i), size=size)
            objects[split] += len(boxes)
            _write_jpeg(root / "JPEGImages" / f"{image_id}.jpg", image)
            atomic_write_text(
                root / "Annotations" / f"{image_id}.xml", _voc_xml(image_id, size, boxes)
            )
        atomic_write_text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(ids) + "\n")
    atomic_write_text(root / "classes.txt", "\n".join(CLASSES) + "\n")
    return objects


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        encoded.tobytes()
    )  # thousands of images that can be drawn again need no fsync each


def _voc_xml(image_id: str, size: int, boxes: list[SceneBox]) -> str:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{image_id}.jpg"
    dimensions = ElementTree.SubElement(root, "size")
    for tag, value in (("width", size), ("height", size), ("depth", 3)):
        ElementTree.SubElement(dimensions, tag).text = str(value)
    for box in boxes:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = box.name
        ElementTree.SubElement(element, "difficult").text = "0"
        bounds = ElementTree.SubElement(element, "bndbox")
        # VOC counts pixels from 1 and includes the last one: [x0, x1) becomes x0 + 1 ... x1.
        for tag, value in (
            ("xmin", box.x0 + 1),
            ("ymin", box.y0 + 1),
            ("xmax", box.x1),
            ("ymax", box.y1),
        ):
            ElementTree.SubElement(bounds, tag).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
