"""The keypoint head by hand: cells of keypoints, positions of peaks, and batches without keypoints;
``test_detectron2_parity`` compares it with Detectron2.

Seen red under: x and y exchanged in a cell; a peak at the pixel's corner; an image without visible
keypoints dividing by 0.
"""

from __future__ import annotations

import pytest
import torch
from detector_cases import draw_images, draw_weights, make_config

from moco_transfer.finetune.torchvision_engine.build import build_model
from moco_transfer.finetune.torchvision_engine.keypoint_head import decode_heatmaps, heatmap_targets


def test_heatmap_targets__by_hand():
    box = torch.tensor([[10.0, 20.0, 18.0, 28.0]])  # cells of 2 px in a grid of 4 x 4
    points = {
        (10.0, 20.0, 2): 0,
        (13.9, 20.0, 1): 1,  # hidden counts
        (14.0, 20.0, 2): 2,
        (10.0, 26.0, 2): 12,
        (18.0, 28.0, 2): 15,  # the lower right corner belongs to the last cell
        (18.1, 28.0, 2): None,
        (9.9, 21.0, 2): None,
        (12.0, 21.0, 0): None,  # not labelled
    }
    cells, valid = heatmap_targets(torch.tensor([list(points)]), box, size=4)
    found = [c if v else None for c, v in zip(cells[0].tolist(), valid[0].tolist(), strict=True)]
    assert found == list(points.values())


def test_decode_heatmaps__a_peak_lies_in_the_middle_of_a_pixel():
    maps = torch.full((1, 2, 4, 4), -20.0)
    maps[0, 0, 1, 3], maps[0, 1, 2, 0] = 20.0, 20.0
    (found,) = decode_heatmaps(maps, torch.tensor([[10.0, 20.0, 14.0, 24.0]]))  # a cell is a pixel
    torch.testing.assert_close(found, torch.tensor([[13.5, 21.5, 1.0], [10.5, 22.5, 1.0]]))
    # 3.2 px wide: four pixels of 0.8 px; thinner than a pixel counts as one.
    (found,) = decode_heatmaps(maps, torch.tensor([[10.0, 20.0, 13.2, 20.4]]))
    torch.testing.assert_close(found[0, 0], torch.tensor(10 + 3.5 * 0.8))
    torch.testing.assert_close(found[:, 1], torch.tensor([20.5, 20.5]))
    assert decode_heatmaps(maps[:0], torch.zeros(0, 4)).shape == (0, 2, 3)


def losses_of(records: list[dict], **settings: object) -> tuple[dict, torch.nn.Module]:
    model = build_model(make_config("r18_fpn_keypoint", **settings))
    model.load_state_dict(draw_weights(model))
    losses = model(records)
    sum(losses.values()).backward()
    return losses, model


@pytest.mark.parametrize("by_visible", [True, False])
def test_loss__without_a_visible_keypoint_is_0_and_each_weight_has_a_gradient(by_visible):
    records = [r | {"gt_keypoints": torch.zeros_like(r["gt_keypoints"])} for r in draw_images()]
    key = "MODEL__ROI_KEYPOINT_HEAD__NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
    losses, model = losses_of(records, **{key: by_visible})
    assert float(losses["loss_keypoint"].detach()) == 0
    # Several processes wait for each gradient, also that of a batch without keypoints.
    head = model.roi_heads.keypoint_head
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_loss__an_object_without_keypoints_adds_nothing():
    records = draw_images(1)
    (record,) = records
    with_all, _ = losses_of(records)
    record["gt_keypoints"][-1] = torch.tensor([5.0, 5.0, 0.0])  # the last has none labelled
    same, _ = losses_of(records)
    record["gt_keypoints"][0, :, 2] = 0
    fewer, _ = losses_of(records)
    expected = float(with_all["loss_keypoint"])  # another shape may round differently: not equal
    assert float(same["loss_keypoint"]) == pytest.approx(expected, rel=1e-5)
    assert float(fewer["loss_keypoint"]) != pytest.approx(expected, rel=1e-3)


def test_autocast__gives_the_loss_of_float32():
    exact, _ = losses_of(draw_images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = losses_of(draw_images())
    assert rounded["loss_keypoint"].dtype == torch.float32
    assert float(rounded["loss_keypoint"]) == pytest.approx(float(exact["loss_keypoint"]), rel=0.05)
