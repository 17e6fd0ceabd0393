"""A trained detector or segmenter that takes images.

Boxes are XYXY, px of the image turned upright as its EXIF orientation says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from ...config import load_detection_config, read_detection_config
from ...config.schema_file import SEGMENTOR
from ...data.batches.transforms import TestMapper
from ...data.images.decode import read_image
from ...runtime.checkpoint import CheckpointFolder
from ...runtime.device import best_device
from ...runtime.errors import InputError, MissingFileError
from ..handover import DETECTOR, coverage_gap, load_weights, read_weights, weights_coverage

logger = logging.getLogger(__name__)

_DEFAULT_THRESHOLD = 0.5
_EXPECTED = "expected the OUTPUT_DIR of moco-transfer train, or a checkpoint in it."


@dataclass(frozen=True)
class Detector:
    """A trained detector or segmenter that takes images; :func:`load_detector` makes one.

    ``mapper`` has the order of channels and the size that ``model`` takes; ``source`` is the
    checkpoint. A segmenter has no ``score_threshold``. ``keypoint_names`` and ``skeleton`` (pairs
    of indices) are those that the run recorded.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    mapper: TestMapper
    score_threshold: float | None
    device: torch.device
    source: str
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __call__(self, source: str | os.PathLike[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Return what is found in an image file, or in pixels RGB uint8 (H, W, 3).

        Returns:
            ``boxes`` float32 (N, 4) XYXY in px of the source, ``scores`` float32 (N,) 0-1
            descending, ``classes`` int64 (N,) indices into ``class_names``, and with a mask head
            ``masks`` bool (N, H, W), with a keypoint head ``keypoints`` float32 (N, K, 3): x, y in
            px of the source, and score. Of a segmenter ``sem_seg`` int64 (H, W) alone, indices into
            ``class_names``.

        Raises:
            InputError: If the file cannot be read, or the array is not RGB uint8.
        """
        pixels = source if isinstance(source, np.ndarray) else read_image(os.fspath(source), "RGB")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputError(
                f"A source must be RGB uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}."
            )
        height, width = pixels.shape[:2]
        ordered = pixels if self.mapper.image_format == "RGB" else pixels[:, :, ::-1]
        image = self.mapper.prepare(np.ascontiguousarray(ordered)).to(self.device)
        with torch.inference_mode():
            (output,) = self.model([{"image": image, "height": height, "width": width}])
        return {name: values.cpu().numpy() for name, values in output.items()}


def load_detector(
    path: str | os.PathLike[str],
    *,
    score_threshold: float | None = None,
    device: str = "auto",
    class_names: Sequence[str] | None = None,
    config_file: str | None = None,
) -> Detector:
    """Load a fine-tuned detector or segmenter for use on images; no code in its files is run.

    Args:
        path: OUTPUT_DIR of ``moco-transfer train`` or of Detectron2, or a checkpoint.
        score_threshold: Detections score more than this, 0-1; None for 0.5. Not for a segmenter.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        class_names: By default those that the run recorded.
        config_file: By default the config in the checkpoint, else config.yaml next to it.

    Raises:
        InputError: If it is no detector, its config is missing, or the two do not match, or a
            segmenter shall have a threshold.
    """
    from ..torchvision_engine.build import build_model
    from ..torchvision_engine.implemented_keys import WAY_OUT

    if score_threshold is not None and not 0 <= score_threshold < 1:
        raise InputError(
            f"The score threshold must be at least 0 and less than 1, got {score_threshold}."
        )
    chosen = best_device() if device == "auto" else torch.device(device)
    checkpoint = Path(path) if Path(path).is_file() else CheckpointFolder(Path(path)).last()
    if checkpoint is None:
        raise MissingFileError(
            f"{path} is no file, and no folder with last_checkpoint; {_EXPECTED}"
        )
    weights = read_weights(str(checkpoint))
    if weights.content is None or weights.kind != DETECTOR:
        raise InputError(f"{checkpoint} holds no detector; {_EXPECTED}")
    top = weights.content.top
    cfg = _config(checkpoint, top, config_file).clone()
    cfg.defrost()
    segments = cfg.MODEL.META_ARCHITECTURE == SEGMENTOR
    if segments and score_threshold is not None:
        raise InputError(
            f"{checkpoint} gives each pixel a class, without a score: leave out the threshold."
        )
    threshold = (
        None
        if segments
        else float(_DEFAULT_THRESHOLD if score_threshold is None else score_threshold)
    )
    if threshold is not None:
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    try:
        model = build_model(cfg)
    except InputError as error:
        raise InputError(
            f"{checkpoint}: {str(error).removesuffix(WAY_OUT).rstrip()} Only Detectron2 runs such a"
            " detector; train --eval-only --engine detectron2 writes its predictions on a data set."
        ) from error
    gap = coverage_gap(weights_coverage(model.state_dict(), weights), weights, "")
    if gap is not None:
        raise InputError(gap)
    load_weights(model, weights)
    inputs, heads = cfg.INPUT, cfg.MODEL.SEM_SEG_HEAD if segments else cfg.MODEL.ROI_HEADS
    names = class_names, top.get("class_names")
    return Detector(
        model=model.eval().to(chosen),
        class_names=_class_names(checkpoint, *names, heads.NUM_CLASSES),
        mapper=TestMapper(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, inputs.FORMAT),
        score_threshold=threshold,
        device=chosen,
        source=str(checkpoint),
        **_keypoints(
            top, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
        ),
    )


def _config(checkpoint: Path, top: Mapping[str, Any], config_file: str | None) -> CfgNode:
    sibling = checkpoint.parent / "config.yaml"
    if config_file is None and isinstance(top.get("config"), str):
        return read_detection_config(top["config"], str(checkpoint))
    if config_file is None and not sibling.is_file():
        raise InputError(
            f"{checkpoint} does not hold its config and there is no {sibling}. Name the config that"
            " it was trained with: --config-file FILE."
        )
    return load_detection_config(config_file or sibling)


def _class_names(
    checkpoint: Path, given: Sequence[str] | None, recorded: Any, count: int
) -> tuple[str, ...]:
    """Return the names that the user or the checkpoint gives, else numbers."""
    if given is not None and len(given) != count:
        raise InputError(f"{checkpoint} has {count} classes, but {len(given)} names are given.")
    for names in (given, recorded):
        if isinstance(names, (list, tuple)) and len(names) == count:
            return tuple(map(str, names))
    logger.warning("%s does not name its %d classes. Name them with --classes.", checkpoint, count)
    return tuple(f"class {index}" for index in range(count))


def _keypoints(recorded: Mapping[str, Any], count: int) -> dict[str, tuple]:
    """Return names and skeleton as a checkpoint records them, empty if they do not fit."""
    names, skeleton = (recorded.get(key) for key in ("keypoints", "skeleton"))
    if not isinstance(names, list) or len(names) != count or not isinstance(skeleton, list):
        return {}
    pairs = [line for line in skeleton if isinstance(line, list) and len(line) == 2]
    lines = tuple((a, b) for a, b in pairs if a in range(count) and b in range(count))
    return {"keypoint_names": tuple(map(str, names)), "skeleton": lines}
