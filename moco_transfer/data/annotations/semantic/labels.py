"""Label images: a class index for each pixel.

A label image is a grey image of 8 or 16 bits, or a palette image whose indices are the ids:
contiguous ids 0 .. C-1, and 255 for pixels that are neither trained on nor scored. Two more forms
have one meaning and are read: three equal channels, and for VOC's classes VOC's colours.
Source:
    VOC's palette: VOCdevkit 2012, VOClabelcolormap.m.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ....runtime.errors import InputError, MissingFileError
from ....runtime.files import regular
from ...images.decode import UNREADABLE, orientation_of

IGNORED = 255
"""The id of pixels that are neither trained on nor scored."""
MOST_CLASSES = IGNORED

_COLOURS = ("RGB", "RGBA", "LA", "PA")
_SCALED = {"L;2": 85, "L;4": 17}  # PIL stretches grey values of 2 and 4 bits to 0 .. 255


def voc_palette() -> np.ndarray:
    """Return the colours of VOC's label images, uint8 (256, 3) RGB by id."""
    ids = np.arange(256)
    channels = []
    for channel in range(3):
        bits = [(ids >> (3 * place + channel) & 1) << (7 - place) for place in range(3)]
        channels.append(sum(bits))
    return np.stack(channels, axis=1).astype(np.uint8)


def read_labels(record: dict) -> np.ndarray:
    """Return the contiguous class indices of a record's label image, int64 (H, W), 255 for ignored
    pixels; of the size of the image as it is read.

    InputError if the file cannot be used, has another size than the record says, or an id that is
    no class.
    """
    file = record["sem_seg_file_name"]
    is_voc = record.get("sem_seg_palette") == "voc"
    ids = read_ids(file, len(record["sem_seg_ids"]), voc_colours=is_voc)
    if record.get("sem_seg_as_stored"):
        ids = _upright(ids, orientation_of(record["file_name"]))
    if ids.shape != (record["height"], record["width"]):
        raise InputError(
            f"{file} is {ids.shape[1]} x {ids.shape[0]} px, expected {record['width']} x"
            f" {record['height']} as when the data set was read. Read it again."
        )
    return index_table(record["sem_seg_ids"])[ids]


def index_table(indices: Sequence[int]) -> np.ndarray:
    """Return int64 (256,): the class index of each id; 255 of those that ``indices`` lacks."""
    table = np.full(256, IGNORED, np.int64)
    table[: len(indices)] = indices
    return table


def read_ids(
    file: str | os.PathLike[str], num_classes: int, *, voc_colours: bool = False
) -> np.ndarray:
    """Return the ids of a label image as the file has them, uint8 (H, W): 0 .. ``num_classes`` - 1,
    or 255. ``voc_colours`` says that the classes are VOC's. MissingFileError or InputError if there
    is no file, or it is no such label image.
    """
    try:
        with Image.open(regular(file)) as image:
            if image.format == "JPEG":
                raise InputError(
                    f"{file} is a JPEG, which changes values: its ids are lost. Export the label"
                    " images as PNG."
                )
            mode, raw = image.mode, image.tile[0][3] if image.tile else ""
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise MissingFileError(f"The label image {file} does not exist.") from error
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"The label image {file} cannot be decoded ({error}).") from error
    if mode in _COLOURS:
        return _of_colours(pixels, file, num_classes, voc_colours)
    if pixels.ndim != 2 or pixels.dtype.kind not in "iub":
        raise InputError(f"{file} has pixels of mode {mode}; expected one whole number a pixel.")
    ids = pixels // _SCALED.get(raw, 1) if isinstance(raw, str) else pixels
    check_ids(ids, file, num_classes)
    return ids.astype(np.uint8, copy=False)


def check_ids(ids: np.ndarray, file: object, num_classes: int) -> None:
    """Raise InputError if ids (H, W) are neither 0 .. ``num_classes`` - 1 nor 255."""
    wrong = np.unique(ids[(ids >= num_classes) & (ids != IGNORED) | (ids < 0)])
    if len(wrong):
        some = ", ".join(map(str, wrong[:5].tolist())) + ", ..." * (len(wrong) > 5)
        raise InputError(
            f"{file} has the id {some}; expected 0 to {num_classes - 1} for the {num_classes}"
            f" classes, or {IGNORED} for ignored pixels.{_scheme(str(file))}"
        )


def _scheme(file: str) -> str:
    """Return what to do if a file's name tells another scheme of ids."""
    if file.endswith(("_labelIds.png", "_instanceIds.png")):
        return " These are Cityscapes' ids of all labels: take *_labelTrainIds.png."
    return " Write the class indices in the order of the classes, counted from 0."


def _of_colours(
    pixels: np.ndarray, file: object, num_classes: int, voc_colours: bool
) -> np.ndarray:
    """Return the ids that colours (H, W, 3), perhaps with alpha, or grey and alpha (H, W, 2) stand
    for.
    """
    colours = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
    if (colours == colours[..., :1]).all():
        ids = colours[..., 0]
        if ((ids < num_classes) | (ids == IGNORED)).all():
            return np.ascontiguousarray(ids)
    if voc_colours and colours.shape[2] == 3:
        places = np.array([1 << 16, 1 << 8, 1], np.int32)
        codes, known = colours.astype(np.int32) @ places, voc_palette().astype(np.int32) @ places
        order = np.argsort(known)
        ids = order[np.searchsorted(known, codes, sorter=order).clip(max=255)]
        if (known[ids] == codes).all() and ((ids < num_classes) | (ids == IGNORED)).all():
            return ids.astype(np.uint8)
    found = np.unique(colours.reshape(-1, colours.shape[2]), axis=0)
    some = ", ".join(str(tuple(colour)) for colour in found[:3].tolist())
    raise InputError(
        f"{file} is an image in {len(found)} colours ({some}, ...), expected one id a pixel, 0 to"
        f" {num_classes - 1}. Give each colour the index of its class and save it as grey PNG."
    )


def _upright(ids: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return ids
    image = Image.fromarray(ids)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))
