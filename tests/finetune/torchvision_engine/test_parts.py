"""The pieces of the detector, one by one, against arithmetic by hand and independent
implementations.

Seen red under: clip to (height, width) swapped; IoU without the guard for empty boxes; matcher
    closed above instead of below; low-quality
matches left out; level of a box rounded; pooled boxes not put back in order; anchors of width and
height swapped; stride in the other convolution of a bottleneck; masks pasted without the half
pixel; NMS over all classes together; the mask of another class, its weight or its bias.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detector_cases import draw_images, draw_weights, make_config

from moco_transfer.finetune.torchvision_engine.backbones import ResNet, ResNetShape, pad_images
from moco_transfer.finetune.torchvision_engine.box_head import BoxPredictor, BoxSettings, Detections
from moco_transfer.finetune.torchvision_engine.boxes import (
    AnchorGenerator,
    cell_anchors,
    decode_boxes,
    encode_boxes,
    is_larger_than,
    pairwise_iou,
)
from moco_transfer.finetune.torchvision_engine.build import build_model
from moco_transfer.finetune.torchvision_engine.mask_head import MaskHead, paste_masks, rasterize
from moco_transfer.finetune.torchvision_engine.rcnn import to_original_size
from moco_transfer.finetune.torchvision_engine.roi_pool import RoIPooler, assign_levels
from moco_transfer.finetune.torchvision_engine.sampling import match, sample


def test_deltas__by_hand_and_back():
    source = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    target = torch.tensor([[5.0, 0.0, 25.0, 20.0]])
    # Centre (5, 10) -> (15, 10): 10 px are one width of 10. Width doubles: log 2. Times the weights
    # (10, 10, 5, 5).
    deltas = encode_boxes(source, target, weights=(10, 10, 5, 5))
    torch.testing.assert_close(deltas, torch.tensor([[10.0, 0.0, 5 * math.log(2), 0.0]]))
    torch.testing.assert_close(decode_boxes(deltas, source, weights=(10, 10, 5, 5)), target)
    # A box may grow at most 1000 / 16 times.
    huge = decode_boxes(torch.tensor([[0.0, 0.0, 99.0, 0.0]]), source, weights=(1, 1, 1, 1))
    torch.testing.assert_close(huge[0, 2] - huge[0, 0], torch.tensor(10 * 1000 / 16))


def test_decode__one_set_of_deltas_per_class():
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]])
    boxes = decode_boxes(deltas, torch.tensor([[0.0, 0.0, 10.0, 20.0]]), weights=(1, 1, 1, 1))
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0.0, 10.0, 20.0, 5.0, 0.0, 15.0, 20.0]]))


def test_boxes__size_and_iou_by_hand():
    boxes = torch.tensor([[-5.0, -5.0, 30.0, 30.0], [0.0, 0.0, 5.0, 0.0]])
    assert is_larger_than(boxes, 0).tolist() == [True, False]
    assert is_larger_than(boxes, 35).tolist() == [False, False]
    point = [1.0, 1.0, 1.0, 1.0]
    iou = pairwise_iou(
        torch.tensor([[0.0, 0.0, 4.0, 4.0], point]), torch.tensor([[2.0, 0.0, 6.0, 4.0], point])
    )
    torch.testing.assert_close(iou, torch.tensor([[8 / 24, 0.0], [0.0, 0.0]]))
    a, b = torch.rand(20, 4).cumsum(1), torch.rand(30, 4).cumsum(1)
    torch.testing.assert_close(pairwise_iou(a, b), torchvision.ops.box_iou(a, b))


def test_match__thresholds_closed_below_and_low_quality():
    iou = torch.tensor([[0.3, 0.7, 0.29, 0.0, 0.1], [0.0, 0.1, 0.0, 0.2, 0.2]])
    options = {"thresholds": (0.3, 0.7), "labels": (0, -1, 1)}
    index, label = match(iou, **options, allow_low_quality=False)
    assert index.tolist() == [0, 0, 0, 1, 1]
    assert label.tolist() == [-1, 1, 0, 0, 0]
    # The second object's best overlap, .2, is reached twice: both become positives.
    assert match(iou, **options, allow_low_quality=True)[1].tolist() == [-1, 1, 0, 1, 1]
    index, label = match(torch.zeros(0, 3), **options, allow_low_quality=True)
    assert index.tolist() == [0, 0, 0] and label.tolist() == [0, 0, 0]


def test_sample__numbers_and_membership():
    labels = torch.tensor([5] * 50 + [1, 0, 2, -1, 3])  # 5 is the background
    objects, background = sample(labels, num_samples=8, positive_fraction=0.25, background=5)
    assert len(objects) == 2 and len(background) == 6
    assert set(objects.tolist()) <= {50, 51, 52, 54} and set(background.tolist()) <= set(range(50))
    objects, background = sample(labels, num_samples=20, positive_fraction=0.9, background=5)
    assert len(objects) == 4 and len(background) == 16  # negatives fill up
    torch.manual_seed(0)
    first = sample(labels, num_samples=8, positive_fraction=0.25, background=5)
    torch.manual_seed(0)
    again = sample(labels, num_samples=8, positive_fraction=0.25, background=5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_anchors__by_hand():
    # Size 32, height / width 2: width 32 / sqrt 2, height twice that.
    width = 32 / math.sqrt(2)
    torch.testing.assert_close(
        cell_anchors([32], [2.0]), torch.tensor([[-width / 2, -width, width / 2, width]])
    )
    generator = AnchorGenerator(sizes=[[8, 16]], aspect_ratios=[[1.0]], strides=[4], offset=0.5)
    (grid,) = generator([(2, 3)])
    assert grid.shape == (2 * 3 * 2, 4) and generator.num_anchors == 2
    assert grid[0].tolist() == [2 - 4, 2 - 4, 2 + 4, 2 + 4]  # centre of cell (0, 0): half a stride
    assert grid[1].tolist() == [2 - 8, 2 - 8, 2 + 8, 2 + 8]
    assert grid[2].tolist() == [6 - 4, 2 - 4, 6 + 4, 2 + 4]  # then the next column
    assert grid[6].tolist() == [2 - 4, 6 - 4, 2 + 4, 6 + 4]  # then the next row
    assert not generator.state_dict()


def test_levels__sizes_around_the_canonical_224():
    sides = torch.tensor([10.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert assign_levels(boxes, min_level=2, max_level=5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pooler__keeps_the_order_of_boxes_over_levels():
    # Each level holds its own number: the pooled value tells which level a box was read from.
    features = [torch.full((2, 1, 256 // s, 256 // s), float(s)) for s in (4, 8, 16, 32)]
    small, large = [10.0, 10.0, 40.0, 40.0], [0.0, 0.0, 250.0, 250.0]
    pooler = RoIPooler(resolution=2, strides=(4, 8, 16, 32))
    pooled = pooler(features, [torch.tensor([large, small]), torch.tensor([small, large, small])])
    assert pooled[:, 0, 0, 0].tolist() == [16.0, 4.0, 4.0, 16.0, 4.0]
    assert pooler(features, [torch.zeros(0, 4), torch.zeros(0, 4)]).shape == (0, 1, 2, 2)


def test_pad__corner_multiple_and_zero():
    images = [torch.ones(3, 40, 33), torch.ones(3, 20, 70)]
    padded, sizes = pad_images(images, divisibility=32, memory_format=torch.contiguous_format)
    assert padded.shape == (2, 3, 64, 96) and sizes == [(40, 33), (20, 70)]
    assert padded[0, :, :40, :33].eq(1).all() and padded.sum() == 3 * (40 * 33 + 20 * 70)
    padded, _ = pad_images(images, divisibility=0, memory_format=torch.channels_last)
    assert padded.shape == (2, 3, 40, 70)


def test_trunk__equals_torchvisions_resnet():
    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = ResNet(ResNetShape(18, "BN", res2_out_channels=64), out_features=["res5"]).eval()
    state = {}
    for key, value in reference.state_dict().items():
        if key.startswith("fc."):
            continue
        parts = key.split(".")
        parts = (["stem"] if not key.startswith("layer") else []) + parts
        name = ".".join(parts)
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}.", f"res{stage + 1}.")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for conv in (1, 2):
            name = name.replace(f".bn{conv}.", f".conv{conv}.norm.")
        state[name] = value
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 64, 96)
    layers = torch.nn.Sequential(*list(reference.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(ours(x)["res5"], layers(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stride_in_1x1", "strides"), [(True, [(2, 2), (1, 1)]), (False, [(1, 1), (2, 2)])]
)
def test_trunk__stride_in_1x1(stride_in_1x1, strides):
    with torch.device("meta"):
        trunk = ResNet(ResNetShape(50, "BN", stride_in_1x1=stride_in_1x1), out_features=["res3"])
    assert [trunk.res3[0].conv1.stride, trunk.res3[0].conv2.stride] == strides
    assert not hasattr(trunk, "res4")


def test_rasterize__square_by_hand():
    # A box of 8 x 8 px on a grid of 4: the polygon covers its left half, two columns of cells.
    mask = rasterize(
        [[10, 10, 14, 10, 14, 18, 10, 18]], torch.tensor([10.0, 10.0, 18.0, 18.0]).numpy(), size=4
    )
    assert mask.tolist() == [[1, 1, 0, 0]] * 4


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_mask_head__gives_the_own_classs_map_of_all(class_agnostic):
    torch.manual_seed(0)
    head = MaskHead(6, 4, num_conv=1, conv_dim=8, cls_agnostic_mask=class_agnostic).double()
    x, classes = torch.randn(5, 6, 3, 3, dtype=torch.float64), torch.tensor([3, 0, 0, 2, 1])
    with torch.no_grad():
        head.predictor.bias.normal_()
        every_class = head.predictor(F.relu(head.deconv(head.mask_fcn1(x))))
        expected = every_class[
            torch.arange(5), torch.zeros_like(classes) if class_agnostic else classes
        ]
        torch.testing.assert_close(head(x, classes).double(), expected, rtol=1e-5, atol=1e-6)
        assert head(x[:0], classes[:0]).shape == (0, 6, 6)


def test_paste__equals_grid_sample_over_the_whole_image():
    torch.manual_seed(0)
    height, width = 41, 57
    masks = F.interpolate(torch.rand(4, 1, 5, 5), size=(28, 28), mode="bicubic")[:, 0]
    boxes = torch.tensor(
        [
            [3.2, 4.7, 30.1, 39.9],
            [0.0, 0.0, 57.0, 41.0],
            [50.3, 30.2, 57.0, 41.0],
            [10.0, 10.0, 11.5, 10.7],
        ]
    )
    x = (torch.arange(width) + 0.5 - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    y = (torch.arange(height) + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1
    )
    reference = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    differs = paste_masks(masks, boxes, (height, width)) != (reference >= 0.5)
    assert not (differs & ((reference - 0.5).abs() > 1e-5)).any()
    assert paste_masks(masks[:0], boxes[:0], (height, width)).shape == (0, height, width)


def test_output__scaled_clipped_and_without_empty_boxes():
    found = Detections(
        torch.tensor([[10.0, 10.0, 20.0, 30.0], [100.0, 0.0, 100.0, 50.0]]),
        torch.tensor([0.9, 0.8]),
        torch.tensor([1, 0]),
    )
    output = to_original_size(found, (50, 100), (100, 300))
    assert output["boxes"].tolist() == [[30.0, 20.0, 60.0, 60.0]]
    assert output["classes"].tolist() == [1] and output["scores"].tolist() == pytest.approx([0.9])


def test_detections__suppressed_within_a_class_only_and_the_best_kept():
    predictor = BoxPredictor(4, BoxSettings(num_classes=2, detections_per_image=3))
    proposals = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [50.0, 50.0, 60.0, 60.0]]
    )
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.36, 0.24], [0.04, 0.06, 0.9]])
    (found,) = predictor.detect(scores.log(), torch.zeros(3, 8), [proposals], [(100, 100)])
    # The first two boxes overlap by 9 / 11: each class keeps the better one of them, class 0 the
    # first, class 1 the second.
    assert found.classes.tolist() == [0, 1, 1] and found.scores.tolist() == pytest.approx(
        [0.5, 0.36, 0.06]
    )
    torch.testing.assert_close(found.boxes, proposals)


@pytest.mark.parametrize("sharpness", [0.01, 1])
def test_detections__of_many_classes_are_those_of_suppressing_all_candidates(sharpness):
    # 30 x 1230 candidates, of which 300 are kept: most are never looked at.
    settings = BoxSettings(num_classes=1230, score_thresh_test=0.0001, detections_per_image=300)
    rng = torch.Generator().manual_seed(0)
    # Even numbers, which decoding leaves as they are.
    corners, sizes = (2 * torch.randint(2, 30, (30, 2), generator=rng).float() for _ in range(2))
    proposals = torch.cat([corners, (corners + sizes).clamp(max=100)], dim=1)
    logits = torch.randn(30, 1231, generator=rng) * sharpness
    (found,) = BoxPredictor(4, settings).detect(
        logits, torch.zeros(30, 4 * 1230), [proposals], [(100, 100)]
    )
    scores = logits.softmax(dim=1)[:, :-1]
    boxes = proposals[:, None].expand(-1, 1230, -1).reshape(-1, 4)
    classes = torch.arange(1230).repeat(30)
    candidates = torch.nonzero(scores.flatten() > 0.0001).squeeze(1)
    assert len(candidates) > 20_000
    args = boxes[candidates], scores.flatten()[candidates], classes[candidates]
    kept = torchvision.ops.batched_nms(*args, 0.5)
    torch.testing.assert_close(found.scores, args[1][kept[:300]], rtol=0, atol=0)
    # Where scores are equal their order is not defined.
    survivors = {
        (*b, c) for b, c in zip(args[0][kept].tolist(), args[2][kept].tolist(), strict=True)
    }
    ours = zip(found.boxes.tolist(), found.classes.tolist(), strict=True)
    assert {(*b, c) for b, c in ours} <= survivors


def small_model(case: str = "r18_fpn_mask", **overrides):
    model = build_model(make_config(case, **overrides))
    model.load_state_dict(draw_weights(model))
    return model


def test_training__image_without_objects_and_batch_without_objects():
    model = small_model()
    full, empty = draw_images(2)
    empty |= {
        "gt_boxes": torch.zeros(0, 4),
        "gt_classes": torch.zeros(0, dtype=torch.int64),
        "gt_masks": [],
    }
    for batch in ([full, empty], [empty]):
        losses = model(batch)
        total = sum(losses.values())
        assert torch.isfinite(total)
        model.zero_grad()
        total.backward()
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_loc"] == 0 and losses["loss_mask"] == 0


@pytest.mark.parametrize("part", ["anchor_deltas", "objectness_logits"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_training__diverged_predictions_are_losses_that_are_not_numbers(part, value):
    model = small_model()
    getattr(model.proposal_generator.rpn_head, part).bias.data[0] = value
    losses = model(draw_images(1))
    assert losses["loss_rpn_cls"].isnan() and losses["loss_rpn_loc"].isnan()
    assert losses["loss_cls"].isfinite()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_autocast__bf16_gives_float32_losses_and_boxes():
    model = small_model()
    records = draw_images(2)
    reference = {name: loss.item() for name, loss in model(records).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(records)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name in ("loss_rpn_cls", "loss_mask", "loss_box_reg"):
        assert losses[name].item() == pytest.approx(reference[name], rel=0.3)
    sum(losses.values()).backward()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.eval()(records)
    assert output[0]["boxes"].dtype == torch.float32 and output[0]["scores"].dtype == torch.float32


def test_layout__channels_last_filters_give_the_same_detector():
    model = small_model().double().eval()
    records = draw_images(1)
    with torch.no_grad():
        reference = model(records)[0]
        model.to(memory_format=torch.channels_last)
        assert model.preprocess(records)[0].is_contiguous(memory_format=torch.channels_last)
        output = model(records)[0]
    torch.testing.assert_close(output["boxes"], reference["boxes"])
    torch.testing.assert_close(output["scores"], reference["scores"])


def test_uint8_images_and_missing_original_size():
    model = small_model("r18_fpn").eval()
    (record,) = draw_images(1)
    bare = {"image": record["image"].to(torch.uint8)}
    height, width = record["image"].shape[1:]
    with torch.no_grad():
        output, reference = (
            model([bare])[0],
            model([record | {"height": height, "width": width}])[0],
        )
    assert torch.equal(output["boxes"], reference["boxes"])


@pytest.mark.slow
def test_training__overfits_two_images():
    torch.manual_seed(0)
    model = build_model(
        make_config(
            "r18_fpn_mask",
            MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=32,
            MODEL__RPN__BATCH_SIZE_PER_IMAGE=64,
            MODEL__RPN__POST_NMS_TOPK_TRAIN=200,
            MODEL__RPN__POST_NMS_TOPK_TEST=100,
        )
    )
    records = draw_images(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(80):
        losses = model(records)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    model.train()
    with torch.no_grad():  # running statistics of the trained weights
        for _ in range(40):
            model(records)
        outputs = model.eval()(records)
    for output, record in zip(outputs, records, strict=True):
        scale = (
            record["height"] / record["image"].shape[1],
            record["width"] / record["image"].shape[2],
        )
        truth = record["gt_boxes"] * torch.tensor([scale[1], scale[0]] * 2)
        sure = output["scores"] > 0.5
        iou = pairwise_iou(truth, output["boxes"][sure])
        assert iou.max(dim=1).values.min() > 0.5
        best = output["classes"][sure][iou.argmax(dim=1)]
        assert best.tolist() == record["gt_classes"].tolist()
