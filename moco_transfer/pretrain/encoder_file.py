"""Take a trained encoder out of a checkpoint: to compute features, or to start a run from it.

Read here are checkpoints of ``moco-transfer pretrain``, the official ones of
facebookresearch/moco@7397dfe (``module.`` in front), and torchvision's state dicts. Other layouts
are read by ``moco_transfer.convert``; :func:`backbone_encoder` takes what that finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import yaml
from torch import Tensor, nn

from ..data.views.labelled import EvaluationView, protocol_resize
from ..models import (
    ENCODERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    add_mlp_head,
    backbone_shapes,
    build_encoder,
)
from ..models.resnets import BATCH_COUNTER, Shape
from ..runtime.checkpoint import load_checkpoint
from ..runtime.errors import InputError, did_you_mean

Pixel: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder and what it expects; ``mechanism`` and ``epoch`` are empty where unknown.

    ``network``: normalised RGB (N, 3, H, W) -> (N, C); on the CPU, in evaluation mode, without
    gradients. ``has_head``: whether the head came with it; otherwise ``fc`` must not be used.
    """

    network: nn.Module
    arch: str
    view: EvaluationView
    has_head: bool
    mechanism: str = ""
    epoch: int | None = None


@dataclass(frozen=True)
class StartWeights:
    """What a run's encoders start from: the whole trunk of ``encoder_q``, the head if it fits."""

    tensors: dict[str, Tensor]
    description: str  # coverage and stamp


def trained_encoder(
    checkpoint: Mapping[str, Any], path: str, *, encoder: str = "q"
) -> TrainedEncoder | None:
    """Build the encoder in a checkpoint of ours or an official one; None for other layouts.

    ``encoder``: ``q`` for the encoder that was trained, ``k`` for its momentum copy. Raises
    InputError if the file lacks the encoder, a tensor of it, or the name of its architecture.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        return None
    module = next((n.partition("encoder_q.")[0] for n in map(str, state) if "encoder_q." in n), 0)
    if module not in ("", "module."):
        return None
    prefix = f"{module}encoder_{encoder}."
    tensors = _without_prefix(state, prefix)
    if not tensors:
        raise InputError(f"{path} has no key encoder: no key {prefix!r}… Use encoder q.")
    arch = checkpoint.get("arch")
    if arch not in ENCODERS:
        near, known = did_you_mean(str(arch), ENCODERS), ", ".join(ENCODERS)
        raise InputError(f"{path}: its architecture is {arch!r}.{near} Known: {known}.")
    network = _filled(arch, tensors, path, prefix)
    mechanism, epoch = str(checkpoint.get("mechanism", "moco")), checkpoint.get("epoch")
    return TrainedEncoder(network, arch, _view(checkpoint), True, mechanism, epoch)


def backbone_encoder(
    tensors: Mapping[str, Tensor], path: str, *, arch: str, mean: Pixel, std: Pixel
) -> TrainedEncoder:
    """Build an encoder from a backbone's tensors (torchvision's names, no ``fc``).

    ``mean`` and ``std``: of the pixels it was trained on, RGB, 0-255. Raises InputError if a tensor
    is missing or misshapen.
    """
    network = _filled(arch, tensors, path, "", head=False)
    return TrainedEncoder(network, arch, EvaluationView(224, 256, mean, std), has_head=False)


def read_start_weights(path: str, arch: str, head: Mapping[str, Shape]) -> StartWeights:
    """Read the weights for ``--init-from``: the trained encoder, of which the trunk must be whole.

    ``head``: shapes of the run's ``fc.*`` tensors; a head that does not fit is left out. Raises
    InputError if the file has no whole encoder of this architecture.
    """
    loaded = load_checkpoint(path)
    state = loaded.get("state_dict", loaded)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    prefixes = ("module.encoder_q.", "encoder_q.", "")
    prefix = next((p for p in prefixes if f"{p}conv1.weight" in tensors), None)
    if prefix is None:
        raise InputError(
            f"{path} has no encoder to start from; first keys: {', '.join(list(tensors)[:4])}."
            " Pass a checkpoint of pretrain, of official MoCo, or of torchvision."
        )
    theirs = _without_prefix(tensors, prefix)
    trunk = {name: value for name, value in theirs.items() if not name.startswith("fc.")}
    _check_tensors(trunk, backbone_shapes(arch), path, arch, prefix)
    has_head = all(name in theirs and theirs[name].shape == head[name] for name in head)
    taken = trunk | ({name: theirs[name] for name in head} if has_head else {})
    stamp = "no stamp"
    if "format" in loaded or "arch" in loaded:
        kind, epoch = loaded.get("mechanism", "moco"), loaded.get("epoch")
        stamp = f"stamp: {kind} {loaded.get('arch')}, epoch {epoch}"
        if "pixels" in loaded:
            stamp += f", pixel mean {loaded['pixels']['mean']}"
    count = sum(not name.endswith(BATCH_COUNTER) for name in trunk)
    coverage = f"{count} of {count} trunk tensors, head {'too' if has_head else 'at random'}"
    fresh = "queue, optimiser and schedule are fresh"
    return StartWeights(taken, f"started from {path}: {coverage}; {stamp}; {fresh}")


@torch.no_grad()
def start_from(model: Any, weights: StartWeights) -> None:
    """Load weights into ``encoder_q``, and into ``encoder_k`` where there is one."""
    model.encoder_q.load_state_dict(model.encoder_q.state_dict() | weights.tensors)
    if hasattr(model, "encoder_k"):  # both encoders start equal
        model.encoder_k.load_state_dict(model.encoder_q.state_dict())


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], path: str, arch: str, prefix: str
) -> None:
    # BN's counters are optional: old files lack them, and evaluation does not read them.
    got = {n: tuple(t.shape) for n, t in tensors.items() if not n.endswith(BATCH_COUNTER)}
    differing = [n for n in sorted(expected.keys() | got.keys()) if expected.get(n) != got.get(n)]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} does not hold a whole {arch}: {len(differing)} of {len(expected)} tensors"
            f" differ, the first is {prefix}{name} (shape {got.get(name, 'absent')} in the file,"
            f" {expected.get(name, 'absent')} in a {arch}). Check MODEL.ARCH."
        )
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise InputError(
            f"{path}: {prefix}{broken[0]} holds values that are not finite: the training diverged."
            " Use an earlier checkpoint."
        )


def _filled(
    arch: str, tensors: Mapping[str, Tensor], path: str, prefix: str, *, head: bool = True
) -> nn.Module:
    last = tensors.get("fc.2.weight", tensors.get("fc.weight"))
    network = build_encoder(arch, num_classes=1 if last is None else len(last))
    if head and "fc.2.weight" in tensors:
        add_mlp_head(network)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    expected = {n: s for n, s in shapes.items() if not n.endswith(BATCH_COUNTER)}
    if not head:
        expected = {n: s for n, s in expected.items() if not n.startswith("fc.")}
    _check_tensors(tensors, expected, path, arch, prefix)
    network.load_state_dict(dict(tensors), strict=False)  # complete but for counters
    return network.eval().requires_grad_(False)


def _view(checkpoint: Mapping[str, Any]) -> EvaluationView:
    if "config" not in checkpoint:  # the official code's, or `convert --to moco` with a stamp
        stamp = checkpoint.get("moco_transfer", {})
        mean = stamp.get("pixel_mean") or IMAGENET_MEAN
        return EvaluationView(224, 256, tuple(mean), tuple(stamp.get("pixel_std") or IMAGENET_STD))
    data = yaml.safe_load(checkpoint["config"])["DATA"]
    size = data["IMAGE_SIZE"]
    resize = data["TEST_RESIZE"] or protocol_resize(size)
    return EvaluationView(size, resize, tuple(data["PIXEL_MEAN"]), tuple(data["PIXEL_STD"]))
