"""The FCN of MoCo's appendix A.5 against torchvision's ResNet and a head of a few lines, in
float64; sliding windows, and pixels that do not count.

Seen red under: res5 without dilation, or its first block with dilation 1 as SlotCon's; dilation 1
in the head; corners not aligned; the mean over ignored pixels too, or over each process's own; a
weight of the loss that is left out; windows that begin at each step and not inside the image, or
whose logits are not divided by their number.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_norm import in_two_processes
from torch import nn

from moco_transfer.config import load_detection_config
from moco_transfer.finetune import build_model
from moco_transfer.finetune.pixel_logits import classes_of, enlarge, image_logits, pixel_loss
from moco_transfer.runtime.errors import InputError

CLASSES, STRIDE, IGNORED = 5, 16, 255
WORDS = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(CLASSES), "MODEL.DEVICE", "cpu")


def our_model(name: str = "voc_R_50_FCN_d6_30k", *words: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(load_detection_config(name, [*WORDS, *words])).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


class Reference(nn.Module):
    """torchvision's ResNet-50 with the 3x3 convolutions of layer4 dilated, and A.5's head."""

    def __init__(self, dilation: int = 6) -> None:
        super().__init__()
        self.trunk = torchvision.models.resnet50().double()
        for block in self.trunk.layer4:
            block.conv2.dilation = block.conv2.padding = (2, 2)
        self.trunk.layer4[0].conv2.stride = self.trunk.layer4[0].downsample[0].stride = (1, 1)
        body = []
        for channels in (2048, 256):
            conv = nn.Conv2d(channels, 256, 3, padding=dilation, dilation=dilation, bias=False)
            body += [conv, nn.BatchNorm2d(256), nn.ReLU()]
        self.head = nn.Sequential(*body, nn.Conv2d(256, CLASSES, 1)).double()

    def load(self, ours: dict[str, torch.Tensor]) -> Reference:
        names = {"conv1": "0", "conv1.norm": "1", "conv2": "3", "conv2.norm": "4", "predictor": "6"}
        for key, value in ours.items():
            layer, leaf = key.rsplit(".", 1)
            if layer.startswith("sem_seg_head."):
                place, part = self.head, names[layer.removeprefix("sem_seg_head.")]
            else:
                part = layer.removeprefix("backbone.").removeprefix("stem.")
                part = re.sub(r"res(\d)", lambda m: f"layer{int(m[1]) - 1}", part)
                part = re.sub(r"conv(\d)\.norm", r"bn\1", part)
                part = part.replace("shortcut.norm", "downsample.1")
                part = re.sub(r"shortcut$", "downsample.0", part)
                place = self.trunk
            place.get_submodule(part).state_dict()[leaf].copy_(value)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        trunk = self.trunk
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        x = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))
        size = images.shape[-2:]
        return F.interpolate(self.head(x), size=size, mode="bilinear", align_corners=True)


def batch_of(count: int, height: int, width: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (count, height, width))
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    images = rng.uniform(0, 255, (count, 3, height, width))
    return [
        {"image": torch.from_numpy(i), "sem_seg": torch.from_numpy(x)}
        for i, x in zip(images, labels, strict=True)
    ]


def normalised(batch: list[dict], model: nn.Module) -> torch.Tensor:
    images = torch.stack([record["image"] for record in batch])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], PIXEL_STD))
    return (images - mean.to(model.pixel_mean)) / std.to(model.pixel_mean)


PIXEL_STD = [58.395, 57.12, 57.375]


def test_training__loss_and_gradients_equal_torchvisions():
    model, batch = our_model(), batch_of(2, 65, 97)
    reference = Reference().load(model.state_dict())
    (loss,) = model(batch).values()
    loss.backward()
    labels = torch.stack([record["sem_seg"] for record in batch])
    expected = F.cross_entropy(reference(normalised(batch, model)), labels, ignore_index=IGNORED)
    expected.backward()
    assert abs((loss - expected).item()) < 1e-10
    pairs = [
        (model.backbone.stem.conv1, reference.trunk.conv1),
        (model.backbone.res5[0].shortcut, reference.trunk.layer4[0].downsample[0]),
        (model.sem_seg_head.predictor, reference.head[6]),
    ]
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.weight.grad, theirs.weight.grad, rtol=1e-8, atol=1e-10)
    weighted = our_model("voc_R_50_FCN_d6_30k", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "0.5")
    torch.testing.assert_close(weighted(batch)["loss_sem_seg"], loss / 2)


def test_inference__logits_and_classes_equal_torchvisions():
    model, batch = our_model(), batch_of(1, 65, 97)
    model(batch)  # running statistics that are none of a fresh layer
    reference = Reference().load(model.state_dict()).eval()
    model.eval()
    with torch.no_grad():
        expected = reference(normalised(batch, model))
        logits = enlarge(model.logits(normalised(batch, model)), (65, 97), stride=STRIDE)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        (output,) = model(batch)
        assert torch.equal(output["sem_seg"], expected[0].argmax(0))
        (other,) = model([batch[0] | {"height": 130, "width": 194}])
        larger = F.interpolate(expected, size=(130, 194), mode="bilinear")[0].argmax(0)
        assert torch.equal(other["sem_seg"], larger) and other["sem_seg"].dtype == torch.int64


@pytest.mark.parametrize("size", [(65, 97), (50, 112), (16, 1), (1, 33)])
def test_enlarge__is_bilinear_between_multiples_of_the_stride(size):
    cells = [math.ceil(side / STRIDE) for side in size]
    logits = torch.randn(1, 2, *cells, dtype=torch.float64)
    expected = logits.numpy()
    for axis, side in ((2, size[0]), (3, size[1])):
        places = STRIDE * np.arange(expected.shape[axis])

        def on_line(line, places=places, side=side):
            return np.interp(np.arange(side), places, line)

        expected = np.apply_along_axis(on_line, axis, expected)
    np.testing.assert_allclose(enlarge(logits, size, stride=STRIDE), expected, atol=1e-12)


def test_loss__of_ignored_pixels_alone_is_0_and_moves_nothing():
    logits = torch.randn(1, CLASSES, 2, 2, requires_grad=True)
    labels = torch.full((1, 20, 20), IGNORED)
    loss = pixel_loss(logits, labels, stride=STRIDE, ignored=IGNORED)
    loss.backward()
    assert float(loss) == 0 and not logits.grad.any()


def _unequal_batch() -> list[dict]:
    """Two images of which the first has fewer pixels that count."""
    batch = batch_of(2, 65, 65)
    batch[0]["sem_seg"][:40] = IGNORED
    return batch


def _step(ranks: list[int]) -> dict[str, torch.Tensor]:
    """Return the loss, the gradients and the running statistics of a step on these images."""
    torch.set_num_threads(1)
    model, batch = our_model("voc_R_18_FCN_small"), _unequal_batch()
    (loss,) = model([batch[rank] for rank in ranks]).values()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: b for name, b in model.named_buffers() if "running" in name}
    return {"loss": loss.detach(), **grads, **buffers}


def _step_of_rank(rank: int) -> dict[str, torch.Tensor]:
    return _step([rank])


def test_two_processes__average_to_one(tmp_path):
    first, second = in_two_processes(tmp_path, _step_of_rank)
    for name, expected in _step([0, 1]).items():
        average = (first[name] + second[name]) / 2
        torch.testing.assert_close(average, expected, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("size", "window", "step"),
    [((40, 61), 33, 20), ((33, 33), 33, 20), ((20, 70), 33, 33), ((34, 90), 17, 7)],
)
def test_sliding__equals_windows_laid_one_by_one(size, window, step):
    def network(image):  # sees its whole window, so that it matters which one a pixel is in
        logits = F.conv2d(image, weight, stride=STRIDE, padding=1)
        return logits + image.mean()

    torch.manual_seed(0)
    weight = torch.randn(CLASSES, 3, 3, 3, dtype=torch.float64)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    ours = image_logits(network, image, stride=STRIDE, window=window, step=step)
    total, count = torch.zeros(CLASSES, *size, dtype=torch.float64), torch.zeros(size)
    # mmsegmentation's counts of windows, and its windows that end inside the image.
    rows, columns = (max(side - window + step - 1, 0) // step + 1 for side in size)
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * step + window, size[0]), min(column * step + window, size[1])
            top, left = max(bottom - window, 0), max(right - window, 0)
            part = image[:, :, top:bottom, left:right]
            fine = enlarge(network(part), part.shape[-2:], stride=STRIDE)[0]
            total[:, top:bottom, left:right] += fine
            count[top:bottom, left:right] += 1
    torch.testing.assert_close(ours[0], total / count, rtol=0, atol=1e-12)


def test_sliding__is_what_the_config_says():
    words = ("TEST.SLIDING_WINDOW.SIZE", "33", "TEST.SLIDING_WINDOW.STRIDE", "16")
    model, (record,) = our_model("voc_R_18_FCN_small", *words).eval(), batch_of(1, 49, 65)
    images = normalised([record], model)
    with torch.no_grad():
        logits = image_logits(model.logits, images, stride=STRIDE, window=33, step=16)
        (output,) = model([record])
        whole = image_logits(model.logits, images, stride=STRIDE, window=0, step=0)
    assert torch.equal(output["sem_seg"], classes_of(logits, (49, 65)))
    assert not torch.allclose(logits, whole)


def test_batch__images_of_several_sizes_are_padded_with_the_mean_and_ignored_labels():
    model = our_model("voc_R_18_FCN_small")
    small, large = batch_of(1, 33, 49)[0], batch_of(1, 65, 65, seed=1)[0]
    image = model.pixel_mean.expand(3, 65, 65).clone()
    labels = torch.full((65, 65), IGNORED)
    image[:, :33, :49], labels[:33, :49] = small["image"], small["sem_seg"]
    padded = {"image": image, "sem_seg": labels}
    torch.testing.assert_close(model([small, large]), model([padded, large]))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "32"), "COMMON_STRIDE is 32, expected 16"),
        (("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"), "MODEL.SEM_SEG_HEAD.NAME"),
        (("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"), "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res4']"), "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
        (("MODEL.MASK_ON", "True"), "MODEL.MASK_ON"),
        (("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"), "MODEL.BACKBONE.NAME"),
    ],
)
def test_config__what_is_not_implemented_is_refused_by_name(words, named):
    with pytest.raises(InputError, match=re.escape(named)):
        build_model(load_detection_config("voc_R_50_FCN_d6_30k", words))
