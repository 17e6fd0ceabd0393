"""Resize the shorter edge and mirror images, boxes, polygons and keypoints.

Conventions:
    Boxes, polygons and keypoints are continuous coordinates: the image covers [0, W] x [0, H], so
    mirroring maps x to W - x.
Source:
    ResizeShortestEdge, RandomFlip and ResizeTransform of detectron2/data/transforms, HFlipTransform
    of fvcore.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


def resized_shape(height: int, width: int, *, shorter_edge: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) in px for a shorter edge of ``shorter_edge`` px, or a longer one of
    ``max_size`` where that is smaller. A ``shorter_edge`` of 0 keeps the size, as in Detectron2.
    """
    if shorter_edge == 0:
        return height, width
    scale = shorter_edge * 1.0 / min(height, width)
    new_height, new_width = scale * height, shorter_edge * 1.0
    if height < width:
        new_height, new_width = shorter_edge * 1.0, scale * width
    if max(new_height, new_width) > max_size:
        scale = max_size * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def draw_shorter_edge(
    min_sizes: tuple[int, ...], sample_style: str, rng: np.random.Generator
) -> int:
    """Draw one of ``min_sizes`` (``choice``) or a number between its two values (``range``), px."""
    if sample_style == "range":
        return int(rng.integers(min_sizes[0], min_sizes[1] + 1))
    return int(rng.choice(min_sizes))


@dataclass(frozen=True)
class ResizeAndFlip:
    """A geometric change of an image and its annotations.

    Attributes:
        old_shape: (height, width) of the image as read, px.
        new_shape: (height, width) after resizing, px.
        flip: ``none``, ``horizontal`` or ``vertical``, done after resizing.
    """

    old_shape: tuple[int, int]
    new_shape: tuple[int, int]
    flip: str = "none"

    def apply_image(self, pixels: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Resize uint8 pixels (H, W[, 3]) with Pillow; ``nearest`` is for masks."""
        resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        resized = np.asarray(Image.fromarray(pixels).resize(self.new_shape[::-1], resampling))
        if self.flip == "horizontal":
            return resized[:, ::-1]
        return resized[::-1] if self.flip == "vertical" else resized

    def apply_points(self, points: np.ndarray) -> np.ndarray:
        """Map points (n, 2), (x, y) in px, float64."""
        new_height, new_width = self.new_shape
        x = points[:, 0] * (new_width * 1.0 / self.old_shape[1])
        y = points[:, 1] * (new_height * 1.0 / self.old_shape[0])
        if self.flip == "horizontal":
            x = new_width - x
        elif self.flip == "vertical":
            y = new_height - y
        return np.stack((x, y), axis=1)

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (N, 4) XYXY and clip them to the image; float64."""
        corners = self.apply_points(boxes.reshape(-1, 2)).reshape(-1, 2, 2)
        mapped = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1).clip(min=0)
        return np.minimum(mapped, [*self.new_shape[::-1], *self.new_shape[::-1]])

    def apply_keypoints(self, keypoints: np.ndarray, mirror: tuple[int, ...]) -> np.ndarray:
        """Map keypoints (K, 3) of (x, y, visibility); points outside the image become all zero.

        ``mirror`` holds for each point the index of its opposite-handed twin.
        """
        xy = self.apply_points(keypoints[:, :2])
        inside = ((xy >= 0) & (xy <= self.new_shape[::-1])).all(axis=1)
        mapped = np.concatenate((xy, np.where(inside, keypoints[:, 2], 0)[:, None]), axis=1)
        if self.flip == "horizontal":
            mapped = mapped[list(mirror)]
        mapped[mapped[:, 2] == 0] = 0
        return mapped
