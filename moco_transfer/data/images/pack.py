"""Writing a pack (see ``pack_reader.py``): images as they are, made smaller, or as bare pixels.

A shard holds a fixed number of images of the source's order, and its index is written after it,
both whole or not at all: a second run skips what is there, unless the files that went into it have
    changed since.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...runtime.errors import InputError
from ...runtime.files import atomic_path, atomic_write_text, sha256_of
from ..views.loading import as_it_is
from .decode import UNREADABLE
from .folder import ImageFolder
from .pack_reader import FORMAT, FORMS, INDEX, is_pack, read_index
from .packed import PackedImages

logger = logging.getLogger(__name__)

QUALITY = 95


def describe_change(form: str, shorter_side: int) -> str:
    """Return in words what a form does to the pixels; empty for nothing."""
    resized = f"shorter side at most {shorter_side} px (PIL bilinear, antialiased)"
    return {
        "original": "",
        "jpeg": f"{resized}, encoded again as JPEG quality {QUALITY} 4:4:4",
        "raw": resized,
    }[form]


class Payloads(Dataset):
    """Images as they go into a shard: (bytes, (height, width) or (0, 0)), or the reason why not.

    Args:
        source: The images.
        form: One of ``pack_reader.FORMS``.
        shorter_side: For the forms that resize, px.
    """

    def __init__(self, source: ImageFolder | PackedImages, form: str, shorter_side: int) -> None:
        self.source, self.form, self.shorter_side = source, form, shorter_side

    def __getitem__(self, index: int) -> tuple[bytes, tuple[int, int]] | str:
        try:
            if self.form == "original":
                self.source.read(index)  # what cannot be decoded stays out of a pack
                return self.source.encoded(index), (0, 0)
            image = _at_most(self.source.read(index), self.shorter_side)
        except UNREADABLE as error:
            return f"{self.source.name(index)}: {error}"
        if self.form == "raw":
            return image.tobytes(), (image.height, image.width)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue(), (0, 0)


def _at_most(image: Image.Image, shorter_side: int) -> Image.Image:
    scale = shorter_side / min(image.size)
    if scale >= 1:
        return image
    return image.resize(
        tuple(max(shorter_side, round(side * scale)) for side in image.size),
        Image.Resampling.BILINEAR,
    )


def pack(
    source: ImageFolder | PackedImages,
    dst: str | os.PathLike[str],
    *,
    form: str = "original",
    shorter_side: int = 256,
    images_per_shard: int = 4096,
    num_workers: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write a pack, or go on with one that was interrupted.

    Args:
        source: The images.
        dst: Folder to write.
        form: ``original`` (the files' bytes), ``jpeg`` (made smaller and encoded again) or ``raw``
            (made smaller, bare pixels).
        shorter_side: To which larger images are made smaller, px; not for ``original``.
        images_per_shard: Images in a shard.
        num_workers: Processes that decode; 0 for this one.
        on_image: Called after each image.

    Returns:
        Why images were left out, one sentence each.

    Raises:
        InputError: If the folder holds a pack of something else, or the source's images are not
            files.
    """
    if form not in FORMS:
        raise InputError(f"--as must be one of {', '.join(FORMS)}, got {form!r}.")
    if not hasattr(source, "encoded"):
        raise InputError(
            f"{source.describe()}: these images are held in memory or streamed already, packing"
            " makes nothing faster."
        )
    dst = Path(dst)
    origin = _origin(source, form, shorter_side, images_per_shard)
    _check_same_origin(dst, origin)
    parts = [
        range(start, min(start + images_per_shard, len(source)))
        for start in range(0, len(source), images_per_shard)
    ]
    contents = [_contents(source, part) for part in parts]
    entries = [_finished(dst, number, content) for number, content in enumerate(contents)]
    missing = [
        index for part, entry in zip(parts, entries, strict=True) if entry is None for index in part
    ]
    loader = DataLoader(
        Payloads(source, form, shorter_side),
        batch_size=None,
        sampler=missing,
        num_workers=num_workers,
        collate_fn=as_it_is,
    )
    payloads = iter(loader)
    for number, part in enumerate(parts):
        if entries[number] is None:
            entries[number] = _write_shard(dst, number, source, part, payloads, on_image)
            entries[number] |= {"origin": origin, "contents": contents[number]}
            atomic_write_text(dst / f"{_shard_name(number)}.json", json.dumps(entries[number]))
    left_out = [sentence for entry in entries for sentence in entry["left_out"]]
    about = {
        "format": FORMAT,
        "form": form,
        "pixel_change": describe_change(form, shorter_side),
        "source": source.describe(),
        "origin": origin,
        "images": sum(entry["images"] for entry in entries),
        "class_names": list(source.class_names),
        "shards": [
            {
                key: value
                for key, value in entry.items()
                if key not in ("origin", "contents", "left_out")
            }
            for entry in entries
        ],
        "left_out": left_out,
    }
    atomic_write_text(dst / INDEX, json.dumps(about, indent=1))
    return left_out


def _origin(
    source: ImageFolder | PackedImages, form: str, shorter_side: int, images_per_shard: int
) -> str:
    digest = hashlib.sha256(
        repr((form, form != "original" and shorter_side, images_per_shard, QUALITY)).encode()
    )
    for index in range(len(source)):
        digest.update(os.fsencode(source.names[index]) + b"\0")
    digest.update(np.asarray(source.labels, np.int64).tobytes())
    return digest.hexdigest()


def _contents(source: ImageFolder | PackedImages, places: range) -> str:
    """Return a hash that changes with what goes into a shard: of the files' sizes and times, or of
    the bytes of images held in memory.
    """
    digest = hashlib.sha256()
    for index in places:
        if isinstance(source, ImageFolder):
            try:
                about = os.stat(source.path(index))
                digest.update(f"{about.st_size} {about.st_mtime_ns}\n".encode())
            except OSError:  # reading it will say what is wrong
                digest.update(b"missing\n")
        else:
            digest.update(hashlib.sha256(source.encoded(index)).digest())
    return digest.hexdigest()


def _check_same_origin(dst: Path, origin: str) -> None:
    notes = [_read_note(path) for path in sorted(dst.glob("shard-*.json"))]
    others = [note["origin"] for note in notes if note is not None]
    others += [read_index(dst).get("origin")] if is_pack(dst) else []
    if any(other != origin for other in others):
        raise InputError(
            f"{dst} holds a pack of other images or of another form. Choose another folder, or"
            " remove it first."
        )


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def _read_note(path: Path) -> dict[str, Any] | None:
    """Return what an earlier run noted of a shard; None if that cannot be read, and the shard has
    to be written again.
    """
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    keys = ("name", "images", "bytes", "sha256", "index_sha256", "left_out", "origin")
    return note if isinstance(note, dict) and all(key in note for key in keys) else None


def _finished(dst: Path, number: int, contents: str) -> dict[str, Any] | None:
    """Return what an earlier run noted of a shard that is whole and made of the files as they are
    now.
    """
    path = dst / f"{_shard_name(number)}.json"
    if not path.is_file():
        return None
    entry = _read_note(path)
    if entry is None:
        logger.warning("%s is damaged, and its shard is written again", path)
        return None
    if entry.get("contents") != contents:
        logger.warning(
            "The images of %s have changed since, or it is of an older version; it is written"
            " again",
            path.with_suffix(".bin"),
        )
        return None
    for suffix, key in ((".bin", "sha256"), (".npz", "index_sha256")):
        file = dst / (_shard_name(number) + suffix)
        if not file.is_file() or sha256_of(file) != entry[key]:
            logger.warning("%s is missing or not what was written, and is written again", file)
            return None
    return entry


def _write_shard(
    dst: Path,
    number: int,
    source: ImageFolder | PackedImages,
    places: range,
    payloads: Iterator[Any],
    on_image: Callable[[], None],
) -> dict[str, Any]:
    ends, sizes, labels, names, left_out = [0], [], [], [], []
    file = dst / f"{_shard_name(number)}.bin"
    with atomic_path(file) as temporary, open(temporary, "wb") as out:
        for index in places:
            payload = next(payloads)
            on_image()
            if isinstance(payload, str):
                left_out.append(payload)
                continue
            data, size = payload
            out.write(data)
            ends.append(ends[-1] + len(data))
            sizes.append(size)
            labels.append(int(source.labels[index]) if len(source.labels) else -1)
            names.append(os.fsencode(source.names[index]))
    arrays = {
        "ends": np.array(ends, np.int64),
        "sizes": np.array(sizes, np.int32).reshape(-1, 2),
        "labels": np.array(labels, np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([0, *map(len, names)], dtype=np.int64),
    }
    with atomic_path(file.with_suffix(".npz")) as temporary, open(temporary, "wb") as out:
        np.savez(out, **arrays)
    hashes = {"sha256": sha256_of(file), "index_sha256": sha256_of(file.with_suffix(".npz"))}
    return {
        "name": file.stem,
        "images": len(labels),
        "bytes": ends[-1],
        **hashes,
        "left_out": left_out,
    }
