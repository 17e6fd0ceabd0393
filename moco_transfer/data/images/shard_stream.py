"""Tar shards that are read as a stream: by URL, from a program, compressed, or uncounted."""

from __future__ import annotations

import contextlib
import logging
import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from ...runtime.errors import InputError
from .image_source import ImageSource, printable
from .local_shards import BROKEN, files_of, group_samples, image_of, label_of

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # openings of a shard by URL; curl itself retries for minutes


@dataclass(frozen=True)
class ShardStream(ImageSource):
    """Shards in a fixed order."""

    root: str  # what was named, for messages
    urls: tuple[str, ...]
    num_images: int
    counts: np.ndarray  # int64 (number of shards,); empty where only their sum is known

    def __len__(self) -> int:
        return self.num_images

    @property
    def is_counted(self) -> bool:
        """Whether each shard's number of images is known, and so each image's number in all."""
        return len(self.counts) > 0

    def number_of(self, shard: int, position: int) -> int:
        """Return an image's number: in the whole set where the shards are counted, else one that
        no other image has.
        """
        first = int(self.counts[:shard].sum()) if self.is_counted else shard << 32
        return first + position

    def _where(self) -> str:
        where = f" in {len(self.urls)} shards of {self.root}, read as a stream"
        return f"{where}; the first is {self.urls[0]}"


def scheme_of(name: str) -> str:
    """Return the scheme of a URL, such as ``https`` or ``pipe``; empty for a path."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", name)  # two letters at least: C: is a drive
    return match[1].lower() if match else ""


def read_shard(url: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield (shard and member, encoded image, label or -1) for each image of a shard, in order.

    A shard by URL whose transfer breaks off is opened again; what came already is skipped.
    InputError if it cannot be read to its end.
    """
    done = 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            for number, image in enumerate(_images(url)):
                if number >= done:
                    yield image
                    done = number + 1
            return
        except BROKEN as error:
            reason = f"{type(error).__name__}: {error.args[0] if error.args else error}"
            if not scheme_of(url) or attempt == _ATTEMPTS:
                raise InputError(
                    f"Shard {url} cannot be read after {done} images ({reason}). Repair it or"
                    " leave it out, then --resume."
                ) from error
            logger.warning("shard %s broke off after %d images (%s); retrying", url, done, reason)
            time.sleep(attempt)


def _images(url: str) -> Iterator[tuple[str, bytes, int]]:
    stream = _opened(url)
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            members = ((m.name, archive.extractfile(m)) for m in files_of(archive))
            for sample in group_samples((name, file.read()) for name, file in members if file):
                extension = image_of(sample)
                if extension is not None:
                    name, data = sample[extension]
                    label = label_of(sample["cls"][1]) if "cls" in sample else -1
                    yield printable(f"{url}: {name}"), data, label
    except BaseException:
        with contextlib.suppress(OSError):  # an unwanted transfer ends with an error of its own
            stream.close()
        raise
    # Raises if the program that fetched the shard failed although tar saw a clean end.
    stream.close()


def _opened(url: str) -> IO[bytes]:
    if not scheme_of(url):
        return open(url, "rb")
    from webdataset.gopen import gopen

    return gopen(url)
