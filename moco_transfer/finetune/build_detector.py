"""From the folder of a run, or a checkpoint, to a detector that takes images."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..config import load_detection_config, read_detection_config
from ..data.annotations.catalog import get_dataset
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.errors import InputError, MissingFileError
from .handover import load_detector_state, read_detector
from .predict import Detector
from .torchvision_engine.build import build_model
from .torchvision_engine.implemented_keys import WAY_OUT

logger = logging.getLogger(__name__)


def load_detector(
    path: str | os.PathLike[str],
    *,
    score_threshold: float = 0.5,
    device: str = "auto",
    class_names: Sequence[str] | None = None,
    config_file: str | None = None,
) -> Detector:
    """Load a fine-tuned detector for use on images; no code in its files is run.

    Args:
        path: OUTPUT_DIR of ``moco-transfer train`` (its newest checkpoint is taken), or a
            checkpoint. Detectron2's own run folders and checkpoints work as well.
        score_threshold: Detections score more than this, 0-1.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        class_names: Names in the order of the class indices; by default those that the run
            recorded.
        config_file: By default the config in the checkpoint, else config.yaml beside it.

    Returns:
        The detector; call it with a file name or RGB pixels.

    Raises:
        MissingFileError: If there is no such folder or file.
        InputError: If it is no detector, its config is not to be had, or the two do not fit
            together.
    """
    if not 0 <= score_threshold < 1:
        raise InputError(
            f"The score threshold must be at least 0 and less than 1, got {score_threshold}."
        )
    checkpoint = _find_checkpoint(Path(path))
    state, top = read_detector(str(checkpoint))
    cfg = _config(checkpoint, top, config_file).clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
    cfg.freeze()
    try:
        model = build_model(cfg)
    except InputError as error:  # predict has one engine, so the way out of a training is none here
        reason = str(error).removesuffix(WAY_OUT).rstrip()
        raise InputError(
            f"{checkpoint} cannot be used for images here: {reason} Only Detectron2 runs such a"
            " detector, e.g. its demo.py with the config.yaml and the checkpoint; train"
            " --eval-only --engine detectron2 writes its predictions on a data set."
        ) from error
    load_detector_state(model, state, str(checkpoint))
    chosen = (
        torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device == "auto"
        else torch.device(device)
    )
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError("Device 'cuda' is asked for, but this PyTorch sees none. Use cpu or auto.")
    return Detector(
        model=model.eval().to(chosen),
        class_names=_class_names(cfg, checkpoint, top, class_names),
        image_format=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        score_threshold=score_threshold,
        device=chosen,
        source=str(checkpoint),
    )


def _find_checkpoint(path: Path) -> Path:
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist; expected the OUTPUT_DIR of moco-transfer train, or a"
            " checkpoint in it."
        )
    if path.is_file():
        return path
    last = CheckpointFolder(path).last()
    if last is None:
        raise InputError(
            f"The folder {path} has no last_checkpoint; expected the OUTPUT_DIR of moco-transfer"
            " train, or the path of a checkpoint."
        )
    return last


def _config(checkpoint: Path, top: Mapping[str, Any], config_file: str | None) -> CfgNode:
    beside = checkpoint.parent / "config.yaml"
    if config_file is not None:
        return load_detection_config(config_file)
    if isinstance(top.get("config"), str):
        return read_detection_config(top["config"], str(checkpoint))
    if beside.is_file():
        return load_detection_config(beside)
    raise InputError(
        f"{checkpoint} does not hold its config and there is no {beside}. Name the config that it"
        " was trained with: --config-file FILE."
    )


def _class_names(
    cfg: CfgNode, checkpoint: Path, top: Mapping[str, Any], given: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names given, those in the checkpoint, in results.json beside it, of its data set;
    numbers where there are none.
    """
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if given is not None:
        if len(given) != count:
            raise InputError(
                f"{checkpoint} has {count} classes, but {len(given)} names are given:"
                f" {', '.join(given[:10])}."
            )
        return tuple(given)
    for source in (
        lambda: top.get("class_names"),
        lambda: _recorded_names(checkpoint.parent),
        lambda: _dataset_names(cfg),
    ):
        names = source()
        if isinstance(names, (list, tuple)) and len(names) == count:
            return tuple(map(str, names))
    logger.warning(
        "%s does not say what its %d classes are called; they are numbered. Name them with"
        " --classes.",
        checkpoint,
        count,
    )
    return tuple(f"class {index}" for index in range(count))


def _recorded_names(folder: Path) -> Any:
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))["dataset"][
            "classes"
        ]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _dataset_names(cfg: CfgNode) -> tuple[str, ...] | None:
    try:
        return get_dataset(cfg.DATASETS.TRAIN[0]).class_names
    except (InputError, IndexError):  # not registered here, or its files are elsewhere
        return None
