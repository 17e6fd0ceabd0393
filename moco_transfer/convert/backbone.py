"""Hand a converted backbone to fine-tuning: arrays under Detectron2's names, with their stamp."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..models.resnets import recognise
from ..runtime.errors import InputError
from ..runtime.files import sha256_of
from .coverage import check_source
from .formats import Source, find_prefixes, read_source
from .hub import SCHEME
from .key_maps import detectron2_name
from .read import Content, read_checkpoint
from .stamp import make_stamp, read_stamp
from .write import as_array
from .zoo import local_file, published

_DETECTOR_PARTS = ("roi_heads.", "proposal_generator.", "backbone.fpn_", "head.", "sem_seg_head.")


@dataclass(frozen=True)
class BackboneWeights:
    """The backbone in a Detectron2 file."""

    arrays: dict[str, np.ndarray]  # Detectron2's name without ``backbone.bottom_up.`` -> array
    stamp: dict[str, Any] | None  # of its origin; None in a file that this program did not write
    sha256: str
    kind: str  # backbone, or detector when the file holds a whole fine-tuned detector
    # The detector's, under its keys.
    state_dict: dict[str, np.ndarray] = field(default_factory=dict)
    arch: str = ""  # the architecture that agrees best with the arrays
    top: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the file's outermost dict


def load_backbone(path: str | os.PathLike[str]) -> BackboneWeights:
    """Read the backbone of a Detectron2 ``.pkl`` or ``.pth``; no code in the file is run.

    The caller checks the coverage, because it knows which stages it needs. A name of
    :mod:`moco_transfer.convert.zoo` or an address on the Hub is converted here, with every tensor
    accounted for.
    MissingFileError if there is no such file; InputError if it is no checkpoint, is damaged, or is
    in another layout than Detectron2's.
    """
    file = local_file(path)
    content = read_checkpoint(file)
    sha256 = sha256_of(file)
    namings = {naming for naming, _ in find_prefixes(content.tensors)}
    if "detectron2" in namings or not namings:
        source = read_source(content, source_format="detectron2")
        state_dict, stamp = _detector(content), read_stamp(content)
        arch = recognise(source.state)
    else:
        source = read_source(content)
        if published(os.fspath(path)) is None and not os.fspath(path).startswith(SCHEME):
            raise InputError(
                f"{file} is a checkpoint in the layout of {source.title} (keys {source.prefix}…),"
                f" expected Detectron2's names; convert it first: moco-transfer convert {file}"
                " backbone.pkl"
            )
        state_dict, arch = {}, recognise(source.state)
        check_source(source, arch, file)
        stamp = make_stamp(content, source, arch=arch, sha256=sha256)
    kind = "detector" if state_dict else "backbone"
    return BackboneWeights(_arrays(source), stamp, sha256, kind, state_dict, arch, top=content.top)


def _arrays(source: Source) -> dict[str, np.ndarray]:
    arrays = {detectron2_name(name) or name: as_array(t) for name, t in source.state.items()}
    # Unknown names stay, so that the caller's coverage reports them as unused.
    return arrays | {n.removeprefix(source.prefix): np.empty(0, np.float32) for n in source.unknown}


def _detector(content: Content) -> dict[str, np.ndarray]:
    """Return the detector's own keys -> array, or nothing when the file holds a backbone alone."""
    prefix = "model." if any(name.startswith("model.") for name in content.tensors) else ""
    own = {n.removeprefix(prefix): t for n, t in content.tensors.items() if n.startswith(prefix)}
    is_detector = any(name.startswith(_DETECTOR_PARTS) for name in own)
    return {name: as_array(tensor) for name, tensor in own.items()} if is_detector else {}
