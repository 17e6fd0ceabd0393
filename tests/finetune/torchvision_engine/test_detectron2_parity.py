"""The engine computes what Detectron2 computes: against committed numbers, and live where
Detectron2 is installed.

Seen red under: the FPN's top-down path without the addition; anchors offset by half a cell;
    ``aligned`` of RoIAlign flipped; delta weights
of the second stage set to 1; box loss divided by the foreground regions only; the extra norm left
out of C4; masks cut at .4. Where every level is pooled: regions given back in the order of their
levels; 230 px for the canonical 224; p5 never used. BN statistics of the channels in reverse order,
their norms the same; on real images: pixels 1.0001 times as large, boxes scaled by the width
alone. Keypoints: the box's right edge taken for outside; half a pixel left out of the decoding;
    the width in whole pixels; bilinear for bicubic; scores normalised over the pixels; the loss
    divided by another number; left and right not swapped in a mirrored image.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from detector_cases import (
    BENCHMARK,
    CASES,
    NUM_REAL_IMAGES,
    REAL_BATCH,
    REAL_CASES,
    REAL_SETTINGS,
    draw_images,
    draw_weights,
    image_checksums,
    images_of,
    make_config,
    real_batches,
    real_people_batches,
    real_records,
)
from fixture_format import digest, summarise, unpack_outputs, unpack_step

from moco_transfer.finetune.torchvision_engine.build import build_model

FIXTURES = Path(__file__).parent / "fixtures"
# A mask detector's box branch is the Faster detector's: without the slow ones each architecture is
# still covered.
SLOW = {"r18_c4", "r50_c4", "r50_c4_mask", "r50_fpn", "r50_dc5", "rx50_fpn", "r101_c4"}
SLOW |= {"r50_fpn_keypoint"}
REAL_BY_DEFAULT = ("r18_fpn_mask", "r18_c4", "r50_c4", "r18_fpn_keypoint")
NUM_BATCHES = NUM_REAL_IMAGES // REAL_BATCH


def fixture_cases() -> list:
    return [pytest.param(case, marks=pytest.mark.slow if case in SLOW else []) for case in CASES]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in another order would differ in their last bits; so would two processes' speed on a
    busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_drawn(
    case: str, dtype: torch.dtype, **overrides: object
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model = build_model(make_config(case, **overrides)).to(dtype)
    weights = draw_weights(model)
    model.load_state_dict(weights)
    return model, weights


@torch.no_grad()
def infer(model: torch.nn.Module, records: list[dict]) -> list[dict]:
    """Proposals and detections, in the form of ``make_detectron2_fixtures.infer``."""
    proposals: list = []
    hook = model.proposal_generator.register_forward_hook(
        lambda module, inputs, output: proposals.extend(zip(output[0], output[1], strict=True))
    )
    outputs = model.eval()(records)
    hook.remove()
    return [
        {"proposals": boxes, "logits": logits, **output}
        for (boxes, logits), output in zip(proposals, outputs, strict=True)
    ]


def train_step(model: torch.nn.Module, records: list[dict]) -> dict[str, dict]:
    """The numbers of ``make_detectron2_fixtures.train_step``."""
    model.train()
    model.zero_grad()
    losses = model(records)
    sum(losses.values()).backward()
    return summarise(model, losses)


class Limits(NamedTuple):
    """Largest difference of a score, of a box in px of the original image, and of a mask's pixels
    next to its IoU.
    """

    score: float = 1e-5
    box_px: float = 0.01
    mask_px: int = 0


EXACT = Limits()


def check_outputs(ours: list[dict], theirs: list[dict], limits: Limits = EXACT) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        torch.testing.assert_close(our["proposals"], their["proposals"], rtol=0, atol=0.01)
        torch.testing.assert_close(
            our["logits"].double(), their["logits"].double(), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(our["boxes"], their["boxes"], rtol=0, atol=limits.box_px)
        torch.testing.assert_close(
            our["scores"].double(), their["scores"].double(), rtol=0, atol=limits.score
        )
        assert our["classes"].tolist() == their["classes"].tolist()
        if "keypoints" in our:
            points, expected = our["keypoints"].double(), their["keypoints"].double()
            torch.testing.assert_close(points[..., :2], expected[..., :2], rtol=0, atol=0.01)
            torch.testing.assert_close(points[..., 2], expected[..., 2], rtol=0, atol=1e-5)
        if "masks" in our:
            overlap = (our["masks"] & their["masks"]).flatten(1).sum(1)
            union = (our["masks"] | their["masks"]).flatten(1).sum(1)
            assert (overlap >= 0.999 * union - limits.mask_px).all()


# Our sums run in another order (channels last, norms folded into filters). Measured at worst on the
# twenty images with R18-C4: boxes 0.015 px and scores 1.3e-5 from float64, where Detectron2's own
# float32 lies 0.003 px and 5e-6 from it; with R50-DC5 62 of a mask's 10,693 pixels flip, where
# Detectron2's own float32 flips 20. With equal kernels the trunks round equally.
FLOAT32_FACTOR = 8


def float32_limits(float32: list[dict], float64: list[dict]) -> Limits:
    """A multiple of what Detectron2's own float32 lies from its float64 at worst, and at least the
    limits that float64 is held to.
    """

    def largest(name: str) -> float:
        pairs = [
            (a[name].double(), b[name].double()) for a, b in zip(float32, float64, strict=True)
        ]
        return FLOAT32_FACTOR * max((a - b).abs().max().item() for a, b in pairs if a.numel())

    masks = [
        (a["masks"], b["masks"])
        for a, b in zip(float32, float64, strict=True)
        if len(a.get("masks", ()))
    ]
    flipped = max((int((a ^ b).flatten(1).sum(1).max()) for a, b in masks), default=0)
    return Limits(
        max(EXACT.score, largest("scores")),
        max(EXACT.box_px, largest("boxes")),
        FLOAT32_FACTOR * flipped,
    )


def check_step(ours: dict, theirs: dict) -> None:
    """``theirs`` holds BN statistics themselves, or digests of them."""
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["gradient_norms"] == pytest.approx(theirs["gradient_norms"], rel=1e-4, abs=1e-9)
    assert ours["statistics"].keys() == theirs["statistics"].keys()
    for name, values in ours["statistics"].items():
        their = theirs["statistics"][name]
        values = (
            torch.tensor(digest(name, values), dtype=torch.float64)
            if isinstance(their, list)
            else values
        )
        their = torch.as_tensor(their, dtype=torch.float64)
        scale = max(their.abs().max().item(), 1e-3)
        torch.testing.assert_close(
            values, their, rtol=0, atol=1e-6 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def levels(boxes: torch.Tensor) -> list[int]:
    """How many boxes (px of the image that goes in) are pooled from p2, p3, p4 and p5: from 112,
    224 and 448 px on from the next.
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).double().sqrt()
    return torch.bincount(
        torch.bucketize(
            sides, torch.tensor([112.0, 224.0, 448.0], dtype=torch.float64), right=True
        ),
        minlength=4,
    ).tolist()


def check_every_level_is_pooled(records: list[dict], outputs: list[dict]) -> None:
    """Of proposals (the box branch in inference), detections (the mask branch) and objects (both in
    training).
    """
    scales = [record["image"].shape[2] / record["width"] for record in records]
    detections = torch.cat(
        [output["boxes"] * scale for output, scale in zip(outputs, scales, strict=True)]
    )
    for boxes in (
        torch.cat([output["proposals"] for output in outputs]),
        detections,
        torch.cat([r["gt_boxes"] for r in records]),
    ):
        assert all(levels(boxes)), levels(boxes)


@pytest.mark.parametrize("case", fixture_cases())
def test_committed_numbers__inference_and_training_step(case):
    fixture = np.load(FIXTURES / f"{case}.npz")
    model, weights = build_drawn(case, torch.float64)
    records, theirs = images_of(case), unpack_outputs(fixture)
    assert any(len(their["boxes"]) for their in theirs), (
        "a fixture without detections compares nothing"
    )
    if case.endswith("levels"):
        check_every_level_is_pooled(records, theirs)
    check_outputs(infer(model, records), theirs)
    model.load_state_dict(weights)
    check_step(train_step(model, records), unpack_step(fixture, 0))


@functools.cache
def build_real(case: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a detector for the real images and its weights, which a training step changes."""
    return build_drawn(case, torch.float64, **REAL_SETTINGS)


@functools.cache
def real_fixture(case: str, shared_data: Path) -> tuple[dict[str, np.ndarray], list[list[dict]]]:
    """The numbers on real images, and these in batches."""
    with np.load(FIXTURES / f"real_{case}.npz") as file:
        fixture = dict(file)
    if case.endswith("keypoint"):
        batches = real_people_batches(shared_data / "coco")
    else:
        batches = real_batches(shared_data / "coco", masks=case.endswith("mask"))
    if (
        image_checksums([record for batch in batches for record in batch])
        != fixture["checksums"].tolist()
    ):
        pytest.skip(
            f"the images in {shared_data / 'coco'}, or what this machine's JPEG decoder makes of"
            " them, are not the fixture's"
        )
    return fixture, batches


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in REAL_BY_DEFAULT else pytest.mark.slow) for c in REAL_CASES],
)
def test_committed_numbers__inference_on_twenty_real_images(case, shared_data):
    fixture, batches = real_fixture(case, shared_data)
    model, weights = build_real(case)
    model.load_state_dict(weights)
    theirs = unpack_outputs(fixture)
    assert (
        len(theirs) == NUM_REAL_IMAGES
        and sum(len(their["boxes"]) for their in theirs) > NUM_REAL_IMAGES
    )
    check_outputs([output for batch in batches for output in infer(model, batch)], theirs)


def training_batches() -> list:
    """Each of the five batches of each detector; R50-C4's second to fifth are slow ones, its first
    shows by default that it is equal.
    """
    default = {
        (case, batch)
        for case in REAL_BY_DEFAULT
        for batch in range(NUM_BATCHES)
        if batch == 0 or case != "r50_c4"
    }
    pairs = [(case, batch) for case in REAL_CASES for batch in range(NUM_BATCHES)]
    return [
        pytest.param(*pair, marks=[] if pair in default else pytest.mark.slow) for pair in pairs
    ]


@pytest.mark.parametrize(("case", "batch"), training_batches())
def test_committed_numbers__training_steps_on_twenty_real_images(case, batch, shared_data):
    fixture, batches = real_fixture(case, shared_data)
    model, weights = build_real(case)
    model.load_state_dict(weights)
    check_step(train_step(model, batches[batch]), unpack_step(fixture, batch))


@pytest.mark.parametrize("case", CASES)
def test_committed_numbers__state_dict_has_the_same_keys_and_shapes(case):
    with torch.device("meta"):
        state = build_model(make_config(case)).state_dict()
    expected = json.loads(str(np.load(FIXTURES / f"{case}.npz")["state_dict"]))
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.detectron2
@pytest.mark.slow
@pytest.mark.parametrize("case", BENCHMARK)
def test_live__twenty_real_images(case, shared_data):
    """In float64, so that what differs is what the engines compute and not how they round; then
    float32 next to Detectron2's own float32.
    """
    import make_detectron2_fixtures as reference

    model, weights = build_drawn(case, torch.float64)
    detectron2 = reference.build_reference(make_config(case), weights).double()
    records = real_records(shared_data / "coco", 20, short_side=64)
    if len(records) < 20:
        pytest.skip(f"only {len(records)} usable images in {shared_data / 'coco'}")
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
    limits = float32_limits(
        [output for batch in batches for output in reference.infer(detectron2, batch)], exact
    )
    check_outputs([output for batch in batches for output in infer(model, batch)], exact, limits)


@pytest.mark.detectron2
@pytest.mark.slow
def test_live__keypoints_of_twenty_real_images_as_detectron2_reads_and_mirrors_them(shared_data):
    import make_detectron2_fixtures as reference

    model, weights = build_drawn("r18_fpn_keypoint", torch.float64)
    config = make_config("r18_fpn_keypoint")
    detectron2 = reference.build_reference(config, weights).double()
    ours = real_people_batches(shared_data / "coco")
    theirs = reference.people_of_detectron2(shared_data / "coco")
    assert sum(map(len, ours)) == sum(map(len, theirs)) == NUM_REAL_IMAGES
    with reference.nms_in_float32():
        for our, their in zip(ours, theirs, strict=True):
            for m in (model, detectron2):
                m.load_state_dict(weights)
            outputs = reference.infer(detectron2, their)
            assert all(len(output["keypoints"]) for output in outputs)
            check_outputs(infer(model, our), outputs)
            check_step(train_step(model, our), reference.train_step(detectron2, their))


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "case",
    [
        "r18_fpn_gn_frozen",
        "r18_fpn_head_conv",
        "r18_fpn_mask",
        "r18_fpn_bitmask",
        "r34_fpn",
        "r50_fpn_mask_levels",
        "r18_fpn_keypoint",
        "r18_fpn_mask_keypoint",
    ],
)
def test_live__generated_images(case):
    import make_detectron2_fixtures as reference

    model, weights = build_drawn(
        case, torch.float64
    )  # the order of detections of nearly equal scores is rounding's in float32
    detectron2 = reference.build_reference(make_config(case), weights).double()
    records = images_of(case, live=True)
    with reference.nms_in_float32():
        theirs = reference.infer(detectron2, records)
        if case.endswith("levels"):
            check_every_level_is_pooled(records, theirs)
        check_outputs(infer(model, records), theirs)
        detectron2.load_state_dict(weights)
        model.load_state_dict(weights)
        check_step(train_step(model, records), reference.train_step(detectron2, records))


@pytest.mark.detectron2
def test_live__sampling_draws_what_detectron2_draws():
    """With sampling sizes that leave most out, equal seeds draw equal anchors and regions: the
    losses are equal too.
    """
    import make_detectron2_fixtures as reference

    cfg = make_config(
        "r18_fpn", MODEL__RPN__BATCH_SIZE_PER_IMAGE=16, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=8
    )
    model = build_model(cfg).double()
    weights = draw_weights(model)
    model.load_state_dict(weights)
    detectron2 = reference.build_reference(cfg, weights).double()
    records = draw_images()
    with reference.nms_in_float32():
        torch.manual_seed(5)
        theirs = reference.train_step(detectron2, records)
        torch.manual_seed(5)
        check_step(train_step(model, records), theirs)


@pytest.mark.detectron2
@pytest.mark.parametrize("case", ["r18_c4", "r18_fpn_mask", "r18_fpn_keypoint"])
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
        assert tensor.std().item() == pytest.approx(
            their.std().item(), rel=4 / tensor.numel() ** 0.5 + 0.02
        ), name
        assert tensor.abs().max().item() / tensor.std().item() == pytest.approx(
            (their.abs().max() / their.std()).item(), rel=0.35
        ), name  # tells a uniform distribution from a normal one
