"""From a config with Detectron2's keys to a model, an optimizer and a learning rate.

Nothing else in this package reads a config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from moco_transfer.config.detection_schema import DETECTION_DEFAULTS
from moco_transfer.finetune.torchvision_engine import implemented_keys as keys
from moco_transfer.finetune.torchvision_engine.anchors import AnchorGenerator
from moco_transfer.finetune.torchvision_engine.box_head import BoxHead, BoxPredictor
from moco_transfer.finetune.torchvision_engine.fpn import FPN, DilatedC5
from moco_transfer.finetune.torchvision_engine.mask_head import MaskHead
from moco_transfer.finetune.torchvision_engine.rcnn import GeneralizedRCNN
from moco_transfer.finetune.torchvision_engine.res5_head import Res5RoIHeads, make_res5
from moco_transfer.finetune.torchvision_engine.resnet import STAGE_NAMES, ResNet, ResNetShape
from moco_transfer.finetune.torchvision_engine.roi_heads import StandardRoIHeads
from moco_transfer.finetune.torchvision_engine.roi_pooling import RoIPooler
from moco_transfer.finetune.torchvision_engine.roi_sampling import RegionSampler
from moco_transfer.finetune.torchvision_engine.rpn import RPN, ProposalLimits, RPNHead
from moco_transfer.finetune.torchvision_engine.solver import (
    LearningRate,
    make_sgd,
    parameter_groups,
)
from moco_transfer.runtime.errors import InputError


def build_model(cfg: CfgNode) -> GeneralizedRCNN:
    """Return the detector that a config describes, on the CPU, in training mode, with freshly drawn
    weights.

    Args:
        cfg: With Detectron2's keys (``moco_transfer.config.load_detection_config``, or Detectron2's
            own).

    Raises:
        InputError: If the config asks for something that this engine does not implement, or for
            parts that do not fit together.
    """
    check_config(cfg)
    backbone = _backbone(cfg)
    model = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=_rpn(cfg, backbone),
        roi_heads=_roi_heads(cfg, backbone),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    # The faster layout of convolutions on a CPU, and on a GPU's tensor cores; moving or loading the
    # model keeps it.
    on_cpu = cfg.MODEL.DEVICE == "cpu" or not torch.cuda.is_available()
    return (
        model.to(memory_format=torch.channels_last) if on_cpu or cfg.SOLVER.AMP.ENABLED else model
    )


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.SGD:
    """Return SGD on the model's trainable parameters, as SOLVER describes it, at the learning rate
    SOLVER.BASE_LR.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
    )
    return make_sgd(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


def build_learning_rate(cfg: CfgNode) -> LearningRate:
    """Return the learning rate as a function of the iteration, as SOLVER describes it."""
    solver = cfg.SOLVER
    return LearningRate(
        base_lr=solver.BASE_LR,
        max_iter=solver.MAX_ITER,
        schedule=solver.LR_SCHEDULER_NAME,
        steps=tuple(solver.STEPS),
        gamma=solver.GAMMA,
        end_lr=solver.BASE_LR_END,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
        rescale_interval=solver.RESCALE_INTERVAL,
    )


def check_config(cfg: CfgNode) -> None:
    """Refuse a config that this engine cannot honour, before anything is built.

    Raises:
        InputError: Naming the key, its value and what is implemented.
    """
    defaults = dict(_leaves(DETECTION_DEFAULTS))
    for key, value in _leaves(cfg):
        if key.startswith("MODEL.") or key in keys.LIMITED:
            keys.check_key(key, value, defaults.get(key))
    resnets, heads, backbone = cfg.MODEL.RESNETS, cfg.MODEL.ROI_HEADS, cfg.MODEL.BACKBONE.NAME
    if resnets.DEPTH < 50:
        for key, value, needed in (
            ("RES2_OUT_CHANNELS", resnets.RES2_OUT_CHANNELS, 64),
            ("RES5_DILATION", resnets.RES5_DILATION, 1),
            ("NUM_GROUPS", resnets.NUM_GROUPS, 1),
        ):
            _require(
                value == needed,
                f"MODEL.RESNETS.DEPTH {resnets.DEPTH} needs {key} {needed}, got {value}",
            )
    unknown = set(resnets.OUT_FEATURES) - set(STAGE_NAMES)
    if unknown or not resnets.OUT_FEATURES:
        raise keys.refusal("MODEL.RESNETS.OUT_FEATURES", list(resnets.OUT_FEATURES), STAGE_NAMES)
    if backbone == keys.FPN:
        levels = [
            STAGE_NAMES.index(name) for name in cfg.MODEL.FPN.IN_FEATURES if name in STAGE_NAMES
        ]
        consecutive = bool(levels) and levels == list(range(levels[0], levels[-1] + 1))
        _require(
            consecutive and set(cfg.MODEL.FPN.IN_FEATURES) <= set(resnets.OUT_FEATURES),
            f"MODEL.FPN.IN_FEATURES {list(cfg.MODEL.FPN.IN_FEATURES)} must be consecutive stages"
            " among OUT_FEATURES",
        )
    if backbone == keys.DC5:
        dilated = list(resnets.OUT_FEATURES) == ["res5"] and resnets.RES5_DILATION == 2
        _require(
            dilated,
            f"MODEL.BACKBONE.NAME {backbone!r} needs RESNETS.OUT_FEATURES ['res5'] and"
            " RES5_DILATION 2",
        )
    if heads.NAME == keys.STANDARD_HEADS:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        _require(
            box_head.NAME != "",
            "MODEL.ROI_HEADS.NAME 'StandardROIHeads' needs ROI_BOX_HEAD.NAME 'FastRCNNConvFCHead'",
        )
        _require(
            box_head.NUM_FC + box_head.NUM_CONV > 0,
            "MODEL.ROI_BOX_HEAD has no layer: NUM_FC and NUM_CONV are 0",
        )
    else:
        _require(
            len(heads.IN_FEATURES) == 1,
            f"MODEL.ROI_HEADS.NAME {heads.NAME!r} reads one feature, got {heads.IN_FEATURES}",
        )


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(f"{sentence}.")


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _resnet_shape(cfg: CfgNode) -> ResNetShape:
    resnets = cfg.MODEL.RESNETS
    return ResNetShape(
        depth=resnets.DEPTH,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
    )


def _backbone(cfg: CfgNode) -> nn.Module:
    trunk = ResNet(
        _resnet_shape(cfg),
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        res5_dilation=cfg.MODEL.RESNETS.RES5_DILATION,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    if cfg.MODEL.BACKBONE.NAME == keys.FPN:
        fpn = cfg.MODEL.FPN
        return FPN(trunk, in_features=fpn.IN_FEATURES, out_channels=fpn.OUT_CHANNELS, norm=fpn.NORM)
    if cfg.MODEL.BACKBONE.NAME == keys.DC5:
        return DilatedC5(trunk, norm=cfg.MODEL.RESNETS.NORM)
    return trunk


def _rpn(cfg: CfgNode, backbone: nn.Module) -> RPN:
    rpn, anchors = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR
    _require_features("MODEL.RPN.IN_FEATURES", rpn.IN_FEATURES, backbone)
    levels = len(rpn.IN_FEATURES)
    for key, values in (("SIZES", anchors.SIZES), ("ASPECT_RATIOS", anchors.ASPECT_RATIOS)):
        _require(
            len(values) in (1, levels) and len({len(v) for v in values}) == 1,
            f"MODEL.ANCHOR_GENERATOR.{key} {values} must hold one list, or one of equal length for"
            f" each of the {levels} levels",
        )
    generator = AnchorGenerator(
        sizes=anchors.SIZES,
        aspect_ratios=anchors.ASPECT_RATIOS,
        strides=[backbone.strides[name] for name in rpn.IN_FEATURES],
        offset=anchors.OFFSET,
    )
    channels = backbone.channels[rpn.IN_FEATURES[0]]
    return RPN(
        in_features=rpn.IN_FEATURES,
        head=RPNHead(channels, generator.num_anchors, conv_channels=rpn.CONV_DIMS),
        anchor_generator=generator,
        train_limits=ProposalLimits(rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN),
        test_limits=ProposalLimits(rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST),
        nms_threshold=rpn.NMS_THRESH,
        min_box_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        iou_thresholds=rpn.IOU_THRESHOLDS,
        iou_labels=rpn.IOU_LABELS,
        anchors_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        boundary_threshold=rpn.BOUNDARY_THRESH,
        delta_weights=rpn.BBOX_REG_WEIGHTS,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
        cls_loss_weight=rpn.LOSS_WEIGHT,
        loc_loss_weight=rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
    )


def _roi_heads(cfg: CfgNode, backbone: nn.Module) -> nn.Module:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    _require_features("MODEL.ROI_HEADS.IN_FEATURES", heads.IN_FEATURES, backbone)
    channels = backbone.channels[heads.IN_FEATURES[0]]
    sampler = RegionSampler(
        num_classes=heads.NUM_CLASSES,
        regions_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        iou_thresholds=heads.IOU_THRESHOLDS,
        iou_labels=heads.IOU_LABELS,
        append_truth=heads.PROPOSAL_APPEND_GT,
    )
    box_pooler = _pooler(box, backbone, heads.IN_FEATURES)
    if heads.NAME != keys.STANDARD_HEADS:
        shape = _resnet_shape(cfg)
        channels = shape.channels("res5")
        return Res5RoIHeads(
            in_feature=heads.IN_FEATURES[0],
            sampler=sampler,
            pooler=box_pooler,
            res5=make_res5(shape, extra_norm=heads.NAME == keys.RES5_HEADS_EXTRA_NORM),
            box_predictor=_box_predictor(cfg, channels),
            mask_head=_mask_head(cfg, channels),
        )
    box_head = BoxHead(
        channels,
        box.POOLER_RESOLUTION,
        conv_channels=[box.CONV_DIM] * box.NUM_CONV,
        fc_channels=[box.FC_DIM] * box.NUM_FC,
        norm=box.NORM,
    )
    return StandardRoIHeads(
        in_features=heads.IN_FEATURES,
        sampler=sampler,
        box_pooler=box_pooler,
        box_head=box_head,
        box_predictor=_box_predictor(cfg, box_head.out_channels),
        mask_pooler=(
            _pooler(cfg.MODEL.ROI_MASK_HEAD, backbone, heads.IN_FEATURES)
            if cfg.MODEL.MASK_ON
            else None
        ),
        mask_head=_mask_head(cfg, channels),
    )


def _box_predictor(cfg: CfgNode, in_channels: int) -> BoxPredictor:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    return BoxPredictor(
        in_channels,
        heads.NUM_CLASSES,
        class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
        delta_weights=box.BBOX_REG_WEIGHTS,
        smooth_l1_beta=box.SMOOTH_L1_BETA,
        box_loss_weight=box.BBOX_REG_LOSS_WEIGHT,
        score_threshold=heads.SCORE_THRESH_TEST,
        nms_threshold=heads.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def _mask_head(cfg: CfgNode, in_channels: int) -> MaskHead | None:
    mask = cfg.MODEL.ROI_MASK_HEAD
    if not cfg.MODEL.MASK_ON:
        return None
    return MaskHead(
        in_channels,
        cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        num_convs=mask.NUM_CONV,
        channels=mask.CONV_DIM,
        norm=mask.NORM,
        class_agnostic=mask.CLS_AGNOSTIC_MASK,
    )


def _pooler(part: CfgNode, backbone: nn.Module, in_features: list[str]) -> RoIPooler:
    return RoIPooler(
        resolution=part.POOLER_RESOLUTION,
        strides=[backbone.strides[name] for name in in_features],
        sampling_ratio=part.POOLER_SAMPLING_RATIO,
        aligned=keys.POOLERS[part.POOLER_TYPE],
    )


def _require_features(key: str, names: list[str], backbone: nn.Module) -> None:
    missing = [name for name in names if name not in backbone.channels]
    _require(
        bool(names) and not missing,
        f"{key} {list(names)} is not what the backbone returns: {', '.join(backbone.channels)}",
    )
    _require(
        len({backbone.channels[name] for name in names}) == 1,
        f"{key} {list(names)} must have equal numbers of channels",
    )
