"""A trained detector or segmenter as an ONNX model, checked against the original.

The network's layers are those of the engine. What lies between them (proposals, RoIAlign,
non-maximum suppression, pasting) is written again here, for one image of any size, without a
decision that a trace would freeze. ``check_onnx`` compares the results.

Shapes in this module:
    h, w: size of the image as given to the model, px    R: proposals    D: detections
    S: side of a predicted mask, in cells
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from ...runtime.errors import InputError
from .boxes import decode_boxes, is_larger_than
from .rcnn import GeneralizedRCNN
from .roi_heads import Res5RoIHeads
from .roi_pool import RoIPooler, assign_levels
from .segmentor import SemanticSegmentor

OPSET = 18
THRESHOLD = "score_threshold"  # an input that has a default
SAME = {"boxes": 0.5, "scores": 0.01}  # px, and of 1: how far the same detection may differ
_CHECKED = 50  # detections on each image of a check


class _OnImage(nn.Module):
    """What both networks share: ``image`` is float32 (3, h, w), 0-255, in the config's order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Return the backbone's features of the normalised, padded image."""
        normalised = (image - self.model.pixel_mean) / self.model.pixel_std
        step = self.model.backbone.size_divisibility
        if step > 1:
            below, right = (-side % step for side in image.shape[-2:])
            normalised = F.pad(normalised, (0, right, 0, below))
        return self.model.backbone(normalised[None])


class OnnxDetector(_OnImage):
    """A Faster or Mask R-CNN on one image."""

    model: GeneralizedRCNN
    score_threshold: Tensor

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__(model)
        threshold = model.roi_heads.box_predictor.settings.score_thresh_test
        self.register_buffer(THRESHOLD, torch.tensor(threshold))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (D, 4) XYXY in px of the image, scores (D,) descending, classes (D,) int64
        and, with a mask head, masks (D, h, w) bool.
        """
        height, width = image.shape[-2:]
        features, heads = self.features(image), self.model.roi_heads
        size = torch._shape_as_tensor(image)[[2, 1, 2, 1]].to(torch.float32)  # w, h, w, h
        proposals = self._proposals(features, size)
        levels = [features[name] for name in heads.in_features]
        logits, deltas = heads.box_predictor(self._box_features(levels, proposals))
        settings = heads.box_predictor.settings
        refined = decode_boxes(deltas, proposals, weights=settings.bbox_reg_weights)
        scores = F.softmax(logits, dim=1)[:, :-1]
        region, classes = torch.nonzero(scores > self.score_threshold, as_tuple=True)
        column = torch.zeros_like(classes) if settings.cls_agnostic_bbox_reg else classes
        boxes = _clip(refined.unflatten(1, (-1, 4))[region, column], size)
        scores = scores[region, classes]
        keep = _nms(boxes, scores, classes, size, settings.nms_thresh_test)
        keep = keep[: settings.detections_per_image] if settings.detections_per_image >= 0 else keep
        keep = keep[is_larger_than(boxes[keep], 0.0)]
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        if heads.mask_head is None:
            return boxes, scores, classes
        pooler = heads.mask_pooler
        pooled = (
            self._box_features(levels, boxes) if pooler is None else _pool(pooler, levels, boxes)
        )
        masks = heads.mask_head(pooled, classes).sigmoid()
        rows = _interpolation_weights(height, boxes[:, 1], boxes[:, 3], masks.shape[-2])
        columns = _interpolation_weights(width, boxes[:, 0], boxes[:, 2], masks.shape[-1])
        return boxes, scores, classes, rows @ masks @ columns.transpose(1, 2) >= 0.5

    def _proposals(self, features: Mapping[str, Tensor], size: Tensor) -> Tensor:
        """Return the proposals (R, 4), clipped to the image, as ``RPN`` makes them in inference."""
        rpn, settings = self.model.proposal_generator, self.model.proposal_generator.settings
        levels = [features[name] for name in rpn.in_features]
        boxes, scores, ids = [], [], []
        anchors = rpn.anchor_generator([level.shape[-2:] for level in levels])
        for number, (anchors_l, level) in enumerate(zip(anchors, levels, strict=True)):
            logits, deltas = (values[0] for values in rpn.rpn_head(level))
            count = torch._shape_as_tensor(logits)  # fewer anchors than asked for, on some levels
            wanted = torch.minimum(count, torch.tensor([settings.pre_nms_topk_test]))[0]
            best, index = logits.topk(wanted)
            weights = settings.bbox_reg_weights
            boxes.append(decode_boxes(deltas[index], anchors_l[index], weights=weights))
            scores.append(best)
            ids.append(torch.full_like(index, number))
        found, ranks, of_level = _clip(torch.cat(boxes), size), torch.cat(scores), torch.cat(ids)
        keep = is_larger_than(found, settings.min_size).nonzero().squeeze(1)
        found, ranks, of_level = found[keep], ranks[keep], of_level[keep]
        best = _nms(found, ranks, of_level, size, settings.nms_thresh)
        return found[best[: settings.post_nms_topk_test]]

    def _box_features(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return what the box predictor reads, as ``RoIHeads.box_features``."""
        heads: Any = self.model.roi_heads
        pooled = _pool(heads.box_pooler, levels, boxes)
        if isinstance(heads, Res5RoIHeads):
            return heads.res5(pooled)
        return torch.flatten(heads.box_head(pooled), 1)


class OnnxSegmenter(_OnImage):
    """A fully convolutional network on one image."""

    model: SemanticSegmentor

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the class of each pixel, int64 (h, w)."""
        stride = self.model.stride
        logits = self.model.sem_seg_head(self.features(image)[self.model.in_feature])
        spanned = [stride * (cells - 1) + 1 for cells in logits.shape[-2:]]
        fine = F.interpolate(logits, size=spanned, mode="bilinear", align_corners=True)
        # As pixel_logits.enlarge, but padded everywhere and cut: no decision on the size.
        padded = F.pad(fine, (0, stride, 0, stride), mode="replicate")
        return (padded[0, :, : image.shape[1], : image.shape[2]].argmax(dim=0),)


def _clip(boxes: Tensor, size: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), size)


def _nms(boxes: Tensor, scores: Tensor, ids: Tensor, size: Tensor, threshold: float) -> Tensor:
    """Return what survives among the boxes of each id, best first: each id's boxes are moved to a
    place of their own.
    """
    apart = ids.to(boxes.dtype)[:, None] * (size.max() + 1)
    return nms(boxes + apart, scores, threshold)


def _pool(pooler: RoIPooler, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return (R, C, P, P) as :class:`RoIPooler`, by ONNX's RoIAlign."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    if len(levels) == 1:
        return _align(levels[0], rois, pooler.grids[0])
    low = pooler.min_level
    of_level = assign_levels(boxes, min_level=low, max_level=pooler.max_level)
    order, pooled = [], []
    for number, (feature, grid) in enumerate(zip(levels, pooler.grids, strict=True)):
        index = (of_level == number).nonzero().squeeze(1)
        order.append(index)
        pooled.append(_align(feature, rois[index], grid))
    return torch.cat(pooled)[torch.cat(order).sort()[1]]


def _align(feature: Tensor, rois: Tensor, grid: Any) -> Tensor:
    how = {"sampling_ratio": grid.sampling_ratio, "aligned": grid.aligned}
    return roi_align(feature, rois, (grid.cells, grid.cells), spatial_scale=grid.scale, **how)


def _interpolation_weights(length: Any, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Return (D, length, cells), as ``mask_head._interpolation_weights`` for each box."""
    pixels = torch.arange(length, dtype=torch.float32) + 0.5
    position = (pixels - low[:, None]) / (high - low)[:, None] * cells - 0.5
    cell = torch.arange(cells, dtype=torch.float32)
    return (1 - (position[..., None] - cell).abs()).clamp(min=0)


def to_onnx(
    model: GeneralizedRCNN | SemanticSegmentor, example: Tensor, facts: Mapping[str, str]
) -> bytes:
    """Return a trained network, on the CPU, as an ONNX model with the given metadata.

    ``example``: an image float32 (3, h, w); images of any size can be given later.

    Raises:
        InputError: If the package onnx is missing, or the network has a keypoint head or sliding
            windows.
    """
    onnx = _package("onnx")
    outputs = ["boxes", "scores", "classes"]
    network: nn.Module
    if isinstance(model, SemanticSegmentor):
        if model.settings.window:
            raise InputError(
                f"TEST.SLIDING_WINDOW.SIZE is {model.settings.window}: the number of windows"
                " depends on the image, which ONNX cannot express. Train with 0, the whole image."
            )
        network, outputs = OnnxSegmenter(model), ["sem_seg"]
    else:
        if model.roi_heads.keypoint_head is not None:
            raise InputError("A detector with a keypoint head cannot be written as ONNX.")
        network = OnnxDetector(model)
        outputs += ["masks"] * (model.roi_heads.mask_head is not None)
    axes = {name: {0: "detections"} for name in outputs} | {"image": {1: "height", 2: "width"}}
    if "masks" in outputs:
        axes["masks"] = {0: "detections", 1: "height", 2: "width"}
    if "sem_seg" in outputs:
        axes["sem_seg"] = {0: "height", 1: "width"}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": outputs}
    how: dict[str, Any] = {"opset_version": OPSET, "dynamo": False, "dynamic_axes": axes}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, on what is constant here
        path = Path(folder) / "model.onnx"
        torch.onnx.export(network.eval(), (example,), str(path), **names, **how)
        exported = onnx.load(path)
    for key, value in facts.items():
        exported.metadata_props.add(key=key, value=value)
    if THRESHOLD in {constant.name for constant in exported.graph.initializer}:
        kind = onnx.helper.make_tensor_value_info(THRESHOLD, onnx.TensorProto.FLOAT, [])
        exported.graph.input.append(kind)
    onnx.checker.check_model(exported, full_check=True)
    return bytes(exported.SerializeToString())


def check_onnx(
    content: bytes, model: GeneralizedRCNN | SemanticSegmentor, images: Sequence[Tensor]
) -> str:
    """Compare an ONNX model with the network, on the CPU, and return in words how they agree.

    Of a detector, the threshold is one that leaves at most 50 detections of an image. A detection
    is the same where its class is, box and score are within ``SAME``, and masks to 1 % of the area.

    Raises:
        InputError: If onnxruntime is missing, there is no detection at all, or more than 2 % of
            the detections or 0.01 % of the pixels' classes differ.
    """
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # not that the threshold is an input
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    count, missing, far = 0, 0, 0.0
    for image in images:
        inputs, expected = {"image": image.numpy()}, _expected(model, image)
        if "sem_seg" not in expected:
            inputs[THRESHOLD] = expected.pop(THRESHOLD).numpy()
        found = dict(zip(names, session.run(names, inputs), strict=True))
        found = {name: torch.from_numpy(values) for name, values in found.items()}
        if "sem_seg" in expected:
            count += expected["sem_seg"].numel()
            missing += int((found["sem_seg"] != expected["sem_seg"]).sum())
        else:
            same = [_same(index, expected, found) for index in range(len(expected["boxes"]))]
            count, missing = count + len(same), missing + same.count(None)
            far = max([far, *(each for each in same if each is not None)])
    what = "pixels" if "sem_seg" in names else "detections"
    if not count or missing > (0.0001 if what == "pixels" else 0.02) * count:
        raise InputError(
            f"onnxruntime finds {missing} of {count} {what} otherwise than the network does."
        )
    agree = f"{count - missing} of {count} {what} on {len(images)} images agree"
    return agree + (f", boxes within {far:.4f} px" if what == "detections" else "")


def _expected(model: Any, image: Tensor) -> dict[str, Tensor]:
    """Return what the network finds, and of a detector the threshold that was used."""
    with torch.inference_mode():
        if isinstance(model, SemanticSegmentor):
            return model([{"image": image}])[0]
        predictor = model.roi_heads.box_predictor
        settings = predictor.settings
        try:
            predictor.settings = dataclasses.replace(settings, score_thresh_test=0.0)
            scores = model([{"image": image}])[0]["scores"]
            between = scores[: _CHECKED + 1][-2:].mean()
            threshold = between if len(scores) > 1 else torch.zeros(())
            predictor.settings = dataclasses.replace(settings, score_thresh_test=float(threshold))
            return model([{"image": image}])[0] | {THRESHOLD: threshold}
        finally:
            predictor.settings = settings


def _same(index: int, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float | None:
    """Return how far the closest box of the same detection is, px; None where there is none."""
    far = (found["boxes"] - expected["boxes"][index]).abs().amax(dim=1)
    same = (found["classes"] == expected["classes"][index]) & (far <= SAME["boxes"])
    same &= (found["scores"] - expected["scores"][index]).abs() <= SAME["scores"]
    if "masks" in expected:
        mask = expected["masks"][index]
        differ = (found["masks"] ^ mask).flatten(1).sum(dim=1)
        same &= differ <= 0.01 * mask.sum() + 1
    return float(far[same].min()) if same.any() else None


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise InputError(
            f"The package {name} is not installed. Install it: pip install 'moco-transfer[onnx]'."
        ) from error
