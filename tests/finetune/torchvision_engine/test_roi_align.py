"""RoIAlign as matrix products against torchvision's operator, and the 1x1 convolutions that change
places with it.

Seen red under: the step between cells ignored; the half pixel always taken off; samples outside the
    map counted; the number of samples
rounded down; gradients of regions overwriting each other; a norm's scale not folded; the norm
before a bottleneck's 3x3 left out.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from detector_cases import draw_weights

from moco_transfer.finetune.torchvision_engine.backbones import ResNetShape
from moco_transfer.finetune.torchvision_engine.layers import ConvNorm, freeze
from moco_transfer.finetune.torchvision_engine.roi_heads import make_res5
from moco_transfer.finetune.torchvision_engine.roi_pool import CellGrid, roi_align

STRIDE = 4
# Small, as wide as the image, thin (many samples along one side), over the lower right border,
# outside, without area, upside down.
BOXES = [
    [3.0, 5.0, 9.0, 30.0],
    [0.0, 0.0, 80.0, 64.0],
    [1.0, 30.0, 79.0, 31.5],
    [60.0, 50.0, 95.0, 80.0],
    [300.0, 300.0, 340.0, 330.0],
    [20.0, 20.0, 20.0, 20.0],
    [-40.0, -3.0, 2.0, 2.0],
]


def draw_feature(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, 16, 20, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )


def draw_rois() -> torch.Tensor:
    owners = torch.tensor([[float(index % 2)] for index in range(len(BOXES))])
    return torch.cat([owners, torch.tensor(BOXES)], dim=1)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_torchvisions_operator__forward_and_backward(sampling_ratio, aligned):
    ours, theirs, rois = draw_feature(), draw_feature(), draw_rois()
    pooled = roi_align(ours, rois, CellGrid(5, 1 / STRIDE, sampling_ratio, aligned))
    expected = torchvision.ops.roi_align(
        theirs, rois.double(), (5, 5), 1 / STRIDE, sampling_ratio, aligned
    )
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(pooled.numel(), dtype=torch.float64).view(pooled.shape).sin()
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    assert expected[1].abs().max() > 0 and theirs.grad.abs().max() > 0


def test_step__keeps_every_second_cell():
    feature, rois = draw_feature(), draw_rois()
    whole = roi_align(feature, rois, CellGrid(5, 1 / STRIDE))
    torch.testing.assert_close(
        roi_align(feature, rois, CellGrid(5, 1 / STRIDE), step=2), whole[:, :, ::2, ::2]
    )


def test_type_and_layout__follow_the_feature():
    feature = draw_feature(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = roi_align(feature, draw_rois(), CellGrid(5, 1 / STRIDE))
    exact = roi_align(feature.double(), draw_rois(), CellGrid(5, 1 / STRIDE))
    assert pooled.dtype == torch.bfloat16 and pooled.is_contiguous(
        memory_format=torch.channels_last
    )
    torch.testing.assert_close(
        pooled.double(), exact, rtol=2**-8, atol=1e-6
    )  # only the result is rounded
    pooled.float().sum().backward()
    assert feature.grad.dtype == torch.bfloat16


def test_no_regions__empty_and_differentiable():
    feature = draw_feature()
    pooled = roi_align(feature, torch.zeros(0, 5), CellGrid(5, 1 / STRIDE))
    assert pooled.shape == (0, 3, 5, 5)
    pooled.sum().backward()
    assert feature.grad.eq(0).all()


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_bottleneck__convolutions_and_pooling_change_places(stride_in_1x1):
    """Outputs, all gradients and the running statistics of the two orders agree."""
    shape = ResNetShape(
        50,
        "BN",
        stride_in_1x1=stride_in_1x1,
        width_per_group=2,
        stem_out_channels=4,
        res2_out_channels=8,
    )
    results = []
    for pools_first in (True, False):
        block = make_res5(shape, extra_norm=False)[0].double()
        block.load_state_dict(draw_weights(block))
        feature = torch.randn(
            2, 32, 16, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ).requires_grad_()

        def pool(x: torch.Tensor, step: int) -> torch.Tensor:
            return roi_align(x, draw_rois()[[0, 1, 2, 3]], CellGrid(6, 1 / STRIDE), step=step)

        y = block(pool(feature, 1)) if pools_first else block.forward_pooled(feature, pool)
        (y * torch.arange(y.numel()).view(y.shape).cos()).sum().backward()
        gradients = {name: p.grad for name, p in block.named_parameters()}
        results.append({"y": y.detach(), "feature": feature.grad} | gradients | block.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(
            results[1][name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert results[0]["y"].shape == (4, 64, 3, 3)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_fixed_norm__is_folded_into_the_filters(norm):
    layer = ConvNorm(4, 6, kernel_size=3, norm=norm, bias=False, relu=True).double()
    layer.load_state_dict(draw_weights(layer))
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    layer.eval()
    with torch.no_grad():
        expected = layer.norm(torch.nn.functional.conv2d(x, layer.weight, padding=1)).relu()
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    if norm == "BN":
        parameters = [layer.weight, layer.norm.weight, layer.norm.bias]
        unfolded = layer.norm(torch.nn.functional.conv2d(x, layer.weight, padding=1)).relu()
        ours, theirs = (
            torch.autograd.grad(y.square().sum(), parameters) for y in (layer(x), unfolded)
        )
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-9)


def test_frozen_norm__passes_the_filters_gradient():
    trained = ConvNorm(4, 6, kernel_size=3, norm="BN", bias=False).double()
    trained.load_state_dict(draw_weights(trained))
    frozen = ConvNorm(4, 6, kernel_size=3, norm="FrozenBN", bias=False).double()
    frozen.load_state_dict({k: v for k, v in trained.state_dict().items() if "tracked" not in k})
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    trained.eval()(x).square().sum().backward()
    frozen(x).square().sum().backward()
    torch.testing.assert_close(frozen.weight.grad, trained.weight.grad, rtol=1e-9, atol=1e-9)
    assert isinstance(freeze(trained).norm, type(frozen.norm))
