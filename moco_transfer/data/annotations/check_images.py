"""Open every image of a data set to the end: a header may be whole where the pixels are cut off."""

from __future__ import annotations

import hashlib
import io
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

_EXIF_ORIENTATION = 274
_LYING = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
# Pillow decodes without the interpreter's lock; more threads than cores hide the wait for the disk
_THREADS = 8
_DAMAGED = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def look_at_images(
    records: Sequence[dict], *, description: str = "images"
) -> tuple[list[str], dict[str, str]]:
    """Decode the images of detection records and compare their sizes with the annotations'.

    Args:
        records: Detection records.
        description: Shown beside the progress bar.

    Returns:
        One sentence for each image that cannot be read or has another size, in the order of the
        records (a missing one is left to ``check_image_files``), and the digest of each image's
        bytes by file name.
    """
    problems, digests = [], {}
    with ThreadPoolExecutor(_THREADS) as threads:
        results = threads.map(_look, records)
        for record, (problem, digest) in zip(
            tqdm(records, desc=description, unit="image", disable=None), results, strict=True
        ):
            if problem:
                problems.append(problem)
            if digest:
                digests[record["file_name"]] = digest
    return problems, digests


def equal_images(digests: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the groups of files whose bytes are equal, in the order of their first file."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, digest in digests.items():
        groups[digest].append(path)
    return [tuple(paths) for paths in groups.values() if len(paths) > 1]


def _look(record: dict) -> tuple[str | None, str | None]:
    path = record["file_name"]
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return (
            (
                f"The image {path} cannot be read ({error.strerror or error}); make it readable,"
                " or take it off the data set."
            ),
            None,
        )
    return _image_problem(content, record), hashlib.blake2b(content, digest_size=16).hexdigest()


def _image_problem(content: bytes, record: dict) -> str | None:
    path = record["file_name"]
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            lying = _orientation(image) in _LYING
            image.draft(
                "RGB", (width // 8, height // 8)
            )  # a JPEG is then decoded to its end, at an eighth of the size
            image.load()
    except _DAMAGED as error:
        reason = (
            "not an image of a known format" if isinstance(error, UnidentifiedImageError) else error
        )
        return (
            f"The image {path} cannot be read ({reason}); replace it, or take it off the data set."
        )
    if lying:
        width, height = height, width
    if (width, height) == (record["width"], record["height"]):
        return None
    turned = " It is turned by its EXIF tag, which the annotation ignores." if lying else ""
    return (
        f"The image {path} is {width} x {height} px, but its annotation says {record['width']} x"
        f" {record['height']}.{turned}"
    )


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except (
        Exception
    ):  # damaged EXIF raises nearly anything in Pillow, and is ignored when training too
        return None
