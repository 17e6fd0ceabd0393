"""Which of Detectron2's config keys this engine honours, and with which values.

A key that is honoured with any value stands in ``FREE``, one that is honoured with some values in
``LIMITED``. Keys that select nothing here (the parts of other architectures) stand in
``OTHER_PARTS``. Every other key has to keep Detectron2's default.
"""

from __future__ import annotations

from typing import Any

from moco_transfer.finetune.torchvision_engine.norm import NORM_NAMES
from moco_transfer.finetune.torchvision_engine.resnet import BLOCKS_PER_STAGE
from moco_transfer.finetune.torchvision_engine.solver import CLIP_TYPES, SCHEDULES, WARMUP_METHODS
from moco_transfer.runtime.errors import InputError

RESNET, FPN, DC5 = "build_resnet_backbone", "build_resnet_fpn_backbone", "build_resnet_dc5_backbone"
STANDARD_HEADS, RES5_HEADS, RES5_HEADS_EXTRA_NORM = (
    "StandardROIHeads",
    "Res5ROIHeads",
    "Res5ROIHeadsExtraNorm",
)
POOLERS = {"ROIAlignV2": True, "ROIAlign": False}  # whether the pixel centres lie at .5

WAY_OUT = "Use --engine detectron2."

LIMITED: dict[str, tuple[Any, ...]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.MASK_ON": (True, False),
    "MODEL.BACKBONE.NAME": (RESNET, FPN, DC5),
    "MODEL.RESNETS.DEPTH": tuple(BLOCKS_PER_STAGE),
    "MODEL.RESNETS.NORM": NORM_NAMES,
    "MODEL.RESNETS.STRIDE_IN_1X1": (True, False),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.FPN.NORM": NORM_NAMES,
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_HEADS.NAME": (STANDARD_HEADS, RES5_HEADS, RES5_HEADS_EXTRA_NORM),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (True, False),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", ""),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": tuple(POOLERS),
    "MODEL.ROI_BOX_HEAD.NORM": NORM_NAMES,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (True, False),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": tuple(POOLERS),
    "MODEL.ROI_MASK_HEAD.NORM": NORM_NAMES,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (True, False),
    "SOLVER.LR_SCHEDULER_NAME": SCHEDULES,
    "SOLVER.WARMUP_METHOD": WARMUP_METHODS,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": CLIP_TYPES,
}

FREE = frozenset(
    f"{section}.{leaf}"
    for section, leaves in {
        "MODEL": "DEVICE WEIGHTS PIXEL_MEAN PIXEL_STD",
        "MODEL.BACKBONE": "FREEZE_AT",
        "MODEL.RESNETS": (
            "OUT_FEATURES NUM_GROUPS WIDTH_PER_GROUP RES2_OUT_CHANNELS STEM_OUT_CHANNELS"
        ),
        "MODEL.FPN": "IN_FEATURES OUT_CHANNELS",
        "MODEL.PROPOSAL_GENERATOR": "MIN_SIZE",
        "MODEL.ANCHOR_GENERATOR": "SIZES ASPECT_RATIOS OFFSET",
        "MODEL.RPN": (
            "IN_FEATURES BOUNDARY_THRESH IOU_THRESHOLDS IOU_LABELS BATCH_SIZE_PER_IMAGE"
            " POSITIVE_FRACTION BBOX_REG_LOSS_WEIGHT BBOX_REG_WEIGHTS SMOOTH_L1_BETA LOSS_WEIGHT"
            " PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST"
            " NMS_THRESH CONV_DIMS"
        ),
        "MODEL.ROI_HEADS": (
            "NUM_CLASSES IN_FEATURES IOU_THRESHOLDS IOU_LABELS BATCH_SIZE_PER_IMAGE"
            " POSITIVE_FRACTION SCORE_THRESH_TEST NMS_THRESH_TEST"
        ),
        "MODEL.ROI_BOX_HEAD": (
            "BBOX_REG_LOSS_WEIGHT BBOX_REG_WEIGHTS SMOOTH_L1_BETA POOLER_RESOLUTION"
            " POOLER_SAMPLING_RATIO NUM_FC FC_DIM NUM_CONV CONV_DIM"
        ),
        "MODEL.ROI_MASK_HEAD": "POOLER_RESOLUTION POOLER_SAMPLING_RATIO NUM_CONV CONV_DIM",
    }.items()
    for leaf in leaves.split()
)

# Read by architectures and heads that LIMITED does not admit, so their values cannot matter.
OTHER_PARTS = (
    "MODEL.RETINANET.",
    "MODEL.SEM_SEG_HEAD.",
    "MODEL.PANOPTIC_FPN.",
    "MODEL.ROI_BOX_CASCADE_HEAD.",
    "MODEL.ROI_KEYPOINT_HEAD.",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.RESNETS.DEFORM_MODULATED",
    "MODEL.RESNETS.DEFORM_NUM_GROUPS",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_",
)


def check_key(key: str, value: Any, default: Any) -> None:
    """Accept a key of the MODEL section, or one in ``LIMITED``, or refuse it.

    Args:
        key: Full path, for example 'MODEL.FPN.FUSE_TYPE'.
        value: As configured.
        default: Detectron2's.

    Raises:
        InputError: If the engine cannot honour the value.
    """
    if key in FREE or key.startswith(OTHER_PARTS):
        return
    allowed = LIMITED.get(key, (default,))
    if value not in allowed:
        raise refusal(key, value, allowed)


def refusal(key: str, value: Any, allowed: tuple[Any, ...]) -> InputError:
    """Return the error for a value that only Detectron2 implements."""
    only = ", ".join(repr(a) for a in allowed)
    return InputError(
        f"The 'torchvision' engine does not implement {key} {value!r} (only {only}). {WAY_OUT}"
    )
