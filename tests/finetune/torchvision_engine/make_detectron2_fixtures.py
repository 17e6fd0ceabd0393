"""What Detectron2 computes on the cases of ``detector_cases``; run as a script it writes the numbers that the tests compare with.

    python tests/finetune/torchvision_engine/make_detectron2_fixtures.py [CASE ...]

Needs Detectron2 (facebookresearch/detectron2@02b5c4e was used). The live tests import its functions. The committed numbers are older than
our Detectron2 engine: they were made with heads and a trunk written for this script.

The fixtures are computed in float64: a network of random weights enlarges rounding about a thousandfold, and float32 on another
processor, or summed in another order, would differ by more than the tests allow. Boxes are float32 in either case.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

import moco_transfer.finetune.detectron2_engine  # noqa: F401 - registers the heads and the trunk that Detectron2 lacks

FIXTURES = Path(__file__).parent / "fixtures"


def as_detectron2(records: list[dict]) -> list[dict]:
    """Return a batch in Detectron2's form."""
    batch = []
    for record in records:
        instances = Instances(tuple(record["image"].shape[1:]))
        instances.gt_boxes = Boxes(record["gt_boxes"].clone())
        instances.gt_classes = record["gt_classes"].clone()
        if "gt_masks" in record:
            instances.gt_masks = PolygonMasks([[np.array(p) for p in polygons] for polygons in record["gt_masks"]])
        keep = {key: record[key] for key in ("image", "height", "width")}
        batch.append({**keep, "instances": instances})
    return batch


def build_reference(cfg, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return Detectron2's model for a config, with the given weights."""
    model = build_model(cfg)
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def infer(model: torch.nn.Module, records: list[dict]) -> list[dict]:
    """Return for each picture Detectron2's proposals and detections."""
    model.eval()
    batch = as_detectron2(records)
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
            | ({"masks": instances.pred_masks} if instances.has("pred_masks") else {})
        )
    return outputs


def train_step(model: torch.nn.Module, records: list[dict]) -> dict:
    """Return losses, the norm of every gradient and the norm of every buffer after one forward and backward pass."""
    model.train()
    model.zero_grad()
    with EventStorage():
        losses = model(as_detectron2(records))
    sum(losses.values()).backward()
    return summarise(model, losses)


def summarise(model: torch.nn.Module, losses: dict[str, torch.Tensor]) -> dict:
    """Return plain numbers of a training step of either engine."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "gradient_norms": {name: float(grad.double().norm()) for name, grad in gradients.items()},
        "buffer_norms": {
            name: float(value.double().norm()) for name, value in model.state_dict().items() if "running_" in name
        },
    }


@contextlib.contextmanager
def nms_in_float32():
    """Let Detectron2 run in float64: its NMS takes float32 boxes with scores of any type, torchvision's wants equal types."""
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


def main() -> None:
    """Write the fixtures of the named cases, of all by default."""
    from detector_cases import CASES, SCHEDULES, draw_pictures, draw_weights, make_config, make_solver_config

    FIXTURES.mkdir(exist_ok=True)
    rates = {name: learning_rates(make_solver_config(name)) for name in SCHEDULES}
    (FIXTURES / "learning_rates.json").write_text(json.dumps(rates))
    for case in sys.argv[1:] or CASES:
        model = build_model(make_config(case)).double()
        weights = draw_weights(model)
        records = draw_pictures()
        arrays = {"state_dict": _text({name: list(tensor.shape) for name, tensor in weights.items()})}
        model.load_state_dict(weights)
        with nms_in_float32():
            for index, output in enumerate(infer(model, records)):
                if "masks" in output:
                    arrays[f"{index}.masks_shape"] = np.array(output["masks"].shape)
                    output["masks"] = torch.from_numpy(np.packbits(output["masks"].numpy()))
                arrays |= {f"{index}.{name}": value.numpy() for name, value in output.items()}
            model.load_state_dict(weights)
            arrays |= {name: _text(numbers) for name, numbers in train_step(model, records).items()}
        np.savez_compressed(FIXTURES / f"{case}.npz", **arrays)
        print(case, arrays["losses"], [len(arrays[f"{i}.boxes"]) for i in range(len(records))], flush=True)


def _text(numbers: dict) -> np.ndarray:
    return np.array(json.dumps(numbers))


if __name__ == "__main__":
    main()
