"""Hand a converted backbone to fine-tuning: arrays under Detectron2's names, with their stamp, or a
refusal.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moco_transfer.models import recognise
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.files import sha256_of

from .convert import check_source
from .formats import Source, find_prefixes, read_source
from .key_maps import detectron2_name
from .read import Content, read_checkpoint
from .stamp import make_stamp, read_stamp
from .write import as_array
from .zoo import local_file, published

_DETECTOR_PARTS = ("roi_heads.", "proposal_generator.", "backbone.fpn_", "head.", "sem_seg_head.")


@dataclass(frozen=True)
class BackboneWeights:
    """The backbone in a Detectron2 file.

    Attributes:
        arrays: Detectron2's name without ``backbone.bottom_up.`` (``stem.conv1.weight``,
            ``res2.0.conv1.norm.running_var``) -> array, BN's ``num_batches_tracked`` included when
            the file has it.
        stamp: What the file says about its origin; None in a file that this program did not write.
        sha256: Of the file, 64 hexadecimal digits.
        kind: "backbone", or "detector" when the file holds a whole fine-tuned detector.
        state_dict: The detector's own keys -> array; empty for a backbone.
        arch: The architecture that agrees best with the arrays.
    """

    arrays: dict[str, np.ndarray]
    stamp: dict[str, Any] | None
    sha256: str
    kind: str
    state_dict: dict[str, np.ndarray] = field(default_factory=dict)
    arch: str = ""


def load_backbone(path: str | os.PathLike[str]) -> BackboneWeights:
    """Read the backbone of a Detectron2 ``.pkl`` or ``.pth``; no code in the file is run.

    Whether every tensor is there is for the caller to ask with
    :func:`moco_transfer.convert.coverage`: only the caller knows which of the backbone's stages it
    needs.

    Args:
        path: A file that ``moco-transfer convert`` wrote, Detectron2's own, or the checkpoint of a
            fine-tuned detector. Also a name of :mod:`moco_transfer.convert.zoo`, which is converted
            on the way, with every tensor accounted for.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no checkpoint, is damaged, or is in another layout than Detectron2's.
    """
    file = local_file(path)
    content = read_checkpoint(file)
    sha256 = sha256_of(file)
    if published(os.fspath(path)) is not None and not _has_detectron2_names(content):
        source = read_source(content)
        arch = recognise(source.state)
        check_source(source, arch, file)
        return BackboneWeights(
            _arrays(source),
            make_stamp(content, source, arch=arch, sha256=sha256),
            sha256,
            "backbone",
            {},
            arch,
        )
    _refuse_other_layouts(content)
    source = read_source(content, source_format="detectron2")
    state_dict = _detector(content)
    return BackboneWeights(
        arrays=_arrays(source),
        stamp=read_stamp(content),
        sha256=sha256,
        kind="detector" if state_dict else "backbone",
        state_dict=state_dict,
        arch=recognise(source.state),
    )


def _has_detectron2_names(content: Content) -> bool:
    return any(naming == "detectron2" for naming, _ in find_prefixes(content.tensors))


def _refuse_other_layouts(content: Content) -> None:
    if find_prefixes(content.tensors) and not _has_detectron2_names(content):
        source = read_source(content)
        raise InputError(
            f"{content.path} is a checkpoint in the layout of {source.title} (keys"
            f" {source.prefix}…), expected Detectron2's names; convert it first: moco-transfer"
            f" convert {content.path} backbone.pkl"
        )


def _arrays(source: Source) -> dict[str, np.ndarray]:
    arrays = {detectron2_name(name): as_array(tensor) for name, tensor in source.state.items()}
    # What is under the prefix without being known stays, so that the caller's coverage reports it
    # as unused.
    arrays.update({name[len(source.prefix) :]: np.empty(0, np.float32) for name in source.unknown})
    return arrays


def _detector(content: Content) -> dict[str, np.ndarray]:
    """Return the detector's own keys -> array, or nothing when the file holds a backbone alone."""
    prefix = "model." if any(name.startswith("model.") for name in content.tensors) else ""
    state = {
        name[len(prefix) :]: tensor
        for name, tensor in content.tensors.items()
        if name.startswith(prefix)
    }
    if not any(name.startswith(_DETECTOR_PARTS) for name in state):
        return {}
    return {name: as_array(tensor) for name, tensor in state.items()}
