"""Take a trained encoder out of a file: to compute features, or to start a run from it.

Any file is read that ``moco_transfer.convert`` reads: checkpoints of ``moco-transfer pretrain``,
official ones of facebookresearch/moco@7397dfe, torchvision's state dicts, and the other layouts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.architecture import named_architecture
from ..convert.channels import channels_of
from ..convert.coverage import check_source
from ..convert.formats import read_source
from ..convert.read import read_checkpoint
from ..convert.stamp import make_stamp
from ..convert.zoo import local_file
from ..data.views.labelled import EvaluationView, protocol_resize
from ..models import BANDS, ENCODERS, add_mlp_head, build_encoder, recognise
from ..runtime.errors import InputError
from ..runtime.text import carried_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder and what it expects; ``mechanism`` and ``epoch`` are empty where unknown.

    ``network``: normalised images (N, 3, H, W), RGB, or of other channels -> (N, C); on the CPU, in
    evaluation mode, without gradients. ``has_head``: whether the head came with it; otherwise
    ``fc`` must not be used.
    """

    network: nn.Module
    arch: str
    view: EvaluationView
    has_head: bool
    mechanism: str = ""
    epoch: int | None = None
    path: str = ""


def read_encoder(
    path: str, *, encoder: str = "q", arch: str | None = None, channels: int | None = None
) -> TrainedEncoder:
    """Read an encoder, of which every tensor but the head must be there.

    ``path``: a file, a name of published weights, or ``hf://USER/NAME[/FILE]``.
    ``encoder``: ``q`` for the one that was trained, ``k`` for its momentum copy. ``arch``: what it
    has to be; None for what the file names, or else what fits best. ``channels``: that it has to
    take, whose statistics need not be known; None for those that the file has.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is of no known layout, lacks the encoder or a tensor of it, holds values
            that are not finite, or expects BGR or unknown pixels.
    """
    content = read_checkpoint(local_file(path))
    source = read_source(content, encoder=encoder)
    named = str(content.top.get("arch"))
    if arch is None:
        recognised = recognise(source.state)
        arch = named if named in ENCODERS else named_architecture(content, recognised)
    found = channels_of(source)
    check_source(source, arch, path, found)
    if channels not in (None, found):
        raise InputError(
            f"{path} takes images of {found} channels, DATA.CHANNELS is {channels}. Change it with"
            f" moco-transfer convert --to torchvision --input-channels {channels}, from weights for"
            " RGB."
        )
    stamp = make_stamp(content, source, arch=arch, sha256="")
    if stamp["format"] is None and channels not in (None, 3):  # as `convert --input-channels` says
        stamp |= {"format": BANDS, "pixel_mean": [0.0] * found, "pixel_std": [1.0] * found}
    if stamp["format"] in (None, "BGR") or stamp["stride_in_1x1"] is not False:
        raise InputError(
            f"{path} ({source.title}) expects {stamp['format'] or 'unknown'} pixels and"
            f" STRIDE_IN_1X1 {stamp['stride_in_1x1']}; features need RGB and False. Use the"
            " checkpoint that it was made from."
        )
    # The layouts whose ``fc`` is the encoder's own.
    tensors = content.tensors if source.layout.format in ("moco", "torchvision") else {}
    start = f"{source.prefix}fc."
    head = {n.removeprefix(source.prefix): t for n, t in tensors.items() if n.startswith(start)}
    network, has_head = _filled(arch, source.state, head)
    view = EvaluationView(224, 256, tuple(stamp["pixel_mean"]), tuple(stamp["pixel_std"]))
    if str(content.top.get("format", "")).startswith("moco_transfer.pretrain/"):
        data = carried_config(content.top["config"], path)["DATA"]
        size = data["IMAGE_SIZE"]
        resize = data["TEST_RESIZE"] or protocol_resize(size)
        upright = data.get("EXIF", False)  # older checkpoints saw images as they are stored
        view = dataclasses.replace(view, size=size, resize=resize, upright=upright)
    mechanism, epoch = stamp["mechanism"] or "", stamp["epoch"]
    return TrainedEncoder(network, arch, view, has_head, mechanism, epoch, path)


@torch.no_grad()
def start_from(model: Any, encoder: TrainedEncoder) -> None:
    """Load an encoder into ``encoder_q``, and into ``encoder_k`` where there is one.

    The whole trunk is taken, the head only if that of ``model`` has the same shapes.
    """
    own, theirs = model.encoder_q.state_dict(), encoder.network.state_dict()
    heads = [
        {name: tensor.shape for name, tensor in state.items() if name.startswith("fc.")}
        for state in (own, theirs)
    ]
    takes_head = encoder.has_head and heads[0] == heads[1]
    taken = {n: t for n, t in theirs.items() if takes_head or not n.startswith("fc.")}
    model.encoder_q.load_state_dict(own | taken)
    if hasattr(model, "encoder_k"):  # both encoders start equal
        model.encoder_k.load_state_dict(model.encoder_q.state_dict())
    head = "too" if takes_head else "at random"
    logger.info("started from %s: whole trunk, head %s", encoder.path, head)


def _filled(
    arch: str, trunk: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> tuple[nn.Module, bool]:
    """Build an encoder with these tensors; return it and whether its head is among them."""
    last = head.get("fc.2.weight", head.get("fc.weight"))
    classes, channels = 1 if last is None else len(last), trunk["conv1.weight"].shape[1]
    network = build_encoder(arch, num_classes=classes, in_channels=channels)
    if "fc.2.weight" in head:
        add_mlp_head(network)
    expected = {name: t.shape for name, t in network.state_dict().items() if name.startswith("fc.")}
    has_head = {name: tensor.shape for name, tensor in head.items()} == expected
    # BN's counters are optional: old files lack them, and evaluation does not read them.
    network.load_state_dict({**trunk, **(head if has_head else {})}, strict=False)
    return network.eval().requires_grad_(False), has_head
