"""The detectors, weights and images that both engines are compared on. Imports no Detectron2.

Weights are drawn by name from a seeded generator, so no weights are stored; BN statistics, scales
and shifts are not trivial. Sampling sizes are so large that nothing is drawn by chance. Few
proposals and small images keep the C4 detectors fast on one core.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode

from moco_transfer.config.schema_file import DETECTION_DEFAULTS
from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.data.annotations.keypoints import labelled_keypoints, mirror_of
from moco_transfer.data.batches.transforms import (
    ResizeAndFlip,
    TrainMapper,
    draw_polygons,
    read_and_check,
    resized_shape,
)

NUM_CLASSES, NUM_KEYPOINTS = 5, 17

_FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "BN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
_C4 = {"MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm"}
_DC5 = {
    "MODEL.BACKBONE.NAME": "build_resnet_dc5_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RPN.IN_FEATURES": ["dc5"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["dc5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
_R18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
_R34 = {"MODEL.RESNETS.DEPTH": 34, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
_R50 = {"MODEL.RESNETS.DEPTH": 50}
_R101 = {"MODEL.RESNETS.DEPTH": 101}
_MASK = {"MODEL.MASK_ON": True}
_KEYPOINT = {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (32,) * 8}
_NARROW_HEADS = {
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 128,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
}
_EVERYWHERE = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1_000_000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1_000_000,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 300,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 10,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 12,
    "TEST.DETECTIONS_PER_IMAGE": 8,
}

# name -> settings. Those after the ten detectors of the benchmark vary what these have in common.
CASES: dict[str, dict] = {
    "r18_c4": _R18 | _C4,
    "r18_c4_mask": _R18 | _C4 | _MASK,
    "r18_fpn": _R18 | _FPN,
    "r18_fpn_mask": _R18 | _FPN | _MASK,
    "r50_c4": _R50 | _C4,
    "r50_c4_mask": _R50 | _C4 | _MASK,
    "r50_fpn": _R50 | _FPN,
    "r50_fpn_mask": _R50 | _FPN | _MASK,
    "r50_dc5": _R50 | _DC5,
    "r50_dc5_mask": _R50 | _DC5 | _MASK,
    "r50_c4_msra": (
        _R50
        | {
            "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
            "MODEL.RESNETS.NORM": "FrozenBN",
            "MODEL.RESNETS.STRIDE_IN_1X1": True,
            "MODEL.BACKBONE.FREEZE_AT": 2,
        }
    ),
    "r18_fpn_gn_frozen": (
        _R18
        | _FPN
        | {"MODEL.RESNETS.NORM": "GN", "MODEL.FPN.NORM": "GN", "MODEL.BACKBONE.FREEZE_AT": 3}
    ),
    "r18_fpn_head_conv": (
        _R18
        | _FPN
        | _MASK
        | {
            "MODEL.BACKBONE.FREEZE_AT": 2,
            "MODEL.FPN.NORM": "",
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.NORM": "BN",
            "MODEL.ROI_MASK_HEAD.NORM": "GN",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
            "MODEL.RPN.SMOOTH_L1_BETA": 0.1,
            "MODEL.RPN.CONV_DIMS": [-1, 64],
            "MODEL.RPN.BOUNDARY_THRESH": 0,
            "MODEL.RPN.LOSS_WEIGHT": 2.0,
            "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 3.0,
            "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.5,
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
            "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
            "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 8,
        }
    ),
    "rx50_fpn": _R50 | _FPN | {"MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 4},
    "r18_fpn_bitmask": _R18 | _FPN | _MASK | _NARROW_HEADS | {"INPUT.MASK_FORMAT": "bitmask"},
    "r34_fpn": _R34 | _FPN | _NARROW_HEADS,
    "r101_c4": _R101 | _C4,
    # Boxes are pooled from all of p2, p3, p4 and p5, which takes an image of 640 px and so a narrow
    # trunk.
    "r50_fpn_mask_levels": (
        _R50
        | _FPN
        | _MASK
        | {
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (
                10
            ),  # on each level, so that the small anchors do not crowd out the large ones
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 10,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 60,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
            "TEST.DETECTIONS_PER_IMAGE": 32,
        }
    ),
    "r18_fpn_keypoint": _R18 | _FPN | _KEYPOINT | _NARROW_HEADS,
    # With the head of the shipped configs.
    "r50_fpn_keypoint": _R50 | _FPN | {"MODEL.KEYPOINT_ON": True},
    "r18_fpn_mask_keypoint": (
        _R18
        | _FPN
        | _MASK
        | _KEYPOINT
        | _NARROW_HEADS
        | {
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (32, 48),
            "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": False,
            "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": 3000.0,  # by far too large a batch divides it
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": 2,
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": "ROIAlign",
        }
    ),
}
BENCHMARK = tuple(CASES)[:10]

# The detectors with committed numbers on real images, and overrides that leave the trunks as they
# are and let twenty images pass in seconds.
REAL_CASES = ("r18_fpn_mask", "r18_c4", "r50_c4", "r18_fpn_keypoint")
REAL_SETTINGS = {
    "MODEL__FPN__OUT_CHANNELS": 64,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 128,
    "MODEL__ROI_MASK_HEAD__CONV_DIM": 64,
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": 2,
    "MODEL__RPN__POST_NMS_TOPK_TEST": 3,
    "TEST__DETECTIONS_PER_IMAGE": 5,
}
NUM_REAL_IMAGES, REAL_BATCH = 20, 4


# Residual branches are drawn weak and outputs spread: a network of random weights otherwise
# enlarges rounding a thousandfold, and two engines that sum in another order could not be told from
# two that differ.
_LAST_NORM = ("conv2.norm.weight", "conv3.norm.weight")
_GAINS = {
    "objectness_logits": 4.0,
    "anchor_deltas": 0.5,
    "cls_score": 2.0,
    "bbox_pred": 0.5,
    "predictor": 2.0,
    "score_lowres": 4.0,
}
_GAINS |= {f"fpn_{part}{level}": 0.5 for part in ("lateral", "output") for level in (2, 3, 4, 5)}


def make_config(case: str, **overrides: object) -> CfgNode:
    """Return the frozen config of a case; ``overrides`` are keys with '__' for '.'."""
    cfg = CfgNode(DETECTION_DEFAULTS)
    settings = (
        _EVERYWHERE
        | CASES[case]
        | {key.replace("__", "."): value for key, value in overrides.items()}
    )
    cfg.merge_from_list([word for pair in settings.items() for word in pair])
    cfg.freeze()
    return cfg


SCHEDULES: dict[str, dict] = {
    "multistep": {"MAX_ITER": 40, "STEPS": (20, 30), "WARMUP_ITERS": 7},
    "constant_warmup": {
        "MAX_ITER": 40,
        "STEPS": (20,),
        "WARMUP_ITERS": 7,
        "WARMUP_METHOD": "constant",
        "WARMUP_FACTOR": 0.1,
    },
    "cosine": {
        "MAX_ITER": 40,
        "LR_SCHEDULER_NAME": "WarmupCosineLR",
        "WARMUP_ITERS": 7,
        "BASE_LR_END": 0.001,
    },
    "cosine_rescaled": {
        "MAX_ITER": 40,
        "LR_SCHEDULER_NAME": "WarmupCosineLR",
        "WARMUP_ITERS": 7,
        "RESCALE_INTERVAL": True,
    },
    "no_warmup": {"MAX_ITER": 12, "STEPS": (3, 8, 11), "WARMUP_ITERS": 0, "GAMMA": 0.5},
    "warmup_longer_than_run": {"MAX_ITER": 12, "STEPS": (), "WARMUP_ITERS": 100},
    "step_beyond_the_end": {"MAX_ITER": 12, "STEPS": (6, 90), "WARMUP_ITERS": 3},
    "step_in_warmup": {"MAX_ITER": 30, "STEPS": (5, 20), "WARMUP_ITERS": 10},
}


def make_solver_config(name: str, **more: object) -> CfgNode:
    """Return a config with one of the learning-rate schedules."""
    settings = {"BASE_LR": 0.02, **SCHEDULES[name], **more}
    return make_config("r18_fpn", **{f"SOLVER__{key}": value for key, value in settings.items()})


def draw_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict for the model, each tensor drawn by its name."""
    return {name: _draw(name, tensor) for name, tensor in model.state_dict().items()}


def _draw(name: str, like: torch.Tensor) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    shape = tuple(like.shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(7)
    if leaf == "weight" and len(shape) == 1 and ".res" in name and name.endswith(_LAST_NORM):
        values = rng.uniform(0.1, 0.3, shape)
    elif leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        values = rng.uniform(0.6, 1.4, shape)
    elif leaf in ("bias", "running_mean"):
        values = rng.normal(0, 0.1, shape)
    else:
        scale = next((gain for layer, gain in _GAINS.items() if f".{layer}." in name), math.sqrt(2))
        fan_in = math.prod(shape[1:])
        values = rng.standard_normal(shape, dtype=np.float32) * (scale / math.sqrt(fan_in))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def images_of(case: str, *, live: bool = False) -> list[dict]:
    """Return records of the two generated images of a case; those of the live tests are others
    than the fixtures'.
    """
    if case == "r50_fpn_mask_levels":
        return draw_large_images(
            seed=5 if live else 7
        )  # of the first seeds those with detections on every level
    records = draw_images(seed=int(live))
    for record in records if case == "r18_fpn_bitmask" else ():
        size = tuple(record["image"].shape[1:])
        record["gt_masks"] = [draw_polygons(polygons, *size) for polygons in record["gt_masks"]]
    return records


def draw_images(count: int = 2, seed: int = 0) -> list[dict]:
    """Return records of generated images with rectangles on a smooth ground; sizes differ and are
    not multiples of 32.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    records = []
    for _ in range(count):
        height, width = int(rng.integers(66, 95)), int(rng.integers(66, 125))
        pixels = np.kron(
            rng.uniform(0, 255, (3, -(-height // 8), -(-width // 8))), np.ones((8, 8))
        )[:, :height, :width]
        boxes, classes, masks = [], [], []
        for _ in range(3):
            w, h = rng.uniform(16, 56, 2)
            x, y = rng.uniform(0, width - w - 1), rng.uniform(0, height - h - 1)
            pixels[:, int(y) : int(y + h), int(x) : int(x + w)] = rng.uniform(0, 255, (3, 1, 1))
            boxes.append([x, y, x + w, y + h])
            classes.append(int(rng.integers(NUM_CLASSES)))
            masks.append(
                [
                    [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h],
                    [x, y, x + 6, y, x, y + 6],
                ]
            )
        records.append(
            {
                "image": torch.from_numpy(np.round(pixels).astype(np.float32)),
                "gt_boxes": torch.tensor(boxes, dtype=torch.float32),
                "gt_classes": torch.tensor(classes),
                "gt_masks": masks,
                "gt_keypoints": draw_keypoints(np.array(boxes), seed=len(records) + 2 * seed),
                "height": round(height * 1.5),
                "width": round(width * 1.5),
            }
        )
    return records


def draw_keypoints(boxes: np.ndarray, seed: int) -> torch.Tensor:
    """Return keypoints of each object, some hidden, not labelled or outside its box, two on the
    box's edge; the last object has none.
    """
    rng = np.random.Generator(np.random.PCG64(1000 + seed))
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    points = low + (high - low) * rng.uniform(-0.1, 1.1, (len(boxes), NUM_KEYPOINTS, 2))
    points[:, 0, 0], points[:, 1, 1] = boxes[:, 2], boxes[:, 3]
    visibility = rng.integers(0, 3, (len(boxes), NUM_KEYPOINTS, 1))
    visibility[:, :2], visibility[-1] = 2, 0
    return torch.from_numpy(np.concatenate([points, visibility], axis=2)).float()


def draw_large_images(count: int = 2, seed: int = 7) -> list[dict]:
    """Return records of generated images of about 640 px with an object for each level of an FPN,
    output at a quarter of it.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    records = []
    for _ in range(count):
        height, width = rng.integers(620, 660, 2).tolist()
        pixels = np.kron(
            rng.uniform(0, 255, (3, -(-height // 16), -(-width // 16))), np.ones((16, 16))
        )[:, :height, :width]
        sides = np.array([70, 160, 300, 540])[:, None] + rng.uniform(-10, 10, (4, 2))
        corners = rng.uniform(0, np.array([width, height]) - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1)
        for x0, y0, x1, y1 in boxes[::-1].astype(int):
            pixels[:, y0:y1, x0:x1] += rng.uniform(-120, 120, (3, 1, 1))
        records.append(
            {
                "image": torch.from_numpy(np.round(pixels.clip(0, 255)).astype(np.float32)),
                "gt_boxes": torch.from_numpy(boxes).float(),
                "gt_classes": torch.from_numpy(rng.integers(0, NUM_CLASSES, 4)),
                "gt_masks": [
                    [[x0, y0, x1, (y0 + y1) / 2, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()
                ],
                "height": height // 4,
                "width": width // 4,
            }
        )
    return records


def real_records(coco_folder: Path, count: int, *, short_side: int) -> list[dict]:
    """Return small images of COCO val with their boxes and polygons, classes folded into
    NUM_CLASSES; fewer where the folder has fewer.
    """
    import cv2
    from pycocotools.coco import COCO

    coco = COCO(coco_folder / "annotations" / "instances_val2017.json")
    records = []
    for image in sorted(coco.imgs.values(), key=lambda image: image["id"]):
        annotations = coco.imgToAnns[image["id"]]
        annotations = [a for a in annotations if not a["iscrowd"] and min(a["bbox"][2:]) > 4]
        pixels = cv2.imread(str(coco_folder / "val2017" / image["file_name"]))
        if (
            pixels is None or not 1 <= len(annotations) <= 5
        ):  # each object is one more region for float64's slow convolutions
            continue
        scale = short_side / min(pixels.shape[:2])
        pixels = cv2.resize(
            pixels[:, :, ::-1], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
        )
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        records.append(
            {
                "image": torch.from_numpy(pixels.copy()).permute(2, 0, 1).float(),
                "height": image["height"],
                "width": image["width"],
                "gt_boxes": boxes * scale,
                "gt_classes": torch.tensor([a["category_id"] % NUM_CLASSES for a in annotations]),
                "gt_masks": [
                    [(np.array(p) * scale).tolist() for p in a["segmentation"]] for a in annotations
                ],
            }
        )
        if len(records) == count:
            break
    return records


def real_batches(coco_folder: Path, *, masks: bool) -> list[list[dict]]:
    """Return the real images of the fixtures in batches; with masks, outputs are as small as the
    images, a quarter larger.
    """
    records = real_records(coco_folder, NUM_REAL_IMAGES, short_side=64)
    for record in records if masks else ():
        record["height"], record["width"] = (5 * side // 4 for side in record["image"].shape[1:])
    return in_batches(records)


def real_people(coco_folder: Path) -> list[tuple[dict, ResizeAndFlip]]:
    """Return records of images with people and keypoints, and the change of each: to 64 px, every
    second one mirrored.

    Left out are boxes of whole numbers, which Detectron2 rounds when it scales them.
    """
    file = coco_folder / "annotations" / "person_keypoints_val2017.json"
    contents = read_coco(file, coco_folder / "val2017")
    chosen = []
    for record in contents.records:
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        whole = any(all(float(v).is_integer() for v in a["bbox"]) for a in objects)
        if not 1 <= len(objects) <= 4 or not labelled_keypoints(record) or whole:
            continue
        shape = record["height"], record["width"]
        flip = "horizontal" if len(chosen) % 2 else "none"
        new_shape = resized_shape(*shape, shorter_edge=64, max_size=160)
        chosen.append((record, ResizeAndFlip(shape, new_shape, flip)))
    return chosen[:NUM_REAL_IMAGES]


def real_people_batches(coco_folder: Path) -> list[list[dict]]:
    """Return the images with people as this project maps them, in batches."""
    file = coco_folder / "annotations" / "person_keypoints_val2017.json"
    names = read_coco(file, coco_folder / "val2017").keypoint_names
    mapper = TrainMapper((64,), 160, keypoint_mirror=mirror_of(names))
    items = [
        mapper.apply(record, read_and_check(record, "RGB"), change)
        for record, change in real_people(coco_folder)
    ]
    return in_batches(items)


def in_batches(records: list[dict]) -> list[list[dict]]:
    return [records[start : start + REAL_BATCH] for start in range(0, len(records), REAL_BATCH)]


def image_checksums(records: list[dict]) -> list[int]:
    """Return a checksum of each image's pixels, which tells whether JPEG is decoded here as where
    a fixture was made.
    """
    return [
        zlib.crc32(record["image"].to(torch.uint8).contiguous().numpy().tobytes())
        for record in records
    ]
