"""What Detectron2 computes on the cases of ``detector_cases``; run as a script it writes the
numbers that the tests compare with.

    python tests/finetune/torchvision_engine/make_detectron2_fixtures.py [CASE ...]
    python tests/finetune/torchvision_engine/make_detectron2_fixtures.py --real ../shared/data/coco
    [CASE ...]

Needs Detectron2 (facebookresearch/detectron2@02b5c4e was used). The live tests import its
functions. The numbers of the first fourteen cases were made twice: with heads and a trunk written
    for this script, before our Detectron2 engine existed, and with that engine's; they were equal.

The fixtures are computed in float64: a network of random weights enlarges rounding about a
    thousandfold, and float32 on another
processor, or summed in another order, would differ by more than the tests allow. Boxes are float32
in either case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import detector_cases as cases
import numpy as np
import torch
import torchvision
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.solver import build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from fixture_format import pack, summarise
from pycocotools import mask as mask_api

import moco_transfer.finetune.detectron2_engine  # noqa: F401 - registers the heads and the trunk that Detectron2 lacks

FIXTURES = Path(__file__).parent / "fixtures"


def as_detectron2(records: list[dict]) -> list[dict]:
    """Return a batch in Detectron2's form."""
    batch = []
    for record in records:
        instances = Instances(tuple(record["image"].shape[1:]))
        instances.gt_boxes = Boxes(record["gt_boxes"].clone())
        instances.gt_classes = record["gt_classes"].clone()
        masks = record.get("gt_masks")
        if masks is not None and isinstance(masks[0], dict):
            instances.gt_masks = BitMasks(np.stack([mask_api.decode(rle) for rle in masks]))
        elif masks is not None:
            instances.gt_masks = PolygonMasks([[np.array(p) for p in mask] for mask in masks])
        if "gt_keypoints" in record:
            instances.gt_keypoints = Keypoints(record["gt_keypoints"].clone())
        keep = {key: record[key] for key in ("image", "height", "width")}
        batch.append({**keep, "instances": instances})
    return batch


def people_of_detectron2(coco_folder: Path) -> list[list[dict]]:
    """Return the images of ``detector_cases.real_people`` as Detectron2 itself reads, resizes and
    mirrors them, in batches.
    """
    file = coco_folder / "annotations" / "person_keypoints_val2017.json"
    read = load_coco_json(str(file), str(coco_folder / "val2017"), "keypoints_coco_2017_val")
    records = {record["image_id"]: record for record in read}
    indices = create_keypoint_hflip_indices("keypoints_coco_2017_train")
    batch = []
    for ours, change in cases.real_people(coco_folder):
        changes = [T.ResizeShortestEdge([64], 160, "choice")]
        changes += [T.RandomFlip(1.0)] if change.flip == "horizontal" else []
        mapper = DatasetMapper(
            True,
            augmentations=changes,
            image_format="RGB",
            use_keypoint=True,
            keypoint_hflip_indices=indices,
        )
        batch.append(mapper(records[ours["image_id"]]))
    return cases.in_batches(batch)


def build_reference(cfg, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return Detectron2's model for a config, with the given weights."""
    model = build_model(cfg)
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def infer(model: torch.nn.Module, records: list[dict]) -> list[dict]:
    """Return for each image Detectron2's proposals and detections."""
    model.eval()
    batch = records if "instances" in records[0] else as_detectron2(records)
    images = model.preprocess_image(batch)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    outputs = []
    for found, output in zip(proposals, model(batch), strict=True):
        instances = output["instances"]
        outputs.append(
            {
                "proposals": found.proposal_boxes.tensor,
                "logits": found.objectness_logits,
                "boxes": instances.pred_boxes.tensor,
                "scores": instances.scores,
                "classes": instances.pred_classes,
            }
            | {
                name: instances.get(f"pred_{name}")
                for name in ("masks", "keypoints")
                if instances.has(f"pred_{name}")
            }
        )
    return outputs


def train_step(model: torch.nn.Module, records: list[dict]) -> dict:
    """Return losses, gradients' norms and BN statistics after one forward and backward pass."""
    model.train()
    model.zero_grad()
    with EventStorage():
        losses = model(records if "instances" in records[0] else as_detectron2(records))
    sum(losses.values()).backward()
    return summarise(model, losses)


@contextlib.contextmanager
def nms_in_float32():
    """Let Detectron2 run in float64: its NMS takes float32 boxes with scores of any type,
    torchvision's wants equal types.
    """
    modules = (proposal_utils, fast_rcnn)
    original = [module.batched_nms for module in modules]

    def cast(boxes, scores, ids, threshold):
        return torchvision.ops.batched_nms(boxes.float(), scores.float(), ids, threshold)

    for module in modules:
        module.batched_nms = cast
    try:
        yield
    finally:
        for module, function in zip(modules, original, strict=True):
            module.batched_nms = function


def learning_rates(cfg) -> list[float]:
    """Return the learning rate of every iteration of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def generated(case: str) -> dict[str, np.ndarray]:
    """Return the fixture of a case on generated images."""
    model = build_model(cases.make_config(case)).double()
    weights = cases.draw_weights(model)
    shapes = {
        "state_dict": np.array(
            json.dumps({name: list(tensor.shape) for name, tensor in weights.items()})
        )
    }
    return shapes | run(model, weights, [cases.images_of(case)])


def on_real_images(case: str, coco_folder: Path) -> dict[str, np.ndarray]:
    """Return the fixture of a case on images of COCO val."""
    if case.endswith("keypoint"):
        batches = people_of_detectron2(coco_folder)
    else:
        batches = cases.real_batches(coco_folder, masks=case.endswith("mask"))
    records = [record for batch in batches for record in batch]
    if len(records) < cases.NUM_REAL_IMAGES:
        raise SystemExit(
            f"{coco_folder} has only {len(records)} usable images, {cases.NUM_REAL_IMAGES} are"
            " needed"
        )
    model = build_model(cases.make_config(case, **cases.REAL_SETTINGS)).double()
    checksums = {"checksums": np.array(cases.image_checksums(records), np.uint32)}
    return checksums | run(model, cases.draw_weights(model), batches)


def run(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], batches: list[list[dict]]
) -> dict[str, np.ndarray]:
    """Return the arrays of inference on all batches and of a training step on each, every one from
    the given weights.
    """
    model.load_state_dict(weights)
    with nms_in_float32():
        outputs = [output for batch in batches for output in infer(model, batch)]
        steps = []
        for batch in batches:
            model.load_state_dict(weights)
            steps.append(train_step(model, batch))
    return pack(outputs, steps)


def main() -> None:
    """Write the fixtures that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="default: all of either kind")
    parser.add_argument(
        "--real",
        type=Path,
        metavar="COCO",
        help="make those on real images, from this folder in COCO's layout",
    )
    args = parser.parse_args()
    if not args.real:
        rates = {name: learning_rates(cases.make_solver_config(name)) for name in cases.SCHEDULES}
        (FIXTURES / "learning_rates.json").write_text(json.dumps(rates))
    for case in args.cases or (cases.REAL_CASES if args.real else cases.CASES):
        arrays = on_real_images(case, args.real) if args.real else generated(case)
        file = FIXTURES / f"{'real_' if args.real else ''}{case}.npz"
        np.savez_compressed(file, **arrays)
        print(
            file.name,
            file.stat().st_size,
            arrays["losses"].tolist(),
            arrays["counts"].tolist(),
            flush=True,
        )


if __name__ == "__main__":
    main()
