"""From a config, which nothing else here reads, to the embedded engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from fvcore.common import param_scheduler as schedulers
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ...config import flatten_config
from ...config.schema_file import DETECTION_DEFAULTS, SEGMENTOR
from ...data.annotations.catalog import DetectionDataset
from ...data.batches.loader import category_repeat_factors, test_loader, train_loader
from ...data.batches.segmentation import SegmentationMapper
from ...data.batches.transforms import TestMapper, TrainMapper
from ...runtime.device import best_device, wants_pinned
from ...runtime.distributed import get_rank, get_world_size
from ...runtime.errors import InputError
from ...runtime.seed import derive_seed, seed_everything
from ..datasets import training_records
from ..engine import Batches, Engine
from ..pixel_logits import check_window
from . import implemented_keys as keys
from .backbones import FPN, STAGE_NAMES, Backbone, DilatedC5, ImageNetwork, ResNet, ResNetShape
from .box_head import BoxHead, BoxPredictor, BoxSettings
from .boxes import AnchorGenerator
from .keypoint_head import KeypointHead
from .mask_head import MaskHead
from .rcnn import GeneralizedRCNN
from .roi_heads import Res5RoIHeads, RoIHeads, StandardRoIHeads, make_res5
from .roi_pool import RoIPooler
from .rpn import RPN, RPNHead, RPNSettings
from .sampling import RegionSampler
from .segmentor import FCNHead, PixelSettings, SemanticSegmentor

_NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


class TorchvisionEngine(Engine):
    """The embedded engine; ``Engine`` documents the methods.

    Iterations and images are seeded by their place in the run, so that a resumed run equals an
    uninterrupted one bit for bit without saved random states.
    """

    name = "torchvision"

    @staticmethod
    def check(cfg: CfgNode) -> None:
        # Keys of the model are checked when it is built.
        keys.check_keys(flatten_config(cfg), {}, of_a_run=True)
        _train_mapper(cfg, ())  # rejects illegal sizes
        _test_mapper(cfg)
        if _is_segmentor(cfg):
            check_window(cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE)

    def build_model(self) -> nn.Module:
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        if self.cfg.FLOAT32_PRECISION:
            torch.set_float32_matmul_precision(self.cfg.FLOAT32_PRECISION)
            torch.backends.cudnn.allow_tf32 = self.cfg.FLOAT32_PRECISION != "highest"
        seed_everything(self.cfg.SEED, "weights")
        return build_model(self.cfg)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(self.cfg, model)

    def iteration_starter(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        lr_at = build_learning_rate(self.cfg)

        def begin(iteration: int) -> None:
            # Anchors and regions are drawn from torch's generator.
            seed_everything(self.cfg.SEED, "iteration", iteration, "rank", get_rank())
            set_lr(optimizer, lr_at(iteration))

        return begin

    def training_batches(
        self, train_sets: Sequence[DetectionDataset], start_iteration: int
    ) -> Batches:
        return self._batches(train_sets, self.cfg.SEED, start_iteration)

    def statistics_batches(self, train_sets: Sequence[DetectionDataset], iteration: int) -> Batches:
        seed_everything(self.cfg.SEED, "precise_bn", iteration, get_rank())
        seed = derive_seed(self.cfg.SEED, "precise_bn", iteration) % 2**31
        return self._batches(train_sets, seed, 0)

    def _batches(
        self, train_sets: Sequence[DetectionDataset], seed: int, start_iteration: int
    ) -> Batches:
        loader = self.cfg.DATALOADER
        if not hasattr(self, "_records"):  # read and logged once in a run
            points = self.cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            self._records = training_records(
                train_sets,
                filter_empty=loader.FILTER_EMPTY_ANNOTATIONS,
                masks=self.cfg.MODEL.MASK_ON,
                min_keypoints=points if self.cfg.MODEL.KEYPOINT_ON else 0,
            )
        factors = None
        if loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
            threshold, sqrt = loader.REPEAT_THRESHOLD, loader.REPEAT_SQRT
            factors = category_repeat_factors(self._records, threshold, sqrt=sqrt)
        return train_loader(
            self._records,
            _train_mapper(self.cfg, train_sets[0].keypoint_mirror),
            batch_size_per_rank=self.cfg.SOLVER.IMS_PER_BATCH // get_world_size(),
            seed=seed,
            aspect_ratio_grouping=loader.ASPECT_RATIO_GROUPING,
            repeat_factors=factors,
            start_iteration=start_iteration,
            **self._place(),
        )

    def _place(self) -> dict[str, Any]:
        loading: dict[str, Any] = {"num_workers": self.cfg.DATALOADER.NUM_WORKERS}
        loading |= {"pin_memory": wants_pinned(self.device)}
        return loading | {"rank": get_rank(), "world_size": get_world_size()}

    def test_batches(self, dataset: DetectionDataset) -> Batches:
        return test_loader(dataset.records, _test_mapper(self.cfg), **self._place())

    def detector(self, model: nn.Module) -> Callable[[list[dict]], list[dict[str, Tensor]]]:
        return model


def _is_segmentor(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == SEGMENTOR


def _train_mapper(cfg: CfgNode, keypoint_mirror: tuple[int, ...]) -> TrainMapper:
    inputs = cfg.INPUT
    sizes = tuple(inputs.MIN_SIZE_TRAIN), inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING
    mirror = keypoint_mirror if cfg.MODEL.KEYPOINT_ON else None
    flip, order = inputs.RANDOM_FLIP, inputs.FORMAT
    if _is_segmentor(cfg):
        crop = tuple(inputs.CROP.SIZE) if inputs.CROP.ENABLED else ()
        scale, mean = tuple(inputs.RANDOM_SCALE), tuple(cfg.MODEL.PIXEL_MEAN)
        own: dict[str, Any] = {"scale": scale, "crop": crop, "pixel_mean": mean}
        return SegmentationMapper(*sizes, flip, order, **own)
    masks = inputs.MASK_FORMAT if cfg.MODEL.MASK_ON else ""
    return TrainMapper(*sizes, flip, order, mask_format=masks, keypoint_mirror=mirror)


def _test_mapper(cfg: CfgNode) -> TestMapper:
    return TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT)


def build_model(cfg: CfgNode) -> ImageNetwork:
    """Return the network of a config, on the CPU, in training mode, with freshly drawn weights: a
    detector, or a segmentor.

    The config has Detectron2's keys: from ``load_detection_config``, or Detectron2's own.

    Raises:
        InputError: If this engine does not implement it, or its parts do not fit together.
    """
    check_config(cfg)
    backbone = _backbone(cfg)
    pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
    model: ImageNetwork
    if _is_segmentor(cfg):
        model = _segmentor(cfg, backbone, pixels)
    else:
        rpn, heads = _rpn(cfg, backbone), _roi_heads(cfg, backbone)
        model = GeneralizedRCNN(backbone, rpn, heads, **pixels)
    # The faster layout of convolutions on a CPU, and on a GPU's tensor cores.
    if "cpu" in (cfg.MODEL.DEVICE, best_device().type) or cfg.SOLVER.AMP.ENABLED:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.SGD:
    """Return SGD at SOLVER.BASE_LR on the trainable parameters, in Detectron2's groups of weight
    decay and learning-rate factor; it clips the gradients itself if SOLVER.CLIP_GRADIENTS says so.

    Biases, a norm's included, decay by WEIGHT_DECAY_BIAS unless it is None. Parameters shared by
    two modules enter under the first. Source: detectron2@02b5c4e solver/build.py.
    """
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            is_norm, is_bias = isinstance(module, _NORM_LAYERS), name == "bias"
            decay = solver.WEIGHT_DECAY_NORM if is_norm else solver.WEIGHT_DECAY
            if is_bias and solver.WEIGHT_DECAY_BIAS is not None:
                decay = solver.WEIGHT_DECAY_BIAS
            factor = solver.BIAS_LR_FACTOR if is_bias else 1.0
            groups.setdefault((decay, factor), []).append(parameter)
    on_cpu = all(parameter.device.type == "cpu" for parameter in seen)
    optimizer = torch.optim.SGD(
        [{"params": p, "weight_decay": d, "lr_factor": f} for (d, f), p in groups.items()],
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        # Fused, a step makes no copies of all gradients; on devices foreach saves launches.
        **({"fused": True} if on_cpu else {"foreach": True}),
    )
    set_lr(optimizer, solver.BASE_LR)

    def limit(*_: Any) -> None:
        for parameter in (p for p in seen if p.grad is not None):  # each on its own
            if clip.CLIP_TYPE == "value":
                nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
            else:
                nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    if clip.ENABLED:
        optimizer.register_step_pre_hook(limit)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate ``lr`` times its "lr_factor"."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def build_learning_rate(cfg: CfgNode) -> Callable[[int], float]:
    """Return the learning rate of each 0-based iteration, or raise InputError for illegal values.

    Source: facebookresearch/detectron2@02b5c4e solver/build.py and lr_scheduler.py.
    """
    solver, steps = cfg.SOLVER, list(cfg.SOLVER.STEPS)
    length, base_lr, end_lr = solver.MAX_ITER, solver.BASE_LR, solver.BASE_LR_END
    ascending = steps == sorted({step for step in steps if step > 0})
    _require(length >= 1, f"SOLVER.MAX_ITER is {length}, expected at least 1")
    _require(ascending, f"SOLVER.STEPS is {steps}, expected iterations in ascending order")
    main: schedulers.ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        in_range = 0 <= end_lr <= base_lr
        _require(in_range, f"SOLVER.BASE_LR_END is {end_lr}, expected 0 to BASE_LR ({base_lr})")
        main = schedulers.CosineParamScheduler(1, end_lr / base_lr)
    else:
        steps = [step for step in steps if step < length]
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        main = schedulers.MultiStepParamScheduler(values, length, steps)
    share, rescale = min(solver.WARMUP_ITERS / length, 1.0), solver.RESCALE_INTERVAL
    start, end = solver.WARMUP_FACTOR * main(0.0), main(0.0 if rescale else share)
    warmup: schedulers.ParamScheduler = schedulers.LinearParamScheduler(start, end)
    if solver.WARMUP_METHOD == "constant":
        warmup = schedulers.ConstantParamScheduler(start)
    scaling = ["rescaled", "rescaled" if rescale else "fixed"]
    schedule = schedulers.CompositeParamScheduler([warmup, main], [share, 1 - share], scaling)
    return lambda iteration: base_lr * schedule(iteration / length)


def check_config(cfg: CfgNode) -> None:
    """Raise InputError, with key and value, for a model that this engine does not implement."""
    keys.check_keys(flatten_config(cfg), flatten_config(DETECTION_DEFAULTS))
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        needs = "images are read in three channels, grey ones as three equal channels"
        _require(len(cfg.MODEL[key]) == 3, f"MODEL.{key} must have 3 numbers: {needs}")
    resnets, heads, fpn = cfg.MODEL.RESNETS, cfg.MODEL.ROI_HEADS, cfg.MODEL.FPN.IN_FEATURES
    backbone, box = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_BOX_HEAD
    if not resnets.OUT_FEATURES or not set(resnets.OUT_FEATURES) <= set(STAGE_NAMES):
        raise keys.refusal("MODEL.RESNETS.OUT_FEATURES", list(resnets.OUT_FEATURES), STAGE_NAMES)
    # Detectron2 does not dilate basic blocks; the plugin's own backbone does.
    dilations = (1, 2) if backbone == keys.DILATED else (1,)
    basic = (resnets.RES2_OUT_CHANNELS, resnets.NUM_GROUPS) == (64, 1)
    basic = basic and resnets.RES5_DILATION in dilations
    needs = f"need RES2_OUT_CHANNELS 64, NUM_GROUPS 1 and RES5_DILATION 1, or {keys.DILATED}"
    _require(resnets.DEPTH >= 50 or basic, f"MODEL.RESNETS.DEPTH 18 and 34 {needs}")
    consecutive = bool(fpn) and ".".join(fpn) in ".".join(STAGE_NAMES)
    fits = backbone != keys.FPN or consecutive and set(fpn) <= set(resnets.OUT_FEATURES)
    needs = "must be consecutive stages among OUT_FEATURES"
    _require(fits, f"MODEL.FPN.IN_FEATURES {list(fpn)} {needs}")
    dilated = list(resnets.OUT_FEATURES) == ["res5"] and resnets.RES5_DILATION == 2
    needs = "RESNETS.OUT_FEATURES ['res5'] and RES5_DILATION 2"
    _require(backbone != keys.DC5 or dilated, f"MODEL.BACKBONE.NAME {backbone!r} needs {needs}")
    fits, needs = len(heads.IN_FEATURES) == 1, f"reads one feature, got {heads.IN_FEATURES}"
    if heads.NAME == keys.STANDARD_HEADS:
        fits = box.NAME != "" and box.NUM_FC + box.NUM_CONV > 0
        needs = "needs ROI_BOX_HEAD.NAME 'FastRCNNConvFCHead' and NUM_FC or NUM_CONV above 0"
    _require(fits, f"MODEL.ROI_HEADS.NAME {heads.NAME!r} {needs}")
    fits, needs = heads.NAME == keys.STANDARD_HEADS, "needs MODEL.ROI_HEADS.NAME 'StandardROIHeads'"
    _require(fits or not cfg.MODEL.KEYPOINT_ON, f"MODEL.KEYPOINT_ON True {needs}")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(f"{sentence}.")


def _settings(kind: Any, *nodes: CfgNode) -> Any:
    """Return a dataclass whose fields are named as the keys of ``nodes``, in lower case."""
    values = {key.lower(): value for node in nodes for key, value in node.items()}
    return kind(**{f.name: values[f.name] for f in fields(kind)})


def _backbone(cfg: CfgNode) -> Backbone:
    resnets, fpn, frozen = cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.BACKBONE.FREEZE_AT
    shape, stages = _settings(ResNetShape, resnets), resnets.OUT_FEATURES
    trunk = ResNet(shape, stages, res5_dilation=resnets.RES5_DILATION, freeze_at=frozen)
    if cfg.MODEL.BACKBONE.NAME == keys.FPN:
        return FPN(trunk, in_features=fpn.IN_FEATURES, out_channels=fpn.OUT_CHANNELS, norm=fpn.NORM)
    return DilatedC5(trunk, norm=resnets.NORM) if cfg.MODEL.BACKBONE.NAME == keys.DC5 else trunk


def _segmentor(cfg: CfgNode, backbone: Backbone, pixels: dict[str, Any]) -> SemanticSegmentor:
    head, window = cfg.MODEL.SEM_SEG_HEAD, cfg.TEST.SLIDING_WINDOW
    channels = _channels("MODEL.SEM_SEG_HEAD.IN_FEATURES", head.IN_FEATURES, backbone)
    name, *others = head.IN_FEATURES
    _require(
        not others, f"FCNHead reads one feature, got SEM_SEG_HEAD.IN_FEATURES {[name, *others]}"
    )
    common, stride = head.COMMON_STRIDE, backbone.strides[name]
    needs = f"is {common}, expected {stride}, the stride of {name}"
    _require(common == stride, f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {needs}")
    names = ("CONVS_DIM", "NUM_CONVS", "DILATION", "NORM")
    fcn = FCNHead(channels, head.NUM_CLASSES, **{key.lower(): head[key] for key in names})
    settings = PixelSettings(head.IGNORE_VALUE, head.LOSS_WEIGHT, window.SIZE, window.STRIDE)
    return SemanticSegmentor(backbone, fcn, settings, in_feature=name, **pixels)


def _rpn(cfg: CfgNode, backbone: Backbone) -> RPN:
    rpn, anchors = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR
    channels = _channels("MODEL.RPN.IN_FEATURES", rpn.IN_FEATURES, backbone)
    levels = len(rpn.IN_FEATURES)
    for key in ("SIZES", "ASPECT_RATIOS"):
        lengths = list(map(len, anchors[key]))
        needs = f"must hold one list, or one of equal length for each of the {levels} levels"
        fits = len(lengths) in (1, levels) and len(set(lengths)) == 1
        _require(fits, f"MODEL.ANCHOR_GENERATOR.{key} {anchors[key]} {needs}")
    strides = [backbone.strides[name] for name in rpn.IN_FEATURES]
    generator = AnchorGenerator(anchors.SIZES, anchors.ASPECT_RATIOS, strides, anchors.OFFSET)
    head = RPNHead(channels, generator.num_anchors, conv_channels=rpn.CONV_DIMS)
    settings = _settings(RPNSettings, cfg.MODEL.PROPOSAL_GENERATOR, rpn)
    return RPN(rpn.IN_FEATURES, head, generator, settings)


def _roi_heads(cfg: CfgNode, backbone: Backbone) -> RoIHeads:
    heads, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    channels = _channels("MODEL.ROI_HEADS.IN_FEATURES", heads.IN_FEATURES, backbone)
    pooler = functools.partial(_pooler, backbone=backbone, in_features=heads.IN_FEATURES)
    kind: Callable[..., RoIHeads]
    if heads.NAME == keys.STANDARD_HEADS:
        convs, fcs = [box.CONV_DIM] * box.NUM_CONV, [box.FC_DIM] * box.NUM_FC
        box_head = BoxHead(channels, box.POOLER_RESOLUTION, convs, fcs, norm=box.NORM)
        kind = functools.partial(StandardRoIHeads, box_head, mask_pooler=pooler(mask))
        predictor_channels = box_head.out_channels
    else:
        shape = _settings(ResNetShape, cfg.MODEL.RESNETS)
        extra_norm = heads.NAME == keys.RES5_HEADS_EXTRA_NORM
        kind = functools.partial(Res5RoIHeads, make_res5(shape, extra_norm=extra_norm))
        channels = predictor_channels = shape.channels("res5")
    settings = _settings(BoxSettings, heads, box, cfg.TEST)  # with TEST.DETECTIONS_PER_IMAGE
    # Before the other heads: the order in which weights are drawn is part of a seed's numbers.
    box_predictor = BoxPredictor(predictor_channels, settings)
    mask_head = None
    if cfg.MODEL.MASK_ON:
        names = ("NUM_CONV", "CONV_DIM", "NORM", "CLS_AGNOSTIC_MASK")
        mask_settings = {key.lower(): mask[key] for key in names}
        mask_head = MaskHead(channels, heads.NUM_CLASSES, **mask_settings)
    if cfg.MODEL.KEYPOINT_ON:
        keypoint_head = _keypoint_head(cfg, channels, pooler(cfg.MODEL.ROI_KEYPOINT_HEAD))
        kind = functools.partial(kind, keypoint_head=keypoint_head)
    return kind(
        in_features=heads.IN_FEATURES,
        sampler=_settings(RegionSampler, heads),
        box_pooler=pooler(box),
        box_predictor=box_predictor,
        mask_head=mask_head,
    )


def _keypoint_head(cfg: CfgNode, in_channels: int, pooler: RoIPooler) -> KeypointHead:
    heads, points = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_KEYPOINT_HEAD
    # The most keypoints that the objects drawn in an image can have.
    most = points.NUM_KEYPOINTS * heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION
    by_visible = points.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS
    return KeypointHead(
        in_channels,
        pooler,
        num_keypoints=points.NUM_KEYPOINTS,
        conv_dims=points.CONV_DIMS,
        loss_weight=points.LOSS_WEIGHT,
        normalizer=None if by_visible else most,
    )


def _pooler(part: CfgNode, backbone: Backbone, in_features: list[str]) -> RoIPooler:
    strides, aligned = [backbone.strides[n] for n in in_features], keys.POOLERS[part.POOLER_TYPE]
    return RoIPooler(part.POOLER_RESOLUTION, strides, part.POOLER_SAMPLING_RATIO, aligned)


def _channels(key: str, names: list[str], backbone: Backbone) -> int:
    known = ", ".join(backbone.channels)
    exist = bool(names) and set(names) <= set(backbone.channels)
    _require(exist, f"{key} {list(names)} is not what the backbone returns: {known}")
    return backbone.channels[names[0]]
