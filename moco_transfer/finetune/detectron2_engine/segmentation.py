"""The FCN of the paper's App. A.5 in Detectron2: a head and a backbone in its registries, batches
and inference.

The keys of the head in a state dict, its loss and its windows are those of the embedded engine; the
batches come from the same mapper, whose draws follow NumPy's global generator here.

Source:
    He et al. 2019, arXiv:1911.05722, App. A.5; see ``pixel_logits`` and
    ``data/batches/segmentation`` for what it leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fvcore.nn.weight_init as weight_init
import numpy as np
from detectron2.config import CfgNode as Detectron2Config
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_resnet_backbone,
)
from torch import Tensor, nn
from torch.nn import functional as F

from moco_transfer.config import flatten_config
from moco_transfer.config.schema_file import read_schema
from moco_transfer.data.batches.segmentation import SegmentationMapper
from moco_transfer.data.batches.transforms import TestMapper
from moco_transfer.runtime.errors import InputError

from ..pixel_logits import classes_of, enlarge, image_logits, pixel_loss


def add_segmentation_keys(cfg: Any) -> None:
    """Add the keys of semantic segmentation that Detectron2 lacks to a config of Detectron2."""
    for key, value in flatten_config(read_schema("segmentation_schema")).items():
        *sections, leaf = key.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, Detectron2Config())
        node[leaf] = value


@BACKBONE_REGISTRY.register()
def build_resnet_dilated_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """Build the trunk from MODEL.RESNETS; res5 of basic blocks may have RES5_DILATION 2 here, which
    Detectron2 has for bottlenecks alone.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH >= 50 or resnets.RES5_DILATION == 1:
        return build_resnet_backbone(cfg, input_shape)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.RES5_DILATION = 1
    trunk = build_resnet_backbone(plain, input_shape)
    for block in trunk.res5:
        block.stride = 1
        for conv in (block.conv1, block.conv2):
            conv.dilation = conv.padding = (2, 2)
        for conv in filter(None, (block.conv1, block.shortcut)):
            conv.stride = (1, 1)
    trunk._out_feature_strides["res5"] = trunk._out_feature_strides["res5"] // 2
    return trunk


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(nn.Module):
    """3x3 convolutions with norm and ReLU, ``conv1``, ``conv2``, …, and a 1x1 ``predictor``, on one
    feature.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        in_feature: str,
        num_classes: int,
        convs_dim: int,
        convs: tuple[int, int],
        norm: str,
        loss_weight: float,
        ignore_value: int,
    ) -> None:
        """Build; ``convs`` are the number of convolutions and their dilation."""
        super().__init__()
        self.in_feature, self.stride = in_feature, input_shape.stride
        self.loss_weight, self.ignore_value = loss_weight, ignore_value
        channels, (count, dilation) = input_shape.channels, convs
        for number in range(1, count + 1):
            conv = Conv2d(
                channels,
                convs_dim,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                bias=norm == "",
                norm=get_norm(norm, convs_dim),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(conv)
            self.add_module(f"conv{number}", conv)
            channels = convs_dim
        self.predictor = Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor; InputError if they do not fit."""
        head = cfg.MODEL.SEM_SEG_HEAD
        features = list(head.IN_FEATURES)
        if len(features) != 1 or features[0] not in input_shape:
            raise InputError(
                f"FCNHead reads one feature of {list(input_shape)}, got"
                f" MODEL.SEM_SEG_HEAD.IN_FEATURES {features}."
            )
        shape = input_shape[features[0]]
        if shape.stride != head.COMMON_STRIDE:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {head.COMMON_STRIDE}, expected"
                f" {shape.stride}, the stride of {features[0]}."
            )
        return {
            "input_shape": shape,
            "in_feature": features[0],
            "num_classes": head.NUM_CLASSES,
            "convs_dim": head.CONVS_DIM,
            "convs": (head.NUM_CONVS, head.DILATION),
            "norm": head.NORM,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (N, C, h, w)."""
        x = features[self.in_feature]
        for name, layer in self.named_children():
            if name != "predictor":
                x = layer(x)
        return self.predictor(x)

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return in training (None, losses), collective; in inference logits for each pixel, and
        for some behind the image, and {}.
        """
        logits = self.layers(features)
        if self.training:
            assert targets is not None
            loss = pixel_loss(logits, targets, stride=self.stride, ignored=self.ignore_value)
            return None, {"loss_sem_seg": loss * self.loss_weight}
        height, width = logits.shape[-2:]
        size = self.stride * height, self.stride * width
        return enlarge(logits.float(), size, stride=self.stride), {}


def segment(model: Any, batch: Sequence[dict], *, window: int, step: int) -> list[dict]:
    """Return {"sem_seg": int64 (height, width), classes} for each image, looked at whole or window
    by window, with Detectron2's SemanticSegmentor in inference.
    """
    head, outputs = model.sem_seg_head, []
    for record in batch:
        image = (record["image"].to(model.device) - model.pixel_mean) / model.pixel_std
        logits = image_logits(
            lambda part: head.layers(model.backbone(part)),
            image[None],
            stride=head.stride,
            window=window,
            step=step,
        )
        height, width = image.shape[-2:]
        size = record.get("height", height), record.get("width", width)
        outputs.append({"sem_seg": classes_of(logits.float(), size)})
    return outputs


@dataclass(frozen=True)
class _Drawing:
    """A mapper of ours, which draws from a generator, as Detectron2 calls its own."""

    mapper: SegmentationMapper

    def __call__(self, record: dict) -> dict:
        return self.mapper(record, np.random.default_rng(np.random.randint(2**31)))


def segmentation_mapper(cfg: Any, is_train: bool = True) -> Callable[[dict], dict]:
    """Return what makes the input of the model from a record of a ``semantic`` data set.

    Raises:
        InputError: If a size in the config is illegal.
    """
    inputs = cfg.INPUT
    if not is_train:
        return TestMapper(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, inputs.FORMAT)
    return _Drawing(
        SegmentationMapper(
            tuple(inputs.MIN_SIZE_TRAIN),
            inputs.MAX_SIZE_TRAIN,
            inputs.MIN_SIZE_TRAIN_SAMPLING,
            inputs.RANDOM_FLIP,
            inputs.FORMAT,
            scale=tuple(inputs.RANDOM_SCALE),
            crop=tuple(inputs.CROP.SIZE) if inputs.CROP.ENABLED else (),
            pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN),
        )
    )
