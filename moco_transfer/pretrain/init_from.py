"""``--init-from``: weights of another run, and nothing else of it: a fresh queue, optimiser and
schedule.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..runtime.checkpoint import load_checkpoint
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)

# Where the trained encoder is: our and the official checkpoints (also saved under
# DistributedDataParallel), a torchvision state dict.
_PREFIXES = ("module.encoder_q.", "encoder_q.", "")


def start_from(model: nn.Module, path: str) -> None:
    """Load the trained encoder of a checkpoint into ``encoder_q``, and into ``encoder_k`` where
    there is one.

    The trunk must be there whole. A head of the same shape comes along; any other stays as it was
    initialised.

    Args:
        model: MoCo, MemoryBank, EndToEnd or Supervised, on the CPU; changed in place.
        path: A checkpoint of ``pretrain``, an official MoCo ``.pth.tar``, or a torchvision ResNet's
            state dict.

    Raises:
        InputError: If the file has no encoder of this architecture.
    """
    loaded = load_checkpoint(path)
    state = loaded.get("state_dict", loaded)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    prefix = next((p for p in _PREFIXES if f"{p}conv1.weight" in tensors), None)
    if prefix is None:
        raise InputError(
            f"{path} has no encoder to start from: expected module.encoder_q.conv1.weight,"
            " encoder_q.conv1.weight or conv1.weight. First keys:"
            f" {', '.join(list(tensors)[:4]) or 'none'}. Pass a checkpoint of pretrain, of official"
            " MoCo, or of torchvision."
        )
    theirs = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    own = model.encoder_q.state_dict()
    trunk = [
        name
        for name in own
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    ]
    missing = [name for name in trunk if name not in theirs]
    misshapen = [name for name in trunk if name in theirs and theirs[name].shape != own[name].shape]
    unused = [name for name in theirs if name not in own and not name.startswith("fc.")]
    if missing or misshapen or unused:
        found = {"missing": missing, "misshapen": misshapen, "unused": unused}
        first = ", ".join(
            f"{len(names)} {what} (first: {names[0]})" for what, names in found.items() if names
        )
        raise InputError(
            f"{path} holds another architecture than MODEL.ARCH: of {len(trunk)} tensors {first}."
            " Set MODEL.ARCH to the file's."
        )
    head = [name for name in own if name.startswith("fc.")]
    head_fits = all(name in theirs and theirs[name].shape == own[name].shape for name in head)
    taken = {
        name: theirs[name]
        for name in own
        if name in theirs and (head_fits or not name.startswith("fc."))
    }
    _load(model, taken)
    head_text = "head too" if head_fits else "head initialised again"
    logger.info(
        "started from %s: %d trunk tensors, %s; queue, optimiser and schedule are fresh",
        path,
        len(trunk),
        head_text,
    )


@torch.no_grad()
def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    model.encoder_q.load_state_dict(model.encoder_q.state_dict() | tensors)
    if hasattr(model, "encoder_k"):  # as at the start of any run, both encoders are equal
        model.encoder_k.load_state_dict(model.encoder_q.state_dict())
