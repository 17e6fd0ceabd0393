"""Writing images as tar shards: as they are, encoded again smaller, or as raw pixels.

    DST/shard-00000.tar            webdataset's layout: KEY.jpg (or .png, …; raw: KEY.npy), KEY.cls
    DST/shard-00000.tar.index.npz  where each image lies (``tar_shards.py``)
    DST/pack.json                  what happened to the pixels; number of images, size and SHA-256
                                   of each shard, in webdataset's index format

A shard holds a fixed number of images of the source's order and is written whole or not at all. A
second run writes what is missing or damaged; it is refused if an image has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...runtime.errors import InputError
from ...runtime.files import atomic_path, atomic_write_text, sha256_of
from .decode import UNREADABLE, decode_pixels, encode_npy, is_npy, read_rgb
from .folder import ImageFolder
from .image_source import IndexedSource
from .tar_shards import PACK_FILE, PACK_FORMAT, open_local_shards, read_pack_file

logger = logging.getLogger(__name__)

QUALITY = 95


@dataclass(frozen=True)
class PackSettings:
    """What is written: ``original`` (the files' bytes), ``jpeg`` (smaller and encoded again) or
    ``raw`` (smaller, decoded).
    """

    form: str = "original"
    shorter_side: int = 256  # to which larger images are resized, px; not for original
    images_per_shard: int = 4096

    @property
    def pixel_change(self) -> str:
        """What happens to the pixels, in words; empty for nothing."""
        resized = f"shorter side at most {self.shorter_side} px (PIL bilinear, antialiased)"
        encoded = f", encoded again as JPEG quality {QUALITY} 4:4:4" if self.form == "jpeg" else ""
        return "" if self.form == "original" else resized + encoded


class _Payloads(Dataset):
    """Images as they go into a shard: (extension, bytes), or the reason why not."""

    def __init__(self, source: IndexedSource, settings: PackSettings) -> None:
        self.source, self.settings = source, settings

    def __getitem__(self, index: int) -> tuple[str, bytes] | str:
        try:
            data = self.source.content(index)
            if self.settings.form == "original":
                decode_pixels(data)  # what cannot be decoded is left out
                extension = os.path.splitext(self.source.name(index))[1][1:] or "jpg"
                return "npy" if is_npy(data) else extension, bytes(data)
            image = read_rgb(data, upright=True)  # the tag would be lost
        except UNREADABLE as error:
            return f"{self.source.name(index)}: {error}"
        side = self.settings.shorter_side
        scale = side / min(image.size)
        if scale < 1:
            width, height = (max(side, round(length * scale)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.settings.form == "raw":
            return "npy", encode_npy(np.asarray(image))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return "jpg", buffer.getvalue()


def pack(
    source: IndexedSource,
    dst: str | os.PathLike[str],
    settings: PackSettings,
    *,
    num_workers: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write tar shards, or continue where an earlier run was interrupted; ``num_workers`` processes
    decode (0: this one), and ``on_image`` is called after each image. Returns why images were left
    out, one sentence each. InputError if the folder holds a pack of something else.
    """
    dst, step = Path(dst), settings.images_per_shard
    parts = {
        f"shard-{start // step:05d}.tar": range(start, min(start + step, len(source)))
        for start in range(0, len(source), step)
    }
    about: dict[str, Any] = {
        "format": PACK_FORMAT,
        "form": settings.form,
        "pixel_change": settings.pixel_change,
        "source": source.describe(),
        "origin": _hash_of_origin(source, settings),
        "class_names": list(source.class_names),
        "finished": False,
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
    }
    entries = _finished_shards(dst, about["origin"])
    missing = [i for name, part in parts.items() if name not in entries for i in part]
    made = _Payloads(source, settings)
    payloads = iter(DataLoader(made, batch_size=None, sampler=missing, num_workers=num_workers))

    def record() -> None:
        about["finished"] = len(entries) == len(parts)
        about["images"] = sum(entry["nsamples"] for entry in entries.values())
        about["shardlist"] = [entries[name] for name in sorted(entries)]
        atomic_write_text(dst / PACK_FILE, json.dumps(about, indent=1))

    record()  # before the first shard, which would else be of an unknown pack after a kill
    for name, part in parts.items():
        if name not in entries:
            entries[name] = _write_shard(dst / name, source, part, payloads, on_image)
            record()
    open_local_shards(str(dst), [dst / name for name in parts])  # keeps the index
    return [reason for entry in about["shardlist"] for reason in entry["left_out"]]


def _hash_of_origin(source: IndexedSource, settings: PackSettings) -> str:
    """Return a hash of everything that decides what is written: of files, their sizes and times."""
    size = settings.form != "original" and settings.shorter_side
    what = (settings.form, size, settings.images_per_shard, QUALITY)
    digest = hashlib.sha256(repr(what).encode())
    digest.update(np.asarray(source.labels, np.int64).tobytes())
    for index in range(len(source)):
        path, data = "", b"missing"  # reading it reports the reason
        with contextlib.suppress(OSError):
            if isinstance(source, ImageFolder):
                path = source.names[index]
                status = os.stat(source.path(index))
                data = f"{status.st_size} {status.st_mtime_ns}".encode()
            else:
                data = hashlib.sha256(source.content(index)).digest()
        digest.update(os.fsencode(path) + b"\0" + data + b"\n")
    return digest.hexdigest()


def _finished_shards(dst: Path, origin: str) -> dict[str, dict[str, Any]]:
    """Return an earlier run's entries of shards that are whole."""
    if not (dst / PACK_FILE).is_file() and not any(dst.glob("*.tar")):
        return {}
    about, finished = read_pack_file(dst), {}
    if about["origin"] != origin:
        raise InputError(
            f"{dst} holds a pack of other images, of another form, or of files that have changed"
            " since. Choose another folder, or remove it first."
        )
    for entry in about["shardlist"]:
        file = dst / entry["url"]
        if file.is_file() and sha256_of(file) == entry["sha256"]:
            finished[file.name] = entry
        else:
            logger.warning("%s is missing or damaged and is written again", file)
    return finished


def _write_shard(
    file: Path, source: IndexedSource, places: range, payloads: Iterator[Any], on_image: Any
) -> dict[str, Any]:
    left_out: list[str] = []
    keys: set[str] = set()
    with atomic_path(file) as temporary, tarfile.open(temporary, "w") as archive:
        for index in places:
            payload = next(payloads)
            on_image()
            if isinstance(payload, str):
                left_out.append(payload)
                continue
            key = _key_of(source, index, keys)
            keys.add(key)
            label = [("cls", str(source.labels[index]).encode())] if len(source.labels) else []
            for extension, data in (payload, *label):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    entry = {"url": file.name, "nsamples": len(keys), "filesize": file.stat().st_size}
    return {**entry, "sha256": sha256_of(file), "left_out": left_out}


def _key_of(source: IndexedSource, index: int, used: set[str]) -> str:
    """Return the image's path without what webdataset would misread, unique in its shard."""
    path = source.names[index] if isinstance(source, ImageFolder) else ""
    stem = os.path.splitext(path)[0]
    folder, _, leaf = "/".join(part for part in stem.split("/") if part.strip(".")).rpartition("/")
    key = f"{folder}/{leaf.replace('.', '_')}".lstrip("/")
    return f"{index:09d}" if not leaf or key in used or key.startswith("__") else key


def check_pack(root: str | os.PathLike[str]) -> int:
    """Compare every byte of a pack with what was written; returns the number of images. InputError
    names the first shard that differs.
    """
    folder = Path(root)
    entries = read_pack_file(folder)["shardlist"]
    source = open_local_shards(str(folder), [folder / entry["url"] for entry in entries])
    for entry, file in zip(entries, source.files, strict=True):
        if sha256_of(file) != entry["sha256"]:
            raise InputError(
                f"{file} is not what was written: its SHA-256 differs from {PACK_FILE}. Pack again."
            )
    return len(source)
