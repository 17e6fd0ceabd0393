"""Published weights by name: fetched once into iopath's cache and checked against the hash that was
published with them.

Names:
    ``moco_v1_200ep``, ``moco_v2_200ep``, ``moco_v2_800ep``; ``torchvision/R-50`` and ``MSRA/R-50``
    (the supervised baselines); torchvision's own, such as ``ResNet50_Weights.IMAGENET1K_V2``;
    ``detectron2://…`` as in Detectron2's configs; any http(s) address.
Environment:
    MOCO_TRANSFER_MIRROR: an address or a folder (a path, or file://…) that has the files under the
        same paths as their own host
    (``…/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar``); asked instead of
    that host.
    FVCORE_CACHE: where downloads are kept (default ``~/.torch/iopath_cache``), shared with
        Detectron2.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torchvision
from iopath.common.file_io import HTTPURLHandler, PathManager

from moco_transfer.models import ARCHITECTURES
from moco_transfer.runtime.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

MIRROR = "MOCO_TRANSFER_MIRROR"

TIMEOUT_SEC = 30.0
"""How long a host may be silent."""

_HOST = "https://dl.fbaipublicfiles.com"


@dataclass(frozen=True)
class Published:
    """A file on the net.

    Attributes:
        url: Its address.
        algorithm: "md5" or "sha256".
        digest: The published hexadecimal digest or its beginning; "" where none was published, and
            nothing can be checked then.
    """

    url: str
    algorithm: str = "sha256"
    digest: str = ""


ZOO = {
    "moco_v1_200ep": Published(
        f"{_HOST}/moco/moco_checkpoints/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar",
        "md5",
        "b251726a",
    ),
    "moco_v2_200ep": Published(
        f"{_HOST}/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar",
        "md5",
        "59fd9945",
    ),
    "moco_v2_800ep": Published(
        f"{_HOST}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "md5",
        "a04e12f8",
    ),
    "torchvision/R-50": Published(
        "https://download.pytorch.org/models/resnet50-0676ba61.pth", "sha256", "0676ba61"
    ),
    # No hash of this file has been published.
    "MSRA/R-50": Published(f"{_HOST}/detectron2/ImageNetPretrained/MSRA/R-50.pkl"),
}

_DETECTRON2 = "detectron2://"
# Who puts a digest into a file's name: torch.hub the SHA-256 behind a dash, Detectron2's zoo the
# MD5 behind an underscore.
_DIGEST_IN_NAME = (
    (re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt)$"), "sha256"),
    (re.compile(r"_([0-9a-f]{6,32})\.pkl$"), "md5"),
)
_TORCHVISION_NAME = re.compile(r"\w+_Weights\.\w+")


def published(name: str) -> Published | None:
    """Return what ``name`` stands for, or None when it can only be a path.

    Raises:
        InputError: If it has the form of one of torchvision's names but is none.
    """
    if name in ZOO:
        return ZOO[name]
    if _TORCHVISION_NAME.fullmatch(name):
        known = _torchvision_weights()
        if name not in known:
            raise InputError(
                f"Unknown weights {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
        return _at(known[name])
    if name.startswith(_DETECTRON2):
        return _at(f"{_HOST}/detectron2/{name[len(_DETECTRON2) :]}")
    return _at(name) if name.startswith(("https://", "http://")) else None


def local_file(name: str | os.PathLike[str]) -> Path:
    """Return a path on this machine: ``name`` itself when it is a path, else the checked download
    that it stands for.

    Args:
        name: A path, or one of the names above.

    Raises:
        InputError: If a download fails or its hash is not the published one.
    """
    source = None if os.path.exists(name) else published(os.fspath(name))
    if source is None:
        return Path(name)
    path = _fetch(str(name), source)
    _check(str(name), source, path)
    return path


def _torchvision_weights() -> dict[str, str]:
    """Return the names of torchvision's weights of the networks that can be converted, ``DEFAULT``
    included -> address.
    """
    known = {}
    for arch in ARCHITECTURES:
        if arch in torchvision.models.list_models(module=torchvision.models):
            for name, weights in torchvision.models.get_model_weights(arch).__members__.items():
                known[f"{type(weights).__name__}.{name}"] = weights.url
    return known


def _at(url: str) -> Published:
    for pattern, algorithm in _DIGEST_IN_NAME:
        match = pattern.search(url)
        if match:
            return Published(url, algorithm, match[1])
    return Published(url)


def _fetch(name: str, source: Published) -> Path:
    mirror = os.environ.get(MIRROR, "").rstrip("/").removeprefix("file://")
    url = mirror + urlparse(source.url).path if mirror else source.url
    if mirror and "://" not in mirror:
        if not os.path.isfile(url):
            raise InputError(
                f"The mirror {mirror} ({MIRROR}) has no {url}, needed for {name}; copy it there"
                f" from {source.url}."
            )
        return Path(url)
    if not url.startswith(("http://", "https://")):
        raise InputError(
            f"{MIRROR} is {mirror!r}, expected a folder, or an address that begins with http:// or"
            " https://."
        )
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(
        TIMEOUT_SEC
    )  # iopath sets none, and would wait for a firewall for ever
    try:
        return Path(manager.get_local_path(url))
    except (
        OSError,
        ValueError,
    ) as error:  # URLError, HTTPError and a broken connection are OSErrors
        raise InputError(
            f"Cannot download {name} from {url} ({error}); without a network, fetch {source.url}"
            f" elsewhere and pass the file, or name a folder or address that has it in {MIRROR}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _check(name: str, source: Published, path: Path) -> None:
    digest = _digest(path, source.algorithm)
    if not source.digest:
        logger.warning(
            "%s: no hash of it was published, so it is taken as it is (%s %s)",
            name,
            source.algorithm,
            digest,
        )
    elif not digest.startswith(source.digest):
        is_download = "://" in os.environ.get(MIRROR, "http://").removeprefix("file://")
        if is_download:  # so that the next call does not find it in the cache
            path.unlink(missing_ok=True)
        raise InputError(
            f"{path} is not the published {name}: its {source.algorithm} begins with"
            f" {digest[: len(source.digest)]}, expected "
            f"{source.digest};"
            f" {'it was deleted: call again, and it is downloaded again' if is_download else 'copy it there again'}."
        )


def _digest(path: Path, algorithm: str) -> str:
    state = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
