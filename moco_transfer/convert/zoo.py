"""Published weights by name: fetched once into iopath's cache and checked against their hash.

Names:
    The keys of :data:`ZOO`; torchvision's own, such as ``ResNet50_Weights.IMAGENET1K_V2``;
    ``detectron2://…`` as in Detectron2's configs; any http(s) address.
Environment:
    MOCO_TRANSFER_MIRROR: an address or a folder (a path, or file://…), asked instead of a file's
        own host, that has the files under the same paths
        (``…/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar``).
    FVCORE_CACHE: where downloads are kept (default ``~/.torch/iopath_cache``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import yaml
from iopath.common.file_io import HTTPURLHandler, PathManager
from torchvision.models import get_weight

from ..runtime.errors import InputError, MissingFileError, did_you_mean
from .hub import SCHEME, fetch

logger = logging.getLogger(__name__)

MIRROR = "MOCO_TRANSFER_MIRROR"
TIMEOUT_SEC = 30.0  # how long a host may be silent

_HOST = "https://dl.fbaipublicfiles.com"


class Published(NamedTuple):
    """A file on the net; ``digest`` is hexadecimal, or its beginning, or "" if none is known."""

    url: str
    algorithm: str = "sha256"
    digest: str = ""


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ZOO = {name: Published(**row) for name, row in _TABLE.items()}

# The digest in a file's name: torch.hub writes SHA-256 after a dash, Detectron2 MD5 after "_".
_DIGEST_IN_NAME = {"sha256": r"-([0-9a-f]{8,64})\.(?:pth|pt)$", "md5": r"_([0-9a-f]{6,32})\.pkl$"}


def published(name: str) -> Published | None:
    """Return what ``name`` stands for, or None when it can only be a path. InputError if it has
    the form of one of torchvision's names but is none.
    """
    if name in ZOO:
        return ZOO[name]
    url = re.sub("^detectron2://", f"{_HOST}/detectron2/", name)
    if re.fullmatch(r"\w+_Weights\.\w+", name):
        try:
            url = get_weight(name).url
        except (ValueError, KeyError):
            raise InputError(f"torchvision has no weights {name!r}; check the name.") from None
    if not url.startswith(("https://", "http://")):
        return None
    for algorithm, pattern in _DIGEST_IN_NAME.items():
        if found := re.search(pattern, url):
            return Published(url, algorithm, found[1])
    return Published(url)


def local_file(name: str | os.PathLike[str]) -> Path:
    """Return ``name`` itself when it is a path, else the checked download that it stands for.
    InputError if a download fails, its hash is not the published one, or ``name`` is no file and
    nearly a published name.
    """
    if os.fspath(name).startswith(SCHEME):
        return fetch(os.fspath(name))
    source = None if os.path.exists(name) else published(os.fspath(name))
    if source is None:
        near = did_you_mean(os.fspath(name), ZOO)
        if near and not os.path.exists(name):
            raise MissingFileError(f"{name} is no file and no published name.{near}")
        return Path(name)
    mirror = os.environ.get(MIRROR, "").rstrip("/").removeprefix("file://")
    url = mirror + urlparse(source.url).path if mirror else source.url
    is_download = "://" in url
    path = _download(url, f"{name}") if is_download else Path(url)
    try:
        digest = hashlib.new(source.algorithm, path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"Cannot read {path}, needed for {name} ({MIRROR}): {error}.") from error
    if not source.digest:
        logger.warning("%s has no published hash to check (%s %s)", name, source.algorithm, digest)
    elif not digest.startswith(source.digest):
        if is_download:  # so that the next call does not find it in the cache
            path.unlink(missing_ok=True)
        raise InputError(
            f"{path} is not the published {name}: its {source.algorithm} begins with"
            f" {digest[: len(source.digest)]}, expected {source.digest};"
            f" {'it was deleted: download' if is_download else 'copy'} it again."
        )
    return path


def _download(url: str, name: str) -> Path:
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SEC)  # iopath sets none, and would wait forever
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{MIRROR} is no folder and no http address")
        return Path(manager.get_local_path(url))
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        raise InputError(
            f"Cannot download {name} from {url} ({error}); fetch the file elsewhere and pass it,"
            f" or name a folder or an http address that has it in {MIRROR}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
