"""Published weights by name: fetched once into iopath's cache and checked against their hash.

Names:
    ``moco_v1_200ep``, ``moco_v2_200ep``, ``moco_v2_800ep``; ``torchvision/R-50`` and ``MSRA/R-50``
    (the supervised baselines); torchvision's own, such as ``ResNet50_Weights.IMAGENET1K_V2``;
    ``detectron2://…`` as in Detectron2's configs; any http(s) address.
Environment:
    MOCO_TRANSFER_MIRROR: an address or a folder (a path, or file://…), asked instead of a file's
        own host, that has the files under the same paths
        (``…/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar``).
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

from iopath.common.file_io import HTTPURLHandler, PathManager
from torchvision import models

from ..models.resnets import ARCHITECTURES
from ..runtime.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

MIRROR = "MOCO_TRANSFER_MIRROR"

TIMEOUT_SEC = 30.0
"""How long a host may be silent."""

_HOST = "https://dl.fbaipublicfiles.com"
_MOCO = f"{_HOST}/moco/moco_checkpoints/{{0}}/{{0}}_pretrain.pth.tar"


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
    "moco_v1_200ep": Published(_MOCO.format("moco_v1_200ep"), "md5", "b251726a"),
    "moco_v2_200ep": Published(_MOCO.format("moco_v2_200ep"), "md5", "59fd9945"),
    "moco_v2_800ep": Published(_MOCO.format("moco_v2_800ep"), "md5", "a04e12f8"),
    "torchvision/R-50": Published(
        "https://download.pytorch.org/models/resnet50-0676ba61.pth", "sha256", "0676ba61"
    ),
    "MSRA/R-50": Published(f"{_HOST}/detectron2/ImageNetPretrained/MSRA/R-50.pkl"),
}

_DETECTRON2 = "detectron2://"
# The digest in a file's name: torch.hub writes SHA-256 after a dash, Detectron2 MD5 after "_".
_DIGEST_IN_NAME = (
    (re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt)$"), "sha256"),
    (re.compile(r"_([0-9a-f]{6,32})\.pkl$"), "md5"),
)


def published(name: str) -> Published | None:
    """Return what ``name`` stands for, or None when it can only be a path.

    Raises:
        InputError: If it has the form of one of torchvision's names but is none.
    """
    if name in ZOO:
        return ZOO[name]
    if re.fullmatch(r"\w+_Weights\.\w+", name):
        known = _torchvision_weights()
        if name not in known:
            raise InputError(
                f"Unknown weights {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
        return _at(known[name])
    if name.startswith(_DETECTRON2):
        return _at(f"{_HOST}/detectron2/{name.removeprefix(_DETECTRON2)}")
    return _at(name) if name.startswith(("https://", "http://")) else None


def local_file(name: str | os.PathLike[str]) -> Path:
    """Return ``name`` itself when it is a path, else the checked download that it stands for.

    Raises:
        InputError: If a download fails or its hash is not the published one.
    """
    source = None if os.path.exists(name) else published(os.fspath(name))
    if source is None:
        return Path(name)
    mirror = os.environ.get(MIRROR, "").rstrip("/").removeprefix("file://")
    url = mirror + urlparse(source.url).path if mirror else source.url
    is_folder = "://" not in url
    path = _from_folder(url, source, str(name)) if is_folder else _fetch(url, source, str(name))
    digest = _digest(path, source.algorithm)
    if not source.digest:
        logger.warning(
            "%s: no hash of it was published, so it is taken as it is (%s %s)",
            *(name, source.algorithm, digest),
        )
    elif not digest.startswith(source.digest):
        if not is_folder:  # so that the next call does not find it in the cache
            path.unlink(missing_ok=True)
        what = "copy it there" if is_folder else "it was deleted: call again to download it"
        raise InputError(
            f"{path} is not the published {name}: its {source.algorithm} begins with"
            f" {digest[: len(source.digest)]}, expected {source.digest}; {what} again."
        )
    return path


def _torchvision_weights() -> dict[str, str]:
    """Return torchvision's weights of the networks that can be converted: name -> address."""
    listed = models.list_models(module=models)
    return {
        f"{type(weights).__name__}.{name}": weights.url
        for arch in ARCHITECTURES
        if arch in listed
        for name, weights in models.get_model_weights(arch).__members__.items()
    }


def _at(url: str) -> Published:
    found = ((pattern.search(url), algorithm) for pattern, algorithm in _DIGEST_IN_NAME)
    return next((Published(url, algorithm, m[1]) for m, algorithm in found if m), Published(url))


def _from_folder(path: str, source: Published, name: str) -> Path:
    if not os.path.isfile(path):
        raise InputError(
            f"The mirror {os.environ[MIRROR]} ({MIRROR}) has no {path}, needed for {name}; copy it"
            f" there from {source.url}."
        )
    return Path(path)


def _fetch(url: str, source: Published, name: str) -> Path:
    if not url.startswith(("http://", "https://")):
        raise InputError(
            f"{MIRROR} is {os.environ[MIRROR]!r}, expected a folder, or an address that begins with"
            " http:// or https://."
        )
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SEC)  # iopath sets none, and would wait forever
    try:
        return Path(manager.get_local_path(url))
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        raise InputError(
            f"Cannot download {name} from {url} ({error}); without a network, fetch {source.url}"
            f" elsewhere and pass the file, or name a folder or address that has it in {MIRROR}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _digest(path: Path, algorithm: str) -> str:
    state = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
