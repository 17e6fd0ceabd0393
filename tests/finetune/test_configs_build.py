"""Every shipped detection config builds a detector whose trunk takes every tensor of its weights.

Left out are those of dense pose, which Detectron2 alone builds.

The numbers are counted from the architectures: 53 convolutions of a ResNet-50 and 20 of a ResNet-18
    (shortcuts included), 5 tensors each
with BN. Built on torch's meta device, which allocates nothing.

Seen red under: R18-C4 without its widths; DC5 frozen at 2.
"""

from __future__ import annotations

import pytest
import torch

from moco_transfer.config import available, load_detection_config
from moco_transfer.finetune import build_model
from moco_transfer.finetune.handover import trunk_places

LEAVES = sorted(
    name.split("/")[1]
    for name in available()
    if name.startswith("detection/") and "Base-" not in name and "densepose" not in name
)


def build(name):
    cfg = load_detection_config(name)
    with torch.device("meta"):
        return cfg, build_model(cfg)


@pytest.mark.parametrize("name", LEAVES)
def test_config__builds_and_has_a_place_for_every_tensor_of_the_trunk(name):
    cfg, model = build(name)
    places = trunk_places(list(model.state_dict()))
    assert len(places) == 5 * {18: 20, 50: 53}[cfg.MODEL.RESNETS.DEPTH]
    assert (
        model.roi_heads.box_predictor.cls_score.out_features == cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
    )
    for head, is_on in (("mask_head", cfg.MODEL.MASK_ON), ("keypoint_head", cfg.MODEL.KEYPOINT_ON)):
        assert any(head in key for key in model.state_dict()) == is_on
    assert all(parameter.requires_grad for parameter in model.parameters())
    in_the_head = {key.split(".")[0] for name, key in places.items() if name.startswith("res5.")}
    assert in_the_head == ({"roi_heads"} if "_C4_" in name else {"backbone"})


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        # res5 of basic blocks: layer4's 3x3 convolutions find their place
        ("pascal_voc_R_18_C4_320px", "roi_heads.res5.1.conv2.weight", (512, 512, 3, 3)),
        ("coco_R_18_FPN_320px", "backbone.bottom_up.res5.1.conv2.weight", (512, 512, 3, 3)),
        ("pascal_voc_R_50_C4_24k", "roi_heads.res5.norm.weight", (2048,)),  # MoCo's extra norm
        (
            "pascal_voc_R_50_DC5_24k",
            "backbone.reduce.weight",
            (512, 2048, 3, 3),
        ),  # App. A.1: reduced to 512 channels
        ("pascal_voc_R_50_DC5_24k", "roi_heads.box_head.fc1.weight", (1024, 512 * 7 * 7)),
        ("coco_R_50_FPN_1x", "backbone.fpn_output2.norm.weight", (256,)),
        ("coco_keypoint_R_50_FPN_2x", "roi_heads.keypoint_head.conv_fcn8.bias", (512,)),
        (
            "coco_keypoint_R_50_FPN_2x",
            "roi_heads.keypoint_head.score_lowres.weight",
            (512, 17, 4, 4),
        ),
    ],
)
def test_config__what_its_protocol_is_known_by(name, key, shape):
    assert tuple(build(name)[1].state_dict()[key].shape) == shape
