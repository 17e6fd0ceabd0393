"""What a file calls its network: some that are not plain ResNets have a plain one's tensors.

timm's anti-aliased ``resnetaa50`` and ``resnetblur50`` pool elsewhere: every name and shape is
ResNet-50's, and in a plain ResNet-50 the features of res5 are others (by 279 % in a random one).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import regular
from ..runtime.text import parse_json
from .read import Content

logger = logging.getLogger(__name__)

_HUB_FILES = ("pytorch_model.bin",)  # besides *.safetensors: what lies next to a hub's config.json
# timm's and torchvision's names of plain ResNets, with what they put around them.
_PREFIXES = re.compile(r"^(gluon|tv|ssl|swsl|legacy)_")
_SUFFIXES = re.compile(r"(_v1b|\..*)$")
# What timm's model_args say of the head, of training and of the input; timm 1.0.31 writes the first
# three for every network.
_HARMLESS = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "img_size")
_OTHER_POOLING = re.compile(r"(^|_)(resnet|resnext|wide_resnet)(aa|blur)")


def named_architecture(content: Content, recognised: str) -> str:
    """Return the architecture recognised by tensors, or raise InputError if the file, or the
    config.json next to it, names a network that computes something else with them.
    """
    for where, name, is_certain in _names(content):
        plain = _PREFIXES.sub("", _SUFFIXES.sub("", name))
        if plain != recognised and (is_certain or _OTHER_POOLING.search(name)):
            raise InputError(
                f"{where} says that the network is {name!r}. Its tensors are named and shaped as"
                f" {recognised}'s, but a detector with a plain {recognised} would compute other"
                " features from them (another pooling, for example). Convert a plain ResNet, or"
                f" pass --arch {recognised} to take the tensors nevertheless."
            )
    return recognised


def _names(content: Content) -> Iterator[tuple[str, str, bool]]:
    """Yield where a network is named, its name, and whether names there are timm's for sure."""
    if isinstance(name := content.top.get("arch"), str):
        yield f"{content.path}", name, False
    file = content.path.with_name("config.json")
    if content.path.suffix != ".safetensors" and content.path.name not in _HUB_FILES:
        return
    try:
        config: Any = parse_json(regular(file).read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        logger.warning("%s is passed over: it cannot be read (%s)", file, error)
        return
    if isinstance(config, dict) and isinstance(name := config.get("architecture"), str):
        yield f"{file}", name, True
        asked = config.get("model_args")
        asked = asked if isinstance(asked, dict) else {}
        changes = {key: value for key, value in asked.items() if key not in _HARMLESS}
        if changes:
            # Without the tag of its weights, behind which nothing counts.
            yield f"{file}", f"{name.partition('.')[0]} with {json.dumps(changes)}", True
