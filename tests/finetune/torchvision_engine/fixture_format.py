"""The numbers of an engine that the parity tests compare, and how Detectron2's lie in
``fixtures/*.npz``. Imports no Detectron2.

A fixture holds boxes, scores, classes, masks and keypoints of every image one after the other, with
their counts, and for each batch the losses, the norm of every gradient and a digest of every BN
statistic after the step. Arrays by name would be mostly their own headers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import numpy as np
import torch

_PER_PROPOSAL, _PER_DETECTION = ("proposals", "logits"), ("boxes", "scores", "classes")


def summarise(model: torch.nn.Module, losses: dict[str, torch.Tensor]) -> dict[str, dict]:
    """Return what a training step of either engine came to: losses, the norm of every gradient,
    every BN statistic after it.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "gradient_norms": {name: float(grad.double().norm()) for name, grad in gradients.items()},
        "statistics": {
            name: v.double().clone()
            for name, v in model.state_dict().items()
            if "running_" in name or "num_batches" in name
        },
    }


def digest(name: str, values: torch.Tensor) -> list[float]:
    """Return mean, root mean square, smallest, largest, and the sum of the values with drawn signs,
    which sees their order.
    """
    values = values.double().flatten()
    signs = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).choice(
        [-1.0, 1.0], len(values)
    )
    signed = float(values @ torch.from_numpy(signs)) / len(values) ** 0.5
    return [
        float(values.mean()),
        float(values.square().mean().sqrt()),
        float(values.min()),
        float(values.max()),
        signed,
    ]


def pack(
    outputs: list[dict[str, torch.Tensor]], steps: list[dict[str, dict]]
) -> dict[str, np.ndarray]:
    """Return the arrays of a fixture: of the images' outputs, and of the training steps, each on
    one batch.
    """
    arrays = {
        name: torch.cat([output[name] for output in outputs]).numpy()
        for name in (*_PER_PROPOSAL, *_PER_DETECTION)
    }
    arrays["classes"] = arrays["classes"].astype(np.int8)
    arrays["counts"] = np.array(
        [[len(output["proposals"]), len(output["boxes"])] for output in outputs], np.int32
    )
    if "masks" in outputs[0]:
        arrays["mask_sizes"] = np.array([output["masks"].shape[1:] for output in outputs], np.int32)
        arrays["masks"] = np.packbits(
            torch.cat([output["masks"].flatten() for output in outputs]).numpy()
        )
    if "keypoints" in outputs[0]:
        keypoints = torch.cat([output["keypoints"] for output in outputs])
        arrays["keypoints"] = keypoints.float().numpy()
    names = {kind: sorted(steps[0][kind]) for kind in ("losses", "gradient_norms", "statistics")}
    arrays["names"] = np.array(json.dumps(names))
    arrays["losses"] = np.array(
        [[step["losses"][name] for name in names["losses"]] for step in steps]
    )
    norms = [[step["gradient_norms"][name] for name in names["gradient_norms"]] for step in steps]
    arrays["gradient_norms"] = np.array(norms, np.float32)
    digests = [
        [digest(name, step["statistics"][name]) for name in names["statistics"]] for step in steps
    ]
    arrays["statistics"] = np.array(digests, np.float32)
    return arrays


def unpack_outputs(fixture: Mapping[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Return every image's outputs."""
    counts = fixture["counts"].T.tolist()
    split = {name: torch.from_numpy(fixture[name]).split(counts[0]) for name in _PER_PROPOSAL}
    split |= {name: torch.from_numpy(fixture[name]).split(counts[1]) for name in _PER_DETECTION}
    if "keypoints" in fixture:
        split["keypoints"] = torch.from_numpy(fixture["keypoints"]).split(counts[1])
    if "masks" in fixture:
        shapes = [
            (count, *size)
            for count, size in zip(counts[1], fixture["mask_sizes"].tolist(), strict=True)
        ]
        pixels = [int(np.prod(shape)) for shape in shapes]
        bits = torch.from_numpy(np.unpackbits(fixture["masks"])[: sum(pixels)].astype(bool)).split(
            pixels
        )
        split["masks"] = [mask.reshape(shape) for mask, shape in zip(bits, shapes, strict=True)]
    return [
        {name: parts[index] for name, parts in split.items()} for index in range(len(counts[0]))
    ]


def unpack_step(fixture: Mapping[str, np.ndarray], batch: int) -> dict[str, dict]:
    """Return the numbers of one training step: those of ``summarise``, with a digest in place of
    each BN statistic.
    """
    names = json.loads(str(fixture["names"]))
    return {
        kind: dict(zip(names[kind], fixture[kind][batch].tolist(), strict=True)) for kind in names
    }
