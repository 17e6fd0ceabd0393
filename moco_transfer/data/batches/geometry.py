"""Resize the shorter edge and mirror images, boxes, polygons and keypoints.

Coordinates are continuous: the image covers [0, W] x [0, H], so mirroring maps x to W - x.
Source: detectron2/data/transforms ResizeShortestEdge, RandomFlip, ResizeTransform; fvcore.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


def resized_shape(height: int, width: int, *, shorter_edge: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) for this shorter edge, px, and longest ``max_size``; 0 keeps both."""
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
    """A geometric change of an image and its annotations."""

    old_shape: tuple[int, int]  # (height, width) of the image as read, px
    new_shape: tuple[int, int]  # after resizing
    flip: str = "none"  # or horizontal or vertical, done after resizing

    def apply_image(self, pixels: np.ndarray) -> np.ndarray:
        """Resize uint8 pixels (H, W, 3) with Pillow and mirror them."""
        image, size = Image.fromarray(pixels), self.new_shape[::-1]
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
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
