"""Which of Detectron2's config keys this engine honours, as ``implemented_keys.yaml`` lists."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ...config.schema_file import SEGMENTOR
from ...models import BLOCKS
from ...runtime.errors import InputError
from .layers import NORMS

FPN, DC5 = "build_resnet_fpn_backbone", "build_resnet_dc5_backbone"
DILATED = "build_resnet_dilated_backbone"
STANDARD_HEADS, RES5_HEADS_EXTRA_NORM = "StandardROIHeads", "Res5ROIHeadsExtraNorm"
POOLERS = {"ROIAlignV2": True, "ROIAlign": False}  # whether the pixel centres lie at .5

WAY_OUT = "Use --engine detectron2."

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_KNOWN: dict[str, Collection[Any]] = {"NORMS": NORMS, "DEPTHS": BLOCKS, "POOLERS": POOLERS}


def check_keys(
    values: Mapping[str, Any], defaults: Mapping[str, Any], *, of_a_run: bool = False
) -> None:
    """Refuse the first key with a value that this engine does not implement.

    ``values`` and Detectron2's ``defaults`` are flat: 'MODEL.FPN.FUSE_TYPE' -> 'sum'. ``of_a_run``
    checks the keys outside MODEL that training and evaluation read.

    Raises:
        InputError: Naming the key, its value and what is implemented.
    """
    if values.get("MODEL.DENSEPOSE_ON"):
        raise InputError(
            f"The 'torchvision' engine has no dense pose (MODEL.DENSEPOSE_ON True). {WAY_OUT}"
        )
    kind = "run" if of_a_run else "model"
    table = _TABLES[kind]
    if values["MODEL.META_ARCHITECTURE"] == SEGMENTOR:
        table = table | _TABLES[f"{kind}_of_segmentor"]
    for key, value in values.items():
        section, leaf = key.rpartition(".")[::2]
        is_free = leaf in _TABLES["free"].get(section, "").split()
        allowed = table.get(key)
        if isinstance(allowed, str):
            allowed = _KNOWN[allowed]
        if allowed is None and key.startswith("MODEL.") and not is_free and not of_a_run:
            allowed = (defaults.get(key),)
            if key.startswith(tuple(_TABLES["other_parts"])):
                continue
        plain = list(value) if isinstance(value, tuple) else value
        if allowed is not None and value not in allowed and plain not in allowed:
            raise refusal(key, value, allowed)


def refusal(key: str, value: Any, allowed: Collection[Any]) -> InputError:
    """Return the error for a value that only Detectron2 implements."""
    only = ", ".join(map(repr, allowed))
    return InputError(
        f"The 'torchvision' engine does not implement {key} {value!r} (only {only}). {WAY_OUT}"
    )
