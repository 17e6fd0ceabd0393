"""The engine computes what Detectron2 computes: against committed numbers, and live where Detectron2 is installed.

Seen red under: the FPN's top-down path without the addition; anchors offset by half a cell; ``aligned`` of RoIAlign flipped; delta weights
of the second stage set to 1; box loss divided by the foreground regions only; the extra norm left out of C4; masks cut at .4.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from detector_cases import CASES, NUM_CLASSES, draw_pictures, draw_weights, make_config
from pycocotools.coco import COCO

from moco_transfer.finetune.torchvision_engine.build import build_model

FIXTURES = Path(__file__).parent / "fixtures"
# A mask detector's box branch is the Faster detector's: without the slow ones each architecture is still covered.
SLOW = {"r18_c4", "r50_c4", "r50_c4_mask", "r50_fpn", "r50_dc5", "rx50_fpn"}
BENCHMARK = [case for case in CASES if case.removesuffix("_mask") in ("r18_c4", "r18_fpn", "r50_c4", "r50_fpn", "r50_dc5")]


def fixture_cases() -> list:
    return [pytest.param(case, marks=pytest.mark.slow if case in SLOW else []) for case in CASES]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in another order would differ in their last bits; so would two processes' speed on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_drawn(case: str, dtype: torch.dtype) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model = build_model(make_config(case)).to(dtype)
    weights = draw_weights(model)
    model.load_state_dict(weights)
    return model, weights


@torch.no_grad()
def infer(model: torch.nn.Module, records: list[dict]) -> list[dict]:
    """Proposals and detections, in the form of ``make_detectron2_fixtures.infer``."""
    model.eval()
    images = model.preprocess(records)
    proposals, _ = model.proposal_generator(model.backbone(images.tensor), images.sizes)
    return [
        {"proposals": found.boxes, "logits": found.logits, **output}
        for found, output in zip(proposals, model(records), strict=True)
    ]


def train_step(model: torch.nn.Module, records: list[dict]) -> dict[str, dict[str, float]]:
    """The numbers of ``make_detectron2_fixtures.train_step``."""
    model.train()
    model.zero_grad()
    losses = model(records)
    sum(losses.values()).backward()
    return {
        "losses": {name: loss.item() for name, loss in losses.items()},
        "gradient_norms": {n: p.grad.double().norm().item() for n, p in model.named_parameters() if p.grad is not None},
        "buffer_norms": {n: v.double().norm().item() for n, v in model.state_dict().items() if "running_" in n},
    }


class Limits(NamedTuple):
    """Largest difference of a score, of a box in px of the original picture, and of a mask's pixels beside its IoU."""

    score: float = 1e-5
    box_px: float = 0.01
    mask_px: int = 0


EXACT = Limits()


def check_outputs(ours: list[dict], theirs: list[dict], limits: Limits = EXACT) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        torch.testing.assert_close(our["proposals"], their["proposals"], rtol=0, atol=0.01)
        torch.testing.assert_close(our["logits"].double(), their["logits"].double(), rtol=0, atol=1e-4)
        torch.testing.assert_close(our["boxes"], their["boxes"], rtol=0, atol=limits.box_px)
        torch.testing.assert_close(our["scores"].double(), their["scores"].double(), rtol=0, atol=limits.score)
        assert our["classes"].tolist() == their["classes"].tolist()
        if "masks" in our:
            overlap = (our["masks"] & their["masks"]).flatten(1).sum(1)
            union = (our["masks"] | their["masks"]).flatten(1).sum(1)
            assert (overlap >= 0.999 * union - limits.mask_px).all()


def float32_limits(float32: list[dict], float64: list[dict]) -> Limits:
    """Twice what Detectron2's own float32 lies from its float64 at worst, and at least the limits that float64 is held to."""

    def largest(name: str) -> float:
        pairs = [(a[name].double(), b[name].double()) for a, b in zip(float32, float64, strict=True)]
        return max((a - b).abs().max().item() for a, b in pairs if a.numel())

    masks = [(a["masks"], b["masks"]) for a, b in zip(float32, float64, strict=True) if len(a.get("masks", ()))]
    flipped = max((int((a ^ b).flatten(1).sum(1).max()) for a, b in masks), default=0)
    return Limits(max(EXACT.score, 2 * largest("scores")), max(EXACT.box_px, 2 * largest("boxes")), 2 * flipped)


def check_step(ours: dict, theirs: dict) -> None:
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["gradient_norms"] == pytest.approx(theirs["gradient_norms"], rel=1e-4, abs=1e-9)
    assert ours["buffer_norms"] == pytest.approx(theirs["buffer_norms"], rel=1e-6)


@pytest.mark.parametrize("case", fixture_cases())
def test_committed_numbers__inference_and_training_step(case):
    fixture = np.load(FIXTURES / f"{case}.npz")
    model, weights = build_drawn(case, torch.float64)
    records = draw_pictures()
    theirs = []
    for index in range(len(records)):
        names = ("proposals", "logits", "boxes", "scores", "classes")
        output = {name: torch.from_numpy(fixture[f"{index}.{name}"]) for name in names}
        if f"{index}.masks" in fixture:
            shape = fixture[f"{index}.masks_shape"]
            bits = np.unpackbits(fixture[f"{index}.masks"])[: np.prod(shape)]
            output["masks"] = torch.from_numpy(bits.reshape(shape).astype(bool))
        theirs.append(output)
    assert any(len(their["boxes"]) for their in theirs), "a fixture without detections compares nothing"
    check_outputs(infer(model, records), theirs)
    model.load_state_dict(weights)
    numbers = {name: json.loads(str(fixture[name])) for name in ("losses", "gradient_norms", "buffer_norms")}
    check_step(train_step(model, records), numbers)


@pytest.mark.parametrize("case", CASES)
def test_committed_numbers__state_dict_has_the_same_keys_and_shapes(case):
    with torch.device("meta"):
        state = build_model(make_config(case)).state_dict()
    expected = json.loads(str(np.load(FIXTURES / f"{case}.npz")["state_dict"]))
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


def real_records(coco_folder: Path, count: int, *, short_side: int) -> list[dict]:
    """Pictures of COCO val with their boxes and polygons, small, classes folded into NUM_CLASSES."""
    coco = COCO(coco_folder / "annotations" / "instances_val2017.json")
    records = []
    for image in sorted(coco.imgs.values(), key=lambda image: image["id"]):
        annotations = coco.imgToAnns[image["id"]]
        annotations = [a for a in annotations if not a["iscrowd"] and min(a["bbox"][2:]) > 4]
        picture = cv2.imread(str(coco_folder / "val2017" / image["file_name"]))
        if picture is None or not 1 <= len(annotations) <= 5:  # each object is one more region for float64's slow convolutions
            continue
        scale = short_side / min(picture.shape[:2])
        picture = cv2.resize(picture[:, :, ::-1], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        records.append(
            {
                "image": torch.from_numpy(picture.copy()).permute(2, 0, 1).float(),
                "height": image["height"],
                "width": image["width"],
                "gt_boxes": boxes * scale,
                "gt_classes": torch.tensor([a["category_id"] % NUM_CLASSES for a in annotations]),
                "gt_masks": [[(np.array(p) * scale).tolist() for p in a["segmentation"]] for a in annotations],
            }
        )
        if len(records) == count:
            return records
    pytest.skip(f"only {len(records)} usable pictures in {coco_folder}")


@pytest.mark.detectron2
@pytest.mark.slow
@pytest.mark.parametrize("case", BENCHMARK)
def test_live__twenty_real_pictures(case, shared_data):
    """In float64, so that what differs is what the engines compute and not how they round; then float32 beside Detectron2's own float32."""
    import make_detectron2_fixtures as reference

    model, weights = build_drawn(case, torch.float64)
    detectron2 = reference.build_reference(make_config(case), weights).double()
    records = real_records(shared_data / "coco", 20, short_side=64)
    batches = [records[start : start + 4] for start in range(0, len(records), 4)]
    with reference.nms_in_float32():
        exact = [reference.infer(detectron2, batch) for batch in batches]
        assert sum(len(their["boxes"]) for outputs in exact for their in outputs) > 20
        for batch, theirs in zip(batches, exact, strict=True):
            check_outputs(infer(model, batch), theirs)
        for batch in batches:
            detectron2.load_state_dict(weights)
            model.load_state_dict(weights)
            check_step(train_step(model, batch), reference.train_step(detectron2, batch))
    model = build_drawn(case, torch.float32)[0]
    detectron2 = reference.build_reference(make_config(case), weights)
    exact = [output for outputs in exact for output in outputs]
    limits = float32_limits([output for batch in batches for output in reference.infer(detectron2, batch)], exact)
    check_outputs([output for batch in batches for output in infer(model, batch)], exact, limits)


@pytest.mark.detectron2
@pytest.mark.parametrize("case", ["r18_fpn_gn_frozen", "r18_fpn_head_conv", "r18_fpn_mask"])
def test_live__generated_pictures(case):
    import make_detectron2_fixtures as reference

    model, weights = build_drawn(case, torch.float64)  # the order of detections of nearly equal scores is rounding's in float32
    detectron2 = reference.build_reference(make_config(case), weights).double()
    records = draw_pictures(seed=1)
    with reference.nms_in_float32():
        check_outputs(infer(model, records), reference.infer(detectron2, records))
        detectron2.load_state_dict(weights)
        model.load_state_dict(weights)
        check_step(train_step(model, records), reference.train_step(detectron2, records))


@pytest.mark.detectron2
def test_live__sampling_draws_what_detectron2_draws():
    """With sampling sizes that leave most out, equal seeds draw equal anchors and regions: the losses are equal too."""
    import make_detectron2_fixtures as reference

    cfg = make_config("r18_fpn", MODEL__RPN__BATCH_SIZE_PER_IMAGE=16, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=8)
    model = build_model(cfg).double()
    weights = draw_weights(model)
    model.load_state_dict(weights)
    detectron2 = reference.build_reference(cfg, weights).double()
    records = draw_pictures()
    with reference.nms_in_float32():
        torch.manual_seed(5)
        theirs = reference.train_step(detectron2, records)
        torch.manual_seed(5)
        check_step(train_step(model, records), theirs)


@pytest.mark.detectron2
@pytest.mark.parametrize("case", ["r18_c4", "r18_fpn_mask"])
def test_live__initial_weights_have_detectron2s_spread(case):
    """Means and standard deviations of every drawn tensor agree as far as its size lets them."""
    import make_detectron2_fixtures as reference

    torch.manual_seed(0)
    theirs = reference.build_model(make_config(case)).state_dict()
    for name, tensor in build_model(make_config(case)).state_dict().items():
        their = theirs[name]
        if tensor.numel() < 500 or tensor.unique().numel() < 10:  # biases, norms: constants
            assert torch.equal(tensor, their) or tensor.dim() > 1, name
            continue
        assert tensor.std().item() == pytest.approx(their.std().item(), rel=4 / tensor.numel() ** 0.5 + 0.02), name
        assert tensor.abs().max().item() / tensor.std().item() == pytest.approx(
            (their.abs().max() / their.std()).item(), rel=0.35
        ), name  # tells a uniform distribution from a normal one
