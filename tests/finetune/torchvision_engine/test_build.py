"""Configs: what is honoured, and what is refused in which words.

Seen red under: an unknown MODEL key passed over; FUSE_TYPE 'avg' let through; a DC5 trunk on an
    undilated res5 accepted.
"""

from __future__ import annotations

import pytest
import torch
from detector_cases import make_config

from moco_transfer.config import available, load_detection_config
from moco_transfer.finetune.torchvision_engine.build import build_model, check_config
from moco_transfer.runtime.errors import InputError


def unfrozen(case: str):
    cfg = make_config(case).clone()
    cfg.defrost()
    return cfg


def test_refusal__names_key_value_and_the_way_out():
    cfg = make_config("r18_fpn", MODEL__FPN__FUSE_TYPE="avg")
    with pytest.raises(InputError) as error:
        build_model(cfg)
    assert (
        str(error.value)
        == "The 'torchvision' engine does not implement MODEL.FPN.FUSE_TYPE 'avg' (only 'sum'). Use"
        " --engine detectron2."
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.LOAD_PROPOSALS", True),
        ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        ("MODEL.RESNETS.NORM", "LN"),
        ("MODEL.RESNETS.DEPTH", 77),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
        ("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"),
        ("MODEL.ROI_KEYPOINT_HEAD.NAME", "KRCNNConvHead"),
        ("MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "ROIPool"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
        ("MODEL.RESNETS.OUT_FEATURES", ["stem"]),
    ],
)
def test_refusal__every_selector(key, value):
    cfg = unfrozen("r50_fpn")
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=rf"does not implement {key} .*Use --engine detectron2\.$"):
        check_config(cfg)


def test_refusal__key_that_the_engine_has_never_heard_of():
    cfg = unfrozen("r50_fpn")
    cfg.MODEL.NEW_THING = "on"
    with pytest.raises(InputError, match="does not implement MODEL.NEW_THING 'on'"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("case", "settings", "words"),
    [
        ("r18_fpn", {"MODEL__RESNETS__RES2_OUT_CHANNELS": 256}, "need RES2_OUT_CHANNELS 64"),
        ("r50_dc5", {"MODEL__RESNETS__RES5_DILATION": 1}, "RES5_DILATION 2"),
        ("r50_fpn", {"MODEL__FPN__IN_FEATURES": ["res2", "res4"]}, "consecutive"),
        (
            "r50_fpn",
            {"MODEL__RPN__IN_FEATURES": ["p2", "p7"]},
            "'p7'.* is not what the backbone returns: p2, p3, p4, p5, p6",
        ),
        (
            "r50_fpn",
            {"MODEL__ANCHOR_GENERATOR__SIZES": [[32], [64]]},
            "one of equal length for each of the 5 levels",
        ),
        ("r50_fpn", {"MODEL__ROI_BOX_HEAD__NUM_FC": 0}, "NUM_FC or NUM_CONV above 0"),
        ("r50_fpn", {"MODEL__ROI_BOX_HEAD__NAME": ""}, "needs ROI_BOX_HEAD.NAME"),
        ("r50_fpn", {"MODEL__ROI_HEADS__NAME": "Res5ROIHeads"}, "reads one feature"),
        ("r18_c4", {"MODEL__KEYPOINT_ON": True}, "KEYPOINT_ON True needs .*'StandardROIHeads'"),
    ],
)
def test_refusal__parts_that_do_not_fit(case, settings, words):
    with torch.device("meta"), pytest.raises(InputError, match=words):
        build_model(make_config(case, **settings))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in available()
        if name.startswith("detection/") and "densepose" not in name  # Detectron2's alone
    ],
)
def test_shipped_configs__are_implemented(name):
    check_config(load_detection_config(available()[name]))


@pytest.mark.parametrize("depth", [34, 101])
def test_depths__build(depth):
    settings = {
        "MODEL__RESNETS__DEPTH": depth,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 64 if depth == 34 else 256,
    }
    with torch.device("meta"):
        model = build_model(make_config("r50_c4", **settings))
    assert len(model.roi_heads.res5) == 4  # three blocks and MoCo's norm
    assert model.training


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("r18_fpn", {"MODEL__MASK_ON": True}),
        ("r18_c4", {"MODEL__MASK_ON": True}),
        ("r18_fpn_mask", {"MODEL__KEYPOINT_ON": True}),
    ],
)
def test_mask_and_keypoint_heads__are_drawn_last(smaller, larger):
    """A seed's other weights are the same with and without them; red where one came before the box
    predictor, or keypoints before masks.
    """
    states = []
    for settings in ({}, larger):
        torch.manual_seed(0)
        states.append(build_model(make_config(smaller, **settings)).state_dict())
    before, after = states
    assert after.keys() > before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
