"""From a trained detector or segmenter to an .onnx file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from ...runtime.files import atomic_write_bytes
from .detector import load_detector

_CHECK_SIZES = (240, 320), (333, 250)  # height, width, px, of the images of the check


def write_onnx(
    path: str | os.PathLike[str], dst: str | os.PathLike[str], *, verify: bool = True
) -> str:
    """Write a fine-tuned detector or segmenter as ONNX; return in words what the check found.

    Input ``image``: float32 (3, height, width), 0-255, resized as ``min_size`` and ``max_size`` of
    the metadata say, channels in the order of ``image_format``. ``score_threshold``, a number that
    need not be given (0.5). Outputs: ``boxes`` (D, 4) XYXY in px of that image, ``scores``,
    ``classes`` (indices into ``classes`` of the metadata, JSON) and ``masks`` bool, or of a
    segmenter ``sem_seg``.

    Args:
        path: What ``load_detector`` takes.
        dst: The file to write.
        verify: Compare with onnxruntime on two images of noise; DST is not written if they differ.

    Raises:
        InputError: If a package is missing, the file holds no detector, one that ONNX cannot
            express, or the results differ.
    """
    from ..torchvision_engine.onnx_export import check_onnx, to_onnx

    detector = load_detector(path, device="cpu")
    model = detector.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    noise = 255 * torch.rand(len(_CHECK_SIZES), 1, 3, 8, 10, generator=generator)
    images = [F.interpolate(n, size)[0] for n, size in zip(noise, _CHECK_SIZES, strict=True)]
    mapper = detector.mapper
    facts = {
        "classes": json.dumps(detector.class_names, ensure_ascii=False),
        "image_format": mapper.image_format,
        "min_size": str(mapper.min_size),
        "max_size": str(mapper.max_size),
        "source": Path(detector.source).name,
    }
    content = to_onnx(model, images[0], facts)
    checked = check_onnx(content, model, images) if verify else "not compared"
    atomic_write_bytes(dst, content)
    return checked
