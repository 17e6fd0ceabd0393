"""Tar shards: which there are and how many images each holds.

A shard is a tar file of samples as webdataset reads them: files that follow one another and share
    their name up to the first dot
are one sample, such as 000017.jpg and 000017.cls. A sample's image is its first file whose
extension is an image's; its label is the number in ``.cls``. The number of images is never
guessed: it is given, read from an index file, or counted from the headers of local shards, which
    takes hours of a hundred thousand of them. An index file is a JSON in webdataset's format
    (``widsindex create``):
{"shardlist": [{"url": …, "nsamples": …}, …]}.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from .shard_count import count_shards

logger = logging.getLogger(__name__)

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")  # two letters at least: C: is a drive


@dataclass(frozen=True)
class ShardSet:
    """Shards in a fixed order.

    Attributes:
        root: What was named, for messages.
        urls: Paths and URLs of the shards.
        counts: int64 (number of shards,), images in each; empty where only their sum is known.
        num_images: Number of images in all.
        class_names: "0", "1", …, as many as the labels in ``.cls`` ask for; empty where not every
            image is known to have one.
    """

    root: str
    urls: tuple[str, ...]
    counts: np.ndarray
    num_images: int
    class_names: tuple[str, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """Empty: labels come with the images."""
        return np.zeros(0, np.int64)

    @property
    def is_counted(self) -> bool:
        """Whether each shard's number of images is known, and so the number that an image has in
        the whole set.
        """
        return len(self.counts) > 0

    def __len__(self) -> int:
        return self.num_images

    def index(self, shard: int, position: int) -> int:
        """Return an image's number: in the whole set where the shards are counted, else one that
        no other image has.
        """
        return (
            int(self.counts[:shard].sum()) + position
            if self.is_counted
            else (shard << 32) + position
        )

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        classes = f" in {len(self.class_names)} classes" if self.class_names else ""
        return (
            f"{self.num_images} images{classes} in {len(self.urls)} shards of {self.root}; the"
            f" first is {self.urls[0]}"
        )


def is_url(name: str) -> bool:
    """Return whether a name starts with a scheme such as ``https:`` or ``pipe:``; ``file:`` counts
    as a path.
    """
    match = _SCHEME.match(name)
    return match is not None and match[1].lower() != "file"


def open_shards(root: str, *, num_images: int = 0) -> ShardSet:
    """List shards and find out how many images they hold.

    Args:
        root: Folder of tar files, a tar file, a pattern such as ``/data/train-{000..146}.tar`` or
            ``https://host/train-{000..146}.tar``, ``pipe:COMMAND``, or an index file (.json).
        num_images: Number of images in all shards, taken on trust: nothing is counted then, and
            labels are not looked for; 0 to count local shards. An index file counts by itself.

    Raises:
        MissingFileError: If a local shard does not exist.
        InputError: If webdataset is not installed, no shard is there or one is damaged, a scheme is
            unknown, the number of images is not known, or ``num_images`` is not what was counted.
    """
    if importlib.util.find_spec("webdataset") is None:
        raise InputError(
            f"DATA.ROOT {root} is made of tar shards, which need webdataset. Install it: pip"
            " install 'moco-transfer[shards]'."
        )
    if root.lower().endswith(".json"):
        shards = _from_index_file(Path(root))
    else:
        shards = _from_names(root, _list_shards(root), count=num_images == 0)
    if not shards.is_counted:
        if num_images < 1:
            raise InputError(
                f"The number of images in {root} is not known: {shards.urls[0]} is not a local"
                f" file. Set DATA.NUM_IMAGES to the number in all {len(shards.urls)} shards, or"
                " give an index file that counts them (made by `widsindex create`)."
            )
        return dataclasses.replace(shards, num_images=num_images)
    if shards.num_images == 0:
        raise InputError(
            f"{root}: the {len(shards.urls)} shards hold no image that webdataset can tell. Name"
            " them such as 000017.jpg."
        )
    if num_images not in (0, shards.num_images):
        raise InputError(
            f"DATA.NUM_IMAGES is {num_images}, but the index {root} counts {shards.num_images}"
            " images. Set it to 0."
        )
    return shards


def _list_shards(root: str) -> list[str]:
    path = Path(root)
    if path.is_dir():
        found = sorted(
            entry.name
            for entry in os.scandir(path)
            if entry.name.lower().endswith(TAR_EXTENSIONS) and not entry.name.startswith(".")
        )
        if not found:
            raise InputError(
                f"Data folder {root} holds no shard (looked for {', '.join(TAR_EXTENSIONS)})."
            )
        return [str(path / name) for name in found]
    if path.exists():
        return [root]
    import braceexpand

    try:
        names = list(braceexpand.braceexpand(root))
    except braceexpand.UnbalancedBracesError as error:
        raise InputError(
            f"DATA.ROOT {root}: the braces do not match. Write a pattern such as"
            " train-{000..146}.tar."
        ) from error
    return names


def _from_names(root: str, names: list[str], *, count: bool) -> ShardSet:
    _check_unique(root, names)
    urls = tuple(name if is_url(name) else _local(name) for name in names)
    _check_schemes(urls)
    local = tuple(url for url in urls if not is_url(url))
    _check_present(root, local)
    if not count or len(local) < len(urls):
        return ShardSet(root, urls, np.zeros(0, np.int64), 0)
    counted = count_shards([Path(url) for url in urls])
    counts = np.array([shard.num_images for shard in counted], np.int64)
    labelled = all(shard.num_classes for shard in counted if shard.num_images)
    classes = max((shard.num_classes for shard in counted), default=0) if labelled else 0
    return ShardSet(root, urls, counts, int(counts.sum()), tuple(map(str, range(classes))))


def _local(name: str) -> str:
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    return url2pathname(urlparse(name).path) if name.lower().startswith("file:") else name


def _check_unique(root: str, names: list[str]) -> None:
    repeated = len(names) - len(set(names))
    if repeated:
        raise InputError(f"{root} names {repeated} shards twice. Name each once.")


def _check_present(root: str, urls: tuple[str, ...]) -> None:
    missing = [url for url in urls if not os.path.isfile(url)]
    if missing:
        raise MissingFileError(
            f"DATA.ROOT {root}: shard {missing[0]} does not exist ({len(missing)} of {len(urls)} do"
            " not)."
        )


def _check_schemes(urls: tuple[str, ...]) -> None:
    from webdataset.gopen import gopen_schemes

    for url in urls:
        if is_url(url) and _SCHEME.match(url)[1].lower() not in gopen_schemes:
            known = ", ".join(
                sorted(scheme for scheme in gopen_schemes if not scheme.startswith("_"))
            )
            raise InputError(
                f"DATA.ROOT {url}: webdataset does not read this kind of URL, only {known}. A"
                " program that writes a shard to its standard output serves too, e.g. 'pipe:aws s3"
                " cp s3://bucket/train-{000..146}.tar -'."
            )


def _from_index_file(file: Path) -> ShardSet:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["shardlist"]
        names = [str(entry["url"]) for entry in entries]
        counts = np.array([int(entry["nsamples"]) for entry in entries], np.int64)
    except FileNotFoundError as error:
        raise MissingFileError(f"Index file {file} does not exist (DATA.ROOT).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file} is not an index of shards ({error!r}). Expected {{"shardlist": [{{"url": …,'
            ' "nsamples": …}, …]}.'
        ) from error
    if not names or counts.min() < 0:
        raise InputError(f"{file} lists no shard, or a negative number of images.")
    _check_unique(str(file), names)
    foreign = [name for name in names if name.lower().startswith("pipe:")]
    if foreign:  # an index may come from a stranger, and a file from a stranger runs no program
        raise InputError(
            f"{file} asks to run a program: {foreign[0]!r}. Give such shards in DATA.ROOT itself,"
            " with DATA.NUM_IMAGES."
        )
    urls = tuple(
        name if is_url(name) else os.path.join(file.parent, _local(name)) for name in names
    )
    _check_schemes(urls)
    _check_present(str(file), tuple(url for url in urls if not is_url(url)))
    return ShardSet(str(file), urls, counts, int(counts.sum()))
