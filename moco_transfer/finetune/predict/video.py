"""Frames of a video, and a video of drawn frames; RGB uint8 (H, W, 3), by OpenCV's FFmpeg."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...runtime.errors import InputError, MissingFileError
from ...runtime.files import atomic_path

logger = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""Suffixes of files that are read as videos."""
_FRAMES_PER_SEC = 25.0  # of a video that does not tell


class Video:
    """The frames of a file, in order.

    Raises:
        InputError: If the file does not exist or holds no video that FFmpeg can read.
    """

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise MissingFileError(f"The video {path} does not exist.")
        self.path, self._capture = path, cv2.VideoCapture(path)
        self.frames_per_sec = self._capture.get(cv2.CAP_PROP_FPS) or _FRAMES_PER_SEC
        self.size = tuple(int(self._capture.get(key)) for key in (3, 4))  # width, height
        self._about = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))  # as the header says
        if not self._capture.isOpened() or min(self.size) < 1:
            raise InputError(f"{path} is no video that OpenCV's FFmpeg can read.")

    def __len__(self) -> int:
        return max(0, self._about)

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        while (frame := self._capture.read()[1]) is not None:
            count += 1
            yield np.ascontiguousarray(frame[:, :, ::-1])
        self._capture.release()
        if not count:
            raise InputError(f"{self.path} holds no frame that can be read.")
        if count < 0.98 * self._about - 1:
            logger.warning("%s: %d of about %d frames can be read", self.path, count, self._about)


@contextlib.contextmanager
def drawn_video(target: Path, video: Video) -> Iterator[Callable[[np.ndarray], Any]]:
    """Yield what appends a frame to the video (MPEG-4) that is at ``target`` in the end; it has the
    frame rate of another one. InputError if it cannot be written.
    """
    with atomic_path(target) as tmp:
        named = tmp.with_suffix(".mp4")  # FFmpeg goes by the suffix
        named.symlink_to(tmp.name)
        code = cv2.VideoWriter.fourcc(*"mp4v")
        width, height = video.size
        writer = cv2.VideoWriter(str(named), code, video.frames_per_sec, (width, height))
        named.unlink()  # opened; a killed process leaves none
        try:
            if not writer.isOpened():
                raise InputError(f"OpenCV's FFmpeg cannot write the video {target}.")
            yield lambda frame: writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
        finally:
            writer.release()
