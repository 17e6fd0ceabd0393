"""The official checkpoint layout, which facebookresearch/moco's own tools read: both encoders
behind ``module.``, with head and queue.

Its main_lincls.py and detection/convert-pretrain-to-detectron2.py take what begins with
``module.encoder_q.`` and pass over everything else without a word: of names without ``module.`` the
one fails and the other writes an empty file.

Source:
    Behaviour of facebookresearch/moco@7397dfe, main_moco.py (save_checkpoint) and the two tools
    named above.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moco_transfer.models import BATCH_COUNTER, IMAGENET_PIXELS

from .formats import Source
from .read import Content

logger = logging.getLogger(__name__)

MODULE = "module."
QUERY, KEY_ENCODER = "encoder_q.", "encoder_k."
_QUEUE = ("queue", "queue_ptr")


def official_name(name: str) -> str:
    """Return the official layout's name of a tensor of the trained encoder from torchvision's."""
    return f"{MODULE}{QUERY}{name}"


def companions(content: Content, source: Source) -> dict[str, str]:
    """Return what the official layout holds beside the trained backbone: full name in the source ->
    name in the file to write.

    These are the encoder's head, the whole key encoder, the queue and its pointer, as far as the
    source has them under the official names, with or without ``module.``. Of another project's
    layout nothing is taken: its heads have other names and another meaning.
    """
    if source.layout.format != "moco" or not source.prefix.endswith(QUERY):
        return {}
    root = source.prefix.removesuffix(QUERY)
    taken = set(source.names.values())
    found = {}
    for name in content.tensors:
        own = name.removeprefix(root)
        is_head = own.startswith(f"{QUERY}fc.")
        if (
            name.startswith(root)
            and name not in taken
            and (is_head or own.startswith(KEY_ENCODER) or own in _QUEUE)
        ):
            found[name] = f"{MODULE}{own}"
    return found


def has_key_encoder(beside: Mapping[str, str]) -> bool:
    """Return whether :func:`companions` found a key encoder."""
    return any(name.startswith(f"{MODULE}{KEY_ENCODER}") for name in beside.values())


def official_checkpoint(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    beside: Mapping[str, Tensor],
    *,
    arch: str,
    epoch: int | None,
) -> dict[str, Any]:
    """Return what main_moco.py saves, without its optimizer.

    BN's counters, which files of old lack, are added as 0: main_lincls.py looks each of them up
    when it checks its result. bfloat16 becomes float32, exactly, because numpy, which the official
    converter writes with, has no such type.

    Args:
        state: torchvision's name -> tensor of the trained backbone.
        names: torchvision's name -> name in the file.
        beside: Name in the file -> tensor of what else goes there.
        arch: torchvision's name of the network.
        epoch: Epochs finished; left out where it is not known.
    """
    tensors = OrderedDict((names[name], _plain(tensor)) for name, tensor in state.items())
    tensors.update((name, _plain(tensor)) for name, tensor in beside.items())
    for name in list(tensors):
        counter = name.removesuffix("running_var") + BATCH_COUNTER
        if name.endswith(".running_var") and counter not in tensors:
            tensors[counter] = torch.zeros((), dtype=torch.int64)
    return {"arch": arch, "state_dict": tensors} | ({} if epoch is None else {"epoch": epoch})


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor.clone()


def warn_of_what_the_official_code_assumes(stamp: Mapping[str, Any], path: object) -> None:
    """Say what the official tools take for granted and these weights do not have."""
    import torchvision

    if stamp["arch"] not in torchvision.models.list_models(module=torchvision.models):
        logger.warning(
            "%s: torchvision has no %s, so main_lincls.py cannot build one; the official converter"
            " takes it.",
            path,
            stamp["arch"],
        )
    seen = {"format": stamp["format"], "mean": stamp["pixel_mean"], "std": stamp["pixel_std"]}
    if stamp["format"] is not None and seen != IMAGENET_PIXELS:
        logger.warning(
            "%s was trained on %s pixels of mean %s and std %s, but the official tools feed RGB"
            " with ImageNet's; change them there.",
            path,
            stamp["format"],
            stamp["pixel_mean"],
            stamp["pixel_std"],
        )
