"""From a config to Detectron2's own config and its detector."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode as Detectron2Config
from detectron2.config import get_cfg
from detectron2.modeling import build_model as detectron2_model
from torch import nn

from moco_transfer.runtime.errors import InputError


def build_model(cfg: Any) -> nn.Module:
    """Return Detectron2's detector on the CPU, in training mode, with freshly drawn weights.

    Input and output are Detectron2's: items with ``instances`` in training, ``[{"instances":
    Instances}]`` at inference.
    """
    return detectron2_model(to_detectron2(cfg, "cpu")).train()


def to_detectron2(cfg: Any, device: str) -> Detectron2Config:
    """Return Detectron2's own config with our values, frozen.

    Args:
        cfg: From ``load_detection_config``.
        device: For MODEL.DEVICE, which has to exist: Detectron2 does not fall back to the CPU.

    Raises:
        InputError: If this version of Detectron2 does not know a key, or wants another type.
    """
    theirs = get_cfg()
    try:
        theirs.merge_from_other_cfg(cfg)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"Detectron2 does not take this config: {error}. Is its version another than the tested"
            " one (moco-transfer doctor)?"
        ) from error
    theirs.MODEL.DEVICE = device
    theirs.freeze()
    return theirs
