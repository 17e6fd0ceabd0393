"""Which of Detectron2's config keys this engine honours, and with which values.

Every MODEL key that is in no table below has to keep Detectron2's default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...models import BLOCKS
from ...runtime.errors import InputError
from .layers import NORMS

RESNET, FPN, DC5 = "build_resnet_backbone", "build_resnet_fpn_backbone", "build_resnet_dc5_backbone"
STANDARD_HEADS = "StandardROIHeads"
RES5_HEADS, RES5_HEADS_EXTRA_NORM = "Res5ROIHeads", "Res5ROIHeadsExtraNorm"
POOLERS = {"ROIAlignV2": True, "ROIAlign": False}  # whether the pixel centres lie at .5

WAY_OUT = "Use --engine detectron2."

# Keys of a model that are honoured with some values.
_LIMITED: dict[str, Collection[Any]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.BACKBONE.NAME": (RESNET, FPN, DC5),
    "MODEL.RESNETS.DEPTH": BLOCKS,
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.FPN.NORM": NORMS,
    "MODEL.ROI_HEADS.NAME": (STANDARD_HEADS, RES5_HEADS, RES5_HEADS_EXTRA_NORM),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", ""),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": POOLERS,
    "MODEL.ROI_BOX_HEAD.NORM": NORMS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": POOLERS,
    "MODEL.ROI_MASK_HEAD.NORM": NORMS,
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}

# Keys of a run that are honoured with some values; they do not matter for building a model.
_LIMITED_IN_RUNS: dict[str, Collection[Any]] = {
    "DATASETS.PROPOSAL_FILES_TRAIN": ((),),
    "DATASETS.PROPOSAL_FILES_TEST": ((),),
    "INPUT.CROP.ENABLED": (False,),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MASK_FORMAT": ("polygon",),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "TEST.AUG.ENABLED": (False,),
    "TEST.EXPECTED_RESULTS": ([],),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
    "VIS_PERIOD": (0,),
}

# Keys that are honoured with any value.
_FREE = {
    "MODEL": "DEVICE WEIGHTS PIXEL_MEAN PIXEL_STD MASK_ON",
    "MODEL.BACKBONE": "FREEZE_AT",
    "MODEL.RESNETS": """OUT_FEATURES NUM_GROUPS WIDTH_PER_GROUP RES2_OUT_CHANNELS STRIDE_IN_1X1
        STEM_OUT_CHANNELS""",
    "MODEL.FPN": "IN_FEATURES OUT_CHANNELS",
    "MODEL.PROPOSAL_GENERATOR": "MIN_SIZE",
    "MODEL.ANCHOR_GENERATOR": "SIZES ASPECT_RATIOS OFFSET",
    "MODEL.RPN": """IN_FEATURES BOUNDARY_THRESH IOU_THRESHOLDS IOU_LABELS BATCH_SIZE_PER_IMAGE
        POSITIVE_FRACTION BBOX_REG_LOSS_WEIGHT BBOX_REG_WEIGHTS SMOOTH_L1_BETA LOSS_WEIGHT
        PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST NMS_THRESH
        CONV_DIMS""",
    "MODEL.ROI_HEADS": """NUM_CLASSES IN_FEATURES IOU_THRESHOLDS IOU_LABELS BATCH_SIZE_PER_IMAGE
        POSITIVE_FRACTION SCORE_THRESH_TEST NMS_THRESH_TEST PROPOSAL_APPEND_GT""",
    "MODEL.ROI_BOX_HEAD": """BBOX_REG_LOSS_WEIGHT BBOX_REG_WEIGHTS SMOOTH_L1_BETA NUM_FC FC_DIM
        NUM_CONV CONV_DIM POOLER_RESOLUTION POOLER_SAMPLING_RATIO CLS_AGNOSTIC_BBOX_REG""",
    "MODEL.ROI_MASK_HEAD": """POOLER_RESOLUTION POOLER_SAMPLING_RATIO NUM_CONV CONV_DIM
        CLS_AGNOSTIC_MASK""",
}

# Keys of architectures and heads that _LIMITED does not admit: their values cannot matter.
_OTHER_PARTS = (
    "MODEL.RETINANET.", "MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.", "MODEL.ROI_KEYPOINT_HEAD.",
    "MODEL.ROI_BOX_CASCADE_HEAD.", "MODEL.ROI_BOX_HEAD.FED_LOSS_", "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS",
)  # fmt: skip


def check_keys(
    values: Mapping[str, Any], defaults: Mapping[str, Any], *, of_a_run: bool = False
) -> None:
    """Refuse the first key with a value that this engine does not implement.

    ``values`` and Detectron2's ``defaults`` are flat: 'MODEL.FPN.FUSE_TYPE' -> 'sum'. ``of_a_run``
    checks the keys outside MODEL that training and evaluation read.

    Raises:
        InputError: Naming the key, its value and what is implemented.
    """
    limited = _LIMITED_IN_RUNS if of_a_run else _LIMITED
    for key, value in values.items():
        section, leaf = key.rpartition(".")[::2]
        is_free = leaf in _FREE.get(section, "").split() or key.startswith(_OTHER_PARTS)
        allowed = limited.get(key)
        if allowed is None and key.startswith("MODEL.") and not is_free and not of_a_run:
            allowed = (defaults.get(key),)
        if allowed is not None and value not in allowed:
            raise refusal(key, value, allowed)


def refusal(key: str, value: Any, allowed: Collection[Any]) -> InputError:
    """Return the error for a value that only Detectron2 implements."""
    only = ", ".join(map(repr, allowed))
    return InputError(
        f"The 'torchvision' engine does not implement {key} {value!r} (only {only}). {WAY_OUT}"
    )
