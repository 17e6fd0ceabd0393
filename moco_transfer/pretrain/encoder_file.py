"""Take a trained encoder, ready to compute features, out of a checkpoint.

Two kinds are read here: those of ``moco-transfer pretrain`` and the official ones of
    facebookresearch/moco@7397dfe, whose names differ by
a ``module.`` in front. Other layouts are for ``moco_transfer.convert`` to read;
:func:`backbone_encoder` takes what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ..data.images.labelled import EvaluationView, protocol_resize
from ..models import ENCODERS, add_mlp_head, build_encoder
from ..runtime.errors import InputError, did_you_mean

_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder and what it expects to see.

    Attributes:
        network: Maps normalised RGB (N, 3, H, W) to (N, C); on the CPU, in evaluation mode, without
            gradients.
        arch: A key of ``ENCODERS``.
        view: Size and pixel statistics of its images.
        has_head: Whether the head came with it; else ``fc`` must not be used.
        mechanism: What trained it, e.g. ``moco``; empty where the file does not say.
        epoch: Epochs finished, None where the file does not say.
    """

    network: nn.Module
    arch: str
    view: EvaluationView
    has_head: bool
    mechanism: str = ""
    epoch: int | None = None


def trained_encoder(
    checkpoint: Mapping[str, Any], path: str, *, encoder: str = "q"
) -> TrainedEncoder | None:
    """Build the encoder that a checkpoint of ours, or an official one, holds.

    Args:
        checkpoint: The file's outermost dictionary.
        path: The file, for messages.
        encoder: ``q`` for the encoder that was trained, ``k`` for its momentum copy.

    Returns:
        The encoder, or None when the file is of another layout.

    Raises:
        InputError: If the file is of these layouts but lacks the encoder, a tensor of it, or the
            name of its architecture.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        return None
    prefixes = [
        p
        for p in ("encoder_q.", "module.encoder_q.")
        if any(str(name).startswith(p) for name in state)
    ]
    if not prefixes:
        return None
    prefix = prefixes[0].replace("encoder_q", f"encoder_{encoder}")
    tensors = {
        name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)
    }
    if not tensors:
        raise InputError(
            f"{path} has no key encoder: no key of 'state_dict' starts with {prefix!r}. Take"
            " encoder q."
        )
    arch = checkpoint.get("arch")
    if arch not in ENCODERS:
        raise InputError(
            f"{path}: its architecture is {arch!r}.{did_you_mean(str(arch), ENCODERS)} Known:"
            f" {', '.join(ENCODERS)}."
        )
    return TrainedEncoder(
        network=_filled(arch, tensors, path, prefix),
        arch=arch,
        view=_view(checkpoint),
        has_head=True,
        mechanism=str(checkpoint.get("mechanism", "moco")),
        epoch=checkpoint.get("epoch"),
    )


def backbone_encoder(
    tensors: Mapping[str, Tensor],
    path: str,
    *,
    arch: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> TrainedEncoder:
    """Build an encoder without a head from a backbone's tensors.

    Args:
        tensors: torchvision's name -> tensor, ``fc`` left out.
        path: The file, for messages.
        arch: torchvision's name of the network.
        mean: Of the pixels it was trained on, RGB, 0-255.
        std: Of the same.

    Raises:
        InputError: If the architecture is unknown here or a tensor is missing or misshapen.
    """
    if arch not in ENCODERS:
        raise InputError(
            f"{path} holds a {arch}; features can be computed with {', '.join(ENCODERS)}."
        )
    network = _filled(arch, tensors, path, "", head=False)
    return TrainedEncoder(
        network=network, arch=arch, view=EvaluationView(224, 256, mean, std), has_head=False
    )


def _filled(
    arch: str, tensors: Mapping[str, Tensor], path: str, prefix: str, *, head: bool = True
) -> nn.Module:
    last = tensors.get("fc.2.weight", tensors.get("fc.weight"))
    if head and last is None:
        raise InputError(
            f"{path} lacks the head of its encoder: neither {prefix}fc.weight nor"
            f" {prefix}fc.2.weight is there."
        )
    network = build_encoder(arch, num_classes=len(last) if head else 1)
    if head and "fc.2.weight" in tensors:
        add_mlp_head(network)
    expected = {
        name: tuple(t.shape)
        for name, t in network.state_dict().items()
        if head or not name.startswith("fc.")
    }
    got = {name: tuple(t.shape) for name, t in tensors.items()}
    # Files of before BN counted its batches lack the counter, which evaluation does not read.
    differing = sorted(
        n
        for n in expected.keys() | got.keys()
        if expected.get(n) != got.get(n) and not n.endswith("num_batches_tracked")
    )
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} does not hold a whole {arch}: {len(differing)} of {len(expected)} tensors"
            f" differ, the first is {prefix}{name} (shape {got.get(name, 'absent')} in the file,"
            f" {expected.get(name, 'absent')} in a {arch})."
        )
    network.load_state_dict(dict(tensors), strict=False)  # complete but for counters: checked above
    broken = [
        name
        for name, t in network.state_dict().items()
        if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if broken:
        raise InputError(
            f"{path}: {prefix}{broken[0]} holds values that are not finite: the training diverged."
            " Take an earlier checkpoint."
        )
    return network.eval().requires_grad_(False)


def _view(checkpoint: Mapping[str, Any]) -> EvaluationView:
    if (
        "config" not in checkpoint
    ):  # the official code's, or ours written in its layout, with a stamp that says the pixels
        stamp = checkpoint.get("moco_transfer", {})
        mean, std = (
            stamp.get(name) or default
            for name, default in (("pixel_mean", _IMAGENET_MEAN), ("pixel_std", _IMAGENET_STD))
        )
        return EvaluationView(224, 256, tuple(mean), tuple(std))
    data = yaml.safe_load(checkpoint["config"])["DATA"]
    size = data["IMAGE_SIZE"]
    return EvaluationView(
        size,
        data.get("TEST_RESIZE") or protocol_resize(size),
        tuple(data["PIXEL_MEAN"]),
        tuple(data["PIXEL_STD"]),
    )
