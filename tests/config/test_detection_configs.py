"""The shipped detection configs: what the papers and the official repository say, held as numbers
typed from them.

Sources: facts of arXiv:1911.05722 (Sec. 4.2, App. A.1, Tables 2, 4, 5, A.1),
    facebookresearch/moco@7397dfe detection/configs, Detectron2's
1x and 2x schedules.

Seen red under: twin keeps RGB; 9k with the 24k steps; a wrong AP, std or table in a header; command
    of another config; a header without
its milestones' source; a short run's milestone moved and not its sentence.
"""

from __future__ import annotations

import re
import shlex

import pytest

from moco_transfer.config import available, load_detection_config
from moco_transfer.report import published_settings

CONFIGS = {
    name.split("/")[1]: file for name, file in available().items() if name.startswith("detection/")
}
LEAVES = sorted(name for name in CONFIGS if not name.startswith("Base-"))
TWINS = sorted(name for name in CONFIGS if name.endswith("_msra"))

VOC_SIZES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
COCO_SIZES = (640, 672, 704, 736, 768, 800)
CITY_SIZES = (800, 832, 864, 896, 928, 960, 992, 1024)
CITIES = ("cityscapes_fine_instance_seg_train",)
PEOPLE = ("keypoints_coco_2017_train",)
POSES = ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival")
VOC_0712 = ("voc_2007_trainval", "voc_2012_trainval")
# name: (iterations, steps, warm-up, training sets, shorter edges, masks, classes)
PROTOCOLS = {
    "pascal_voc_R_50_C4_24k": (24000, (18000, 22000), 100, VOC_0712, VOC_SIZES, False, 20),
    "pascal_voc_R_50_DC5_24k": (24000, (18000, 22000), 100, VOC_0712, VOC_SIZES, False, 20),
    "pascal_voc07_R_50_C4_9k": (
        9000,
        (6750, 8250),
        100,
        ("voc_2007_trainval",),
        VOC_SIZES,
        False,
        20,
    ),
    "coco_R_50_C4_1x": (90000, (60000, 80000), 1000, ("coco_2017_train",), COCO_SIZES, True, 80),
    "coco_R_50_C4_2x": (180000, (120000, 160000), 1000, ("coco_2017_train",), COCO_SIZES, True, 80),
    "coco_R_50_FPN_1x": (90000, (60000, 80000), 1000, ("coco_2017_train",), COCO_SIZES, True, 80),
    "coco_R_50_FPN_2x": (
        180000,
        (120000, 160000),
        1000,
        ("coco_2017_train",),
        COCO_SIZES,
        True,
        80,
    ),
    "coco_R_50_FPN_6x": (
        540000,
        (480000, 520000),
        1000,
        ("coco_2017_train",),
        COCO_SIZES,
        True,
        80,
    ),
    "coco_densepose_R_50_FPN_s1x": (130000, (100000, 120000), 1000, POSES, COCO_SIZES, False, 1),
    "coco_keypoint_R_50_FPN_1x": (90000, (60000, 80000), 1000, PEOPLE, COCO_SIZES, False, 1),
    "coco_keypoint_R_50_FPN_2x": (180000, (120000, 160000), 1000, PEOPLE, COCO_SIZES, False, 1),
    "cityscapes_R_50_FPN_24k": (24000, (18000,), 1000, CITIES, CITY_SIZES, True, 8),
    **{
        f"lvis_{v}_R_50_FPN_2x": (
            180000,
            (120000, 160000),
            1000,
            (f"lvis_{v}_train",),
            COCO_SIZES,
            True,
            n,
        )
        for v, n in (("v0.5", 1230), ("v1", 1203))
    },
    "lvis_v0.5_R_50_FPN_1x": (
        90000,
        (60000, 80000),
        1000,
        ("lvis_v0.5_train",),
        COCO_SIZES,
        True,
        1230,
    ),
}
TEST_SETS = {  # by classes
    20: "voc_2007_test",
    80: "coco_2017_val",
    1: "keypoints_coco_2017_val",
    8: "cityscapes_fine_instance_seg_val",
    1230: "lvis_v0.5_val",
    1203: "lvis_v1_val",
}
# Batch, learning rate, shorter edge at test time and longer edge; of mmselfsup's for Cityscapes.
SIZES = {
    "cityscapes_R_50_FPN_24k": (8, 0.01, 1024, 2048),
    "coco_densepose_R_50_FPN_s1x": (16, 0.002, 800, 1333),
}
NOT_PUBLISHED = {
    f"{name}{twin}"
    for name in ("coco_keypoint_R_50_FPN_1x", "lvis_v1_R_50_FPN_2x")
    for twin in ("", "_msra")
}

# What the header says of where its milestones come from.
MILESTONES = {
    "pascal_voc_R_50_C4_24k": (
        "of the released facebookresearch/moco@7397dfe"
        " detection/configs/pascal_voc_R_50_C4_24k.yaml"
    ),
    "pascal_voc_R_50_DC5_24k": (
        "not published; the paper gives 24k iterations for both (a) and (b). Chosen are those of"
        " its released C4 config"
    ),
    "pascal_voc07_R_50_C4_9k": (
        "no source states them. Chosen are the fractions of the 24k schedule, 3/4 and 11/12 of"
        " the run"
    ),
    "coco_R_50_C4_1x": "those of Detectron2's 1x, which the paper's \"1x schedule\" names",
    "coco_R_50_C4_2x": (
        "of the released facebookresearch/moco@7397dfe detection/configs/coco_R_50_C4_2x.yaml"
    ),
    "coco_R_50_FPN_1x": "those of Detectron2's 1x, which the paper's \"1x schedule\" names",
    "coco_R_50_FPN_2x": "twice the 1x, as in the released C4 2x config",
    "coco_densepose_R_50_FPN_s1x": "those of Detectron2's s1x",
    "coco_keypoint_R_50_FPN_1x": "those of Detectron2's 1x",
    "coco_keypoint_R_50_FPN_2x": "twice Detectron2's 1x, as in the released C4 2x config",
    "cityscapes_R_50_FPN_24k": (
        "not published. Chosen is that of mmselfsup's config, 3/4 of the run"
    ),
    "lvis_v0.5_R_50_FPN_1x": "those of Detectron2's LVISv0.5 1x",
    "lvis_v0.5_R_50_FPN_2x": (
        "twice the 1x of Detectron2's LVISv0.5, which are those of its LVISv1"
    ),
    "lvis_v1_R_50_FPN_2x": (
        "those of Detectron2's LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    ),
    "coco_R_50_FPN_6x": "not published. Chosen is the rule of He et al. 2019 (arXiv:1811.08883)",
}


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def header(name):
    lines = CONFIGS[name].read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_config__protocol_of_the_paper(name):
    cfg = load_detection_config(name)
    solver, model = cfg.SOLVER, cfg.MODEL
    iterations, steps, warmup, train, sizes, masks, classes = PROTOCOLS[name]
    assert (iterations, steps, warmup) == (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS)
    batch, lr, test_size, max_size = SIZES.get(name, (16, 0.02, 800, 1333))
    assert (batch, lr, 8, 0.9) == (
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.REFERENCE_WORLD_SIZE,
        solver.MOMENTUM,
    )
    is_pose = "densepose" in name
    decays = (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.GAMMA)
    assert (*decays, solver.WARMUP_FACTOR) == (1e-4, 0.0, 0.1, 0.1 if is_pose else 0.001)
    test_set = "densepose_coco_2014_minival" if is_pose else TEST_SETS[classes]
    assert (train, (test_set,)) == (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    assert (sizes, test_size, max_size, max_size) == (
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TEST,
    )
    assert (masks, classes, 50) == (model.MASK_ON, model.ROI_HEADS.NUM_CLASSES, model.RESNETS.DEPTH)
    assert (model.BACKBONE.FREEZE_AT, model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1) == (
        0,
        "SyncBN",
        False,
    )
    assert (cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP) == ("RGB", "horizontal")
    assert list(model.PIXEL_MEAN) == [123.675, 116.28, 103.53] and list(model.PIXEL_STD) == [
        58.395,
        57.12,
        57.375,
    ]
    assert cfg.TEST.PRECISE_BN.ENABLED and cfg.TEST.PRECISE_BN.NUM_ITER == 200
    assert (model.ROI_HEADS.BATCH_SIZE_PER_IMAGE, model.RPN.BATCH_SIZE_PER_IMAGE) == (512, 256)
    # "The architecture of heads are not different from standard baselines" (moco issue 34)
    assert (model.ROI_BOX_HEAD.NORM, model.ROI_MASK_HEAD.NORM, model.ROI_BOX_HEAD.NUM_CONV) == (
        "",
        "",
        0,
    )
    assert model.WEIGHTS == ""
    if "_C4_" in name:
        assert (model.ROI_HEADS.NAME, model.BACKBONE.NAME) == (
            "Res5ROIHeadsExtraNorm",
            "build_resnet_backbone",
        )
        assert (model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST) == (6000, 1000)
    elif "_DC5_" in name:
        assert (model.BACKBONE.NAME, model.RESNETS.RES5_DILATION, model.ROI_HEADS.NAME) == (
            "build_resnet_dc5_backbone",
            2,
            "StandardROIHeads",
        )
        assert (model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.POOLER_RESOLUTION) == (2, 7)
    else:
        if is_pose:  # densepose_rcnn_R_50_FPN_s1x_legacy.yaml and its base
            box, head = model.ROI_BOX_HEAD, model.ROI_DENSEPOSE_HEAD
            pools = ("ROIAlign", 7, 2), ("ROIAlign", 14, 2)
            keys = ("POOLER_TYPE", "POOLER_RESOLUTION", "POOLER_SAMPLING_RATIO")
            assert tuple(tuple(h[key] for key in keys) for h in (box, head)) == pools
            assert (head.NAME, head.NUM_COARSE_SEGM_CHANNELS) == ("DensePoseV1ConvXHead", 15)
            assert (head.HEATMAP_SIZE, head.DECODER_ON, head.NUM_STACKED_CONVS) == (56, False, 8)
            weights = (head.INDEX_WEIGHTS, head.PART_WEIGHTS, head.POINT_REGRESSION_WEIGHTS)
            assert weights == (2.0, 0.3, 0.1)
        elif classes == 1:
            head = model.ROI_KEYPOINT_HEAD
            assert model.KEYPOINT_ON and model.ROI_BOX_HEAD.SMOOTH_L1_BETA == 0.5
            assert (head.CONV_DIMS, head.NUM_KEYPOINTS) == ((512,) * 8, 17)
            assert model.RPN.POST_NMS_TOPK_TRAIN == 1500
        assert (model.BACKBONE.NAME, model.FPN.NORM, model.ROI_BOX_HEAD.NUM_FC) == (
            "build_resnet_fpn_backbone",
            "SyncBN",
            2,
        )
    if "lvis" in name:
        loader = cfg.DATALOADER
        assert loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler" and loader.REPEAT_SQRT
        assert (loader.REPEAT_THRESHOLD, cfg.TEST.DETECTIONS_PER_IMAGE) == (0.001, 300)
        assert model.ROI_HEADS.SCORE_THRESH_TEST == 0.0001


def test_config__every_protocol_has_its_msra_twin():
    assert [f"{name}_msra" for name in sorted(PROTOCOLS)] == TWINS


@pytest.mark.parametrize("name", TWINS)
def test_msra_twin__differs_in_pixels_stride_and_weights_alone(name):
    twin, base = (
        dict(leaves(load_detection_config(n))) for n in (name, name.removesuffix("_msra"))
    )
    assert {key: value for key, value in twin.items() if value != base[key]} == {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "MODEL.PIXEL_MEAN": (103.53, 116.28, 123.675),
        "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "INPUT.FORMAT": "BGR",
        # The paper's supervised row of LVIS has its BN frozen (App. A.4).
        **({"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.FPN.NORM": ""} if "lvis" in name else {}),
    }
    assert len(CONFIGS[name].read_text(encoding="utf-8").splitlines()) <= 10


@pytest.mark.parametrize("name", [n for n in LEAVES if "_R_18_" in n])
def test_r18_config__basic_blocks_and_a_laptops_length(name):
    cfg = load_detection_config(name)
    assert (
        cfg.MODEL.RESNETS.DEPTH,
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS,
        cfg.SOLVER.REFERENCE_WORLD_SIZE,
    ) == (18, 64, 0)
    assert (
        cfg.SOLVER.MAX_ITER <= 500
        and cfg.SOLVER.IMS_PER_BATCH == 4
        and cfg.INPUT.MIN_SIZE_TEST <= 320
    )
    assert all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)


def test_r18_configs__voc_and_coco_c4_and_fpn():
    assert {
        f"{data}_R_18_{arch}_320px" for data in ("pascal_voc", "coco") for arch in ("C4", "FPN")
    } <= set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_header__its_command_runs_this_config(name):
    from moco_transfer.cli.options import add_options

    text = header(name)
    start = next(i for i, line in enumerate(text) if line.startswith("Command:"))
    command = text[start].removeprefix("Command:").replace("make demo, or", "").strip()
    for line in text[start + 1 :]:
        if command and not command.endswith("\\"):
            break
        command = f"{command.removesuffix(chr(92))} {line}".strip()
    words = shlex.split(command)
    words = words[words.index("train" if "train" in words else "tools/train_net.py") + 1 :]
    import argparse

    parser = argparse.ArgumentParser()
    add_options(parser, "train")
    args = parser.parse_args(words)
    assert args.config_file == name
    load_detection_config(args.config_file, args.overrides)


@pytest.mark.parametrize("name", LEAVES)
def test_header__published_numbers_are_those_of_the_reference(name):
    settings = [setting for setting in published_settings() if name in setting.tasks]
    text = " ".join(header(name))
    if not settings:
        assert "no published number exists for it" in text
        return
    (setting,) = settings
    columns = [
        c
        for c in (
            ["bbox/AP50", "bbox/AP", "bbox/AP75"]
            if "voc" in name
            else ["keypoints/AP", "keypoints/AP50", "keypoints/AP75"]
            if "keypoint" in name
            else ["densepose/AP", "densepose/AP50", "densepose/AP75"]
            if "densepose" in name
            else ["segm/AP", "segm/AP50"]
            if "cityscapes" in name
            else ["segm/AP", "segm/AP50", "segm/AP75"]
            if "lvis" in name
            else ["bbox/AP", "segm/AP"]
        )
    ]
    inits = ["supervised"] if name.endswith("_msra") else ["moco", "supervised"]
    for init in inits:
        assert " / ".join(f"{setting.row_for(init).values[c]}" for c in columns) in text, (
            name,
            init,
        )
    if setting.iterations:
        assert setting.iterations == load_detection_config(name).SOLVER.MAX_ITER
    assert tuple(setting.test_set) == tuple(load_detection_config(name).DATASETS.TEST)
    table = re.search(r"(Table|App\.) ([A\d.]+)(\w?)", setting.row_for("supervised").source)
    assert (
        f"{table[1]} {table[2]}{f'({table[3]})' if table[3] else ''}" in text
        and "arXiv:1911.05722" in text
    )
    if setting.std:
        assert (
            f"std {' / '.join(map(str, setting.std.values()))}" in text
            and "facebookresearch/moco, detection/README.md" in text
        )
        assert ("not for this split" in setting.std_source) == ("not for this split" in text)
    else:
        assert "No std is published" in text


@pytest.mark.parametrize("name", LEAVES)
def test_header__says_where_the_milestones_come_from(name):
    text = " ".join(header(name))
    base = name.removesuffix("_msra")
    if base in MILESTONES:
        assert f"Milestones: {MILESTONES[name] if name == base else f'those of {base}'}" in text
        return
    solver = load_detection_config(name).SOLVER
    drop, end = re.search(
        r"Milestones: chosen, one at (\d)/(\d) of the run, so that", text
    ).groups()
    assert [step * int(end) for step in solver.STEPS] == [solver.MAX_ITER * int(drop)]


def test_published__names_configs_that_exist():
    tasks = [task for setting in published_settings() for task in setting.tasks]
    assert set(tasks) <= set(available())
    assert (set(PROTOCOLS) | set(TWINS)) - NOT_PUBLISHED <= set(tasks)


@pytest.mark.detectron2
@pytest.mark.parametrize("name", [name for name in sorted(PROTOCOLS) if "densepose" not in name])
def test_config__an_untouched_detectron2_reads_the_same(name):
    from detectron2.config import get_cfg

    for twin in (name, f"{name}_msra"):
        theirs = get_cfg()
        theirs.merge_from_file(str(CONFIGS[twin]))
        assert dict(leaves(theirs)) == dict(leaves(load_detection_config(twin)))
