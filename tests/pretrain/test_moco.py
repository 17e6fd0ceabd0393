"""MoCo against a float64 reference written straight from Algorithm 1, with loops and no shared
code.

Went red under: m and 1 - m swapped; the temperature dropped; the query encoder called for the keys;
    the queue not wrapping around; unshuffling with
the permutation instead of its inverse; the stem's ReLU left out; the gradient of the logits in
autocast's type.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from moco_transfer.models import build_encoder
from moco_transfer.pretrain.info_nce import contrastive_logits, enqueue
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d, num_groups

from .tiny_encoder import TinyEncoder


def tiny_moco(**kwargs) -> MoCo:
    torch.manual_seed(0)
    settings = {"dim": 5, "queue_size": 14, "momentum": 0.9, "temperature": 0.2} | kwargs
    return MoCo(TinyEncoder, **settings).double()


class Reference:
    """Algorithm 1 in plain Python: lists of float64, one sample and one negative at a time."""

    def __init__(self, model: MoCo) -> None:
        self.q = {
            name: p.detach().clone().requires_grad_()
            for name, p in model.encoder_q.named_parameters()
        }
        self.k = {name: p.detach().clone() for name, p in model.encoder_k.named_parameters()}
        self.queue = [model.queue[:, j].clone() for j in range(model.queue.shape[1])]
        self.oldest = 0
        self.m, self.t = model.momentum, model.temperature

    @staticmethod
    def encode(weights, x):
        hidden = torch.tanh(weights["body.weight"] @ x.flatten() + weights["body.bias"])
        if "fc.weight" in weights:
            out = weights["fc.weight"] @ hidden + weights["fc.bias"]
        else:  # the MLP head of v2
            out = (
                weights["fc.2.weight"]
                @ torch.relu(weights["fc.0.weight"] @ hidden + weights["fc.0.bias"])
                + weights["fc.2.bias"]
            )
        return (
            out / math.sqrt(sum(float(v) ** 2 for v in out.detach()))
            if not out.requires_grad
            else out / out.pow(2).sum().sqrt()
        )

    def step(self, im_q, im_k, lr):
        # The official order: the key encoder moves first, towards the query encoder of the step
        # before.
        for name in self.k:
            self.k[name] = self.m * self.k[name] + (1 - self.m) * self.q[name].detach()
        queries = [self.encode(self.q, x) for x in im_q]
        keys = [self.encode(self.k, x) for x in im_k]
        losses = []
        for q, k in zip(queries, keys, strict=True):
            logits = [torch.dot(q, k) / self.t] + [torch.dot(q, n) / self.t for n in self.queue]
            losses.append(-logits[0] + torch.stack([z.exp() for z in logits]).sum().log())
        loss = sum(losses) / len(losses)
        gradients = torch.autograd.grad(loss, list(self.q.values()))
        for (_, p), g in zip(self.q.items(), gradients, strict=True):
            p.data -= lr * g
        for k in keys:
            self.queue[self.oldest] = k
            self.oldest = (self.oldest + 1) % len(self.queue)
        return loss.item(), dict(zip(self.q, gradients, strict=True))


@pytest.mark.parametrize("mlp", [False, True])
def test_moco__equals_algorithm_1_over_20_steps(mlp):
    model = tiny_moco(mlp=mlp, shuffle=True)  # without BN shuffling must not show
    reference = Reference(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        im_q, im_k = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
        logits, target = model(im_q, im_k)
        loss = F.cross_entropy(logits, target)
        model.zero_grad()
        loss.backward()
        expected_loss, expected_gradients = reference.step(im_q, im_k, lr=0.5)
        assert loss.item() == pytest.approx(expected_loss, rel=1e-10)
        for name, p in model.encoder_q.named_parameters():
            torch.testing.assert_close(p.grad, expected_gradients[name], atol=1e-10, rtol=1e-9)
            p.data -= 0.5 * p.grad
    for name, p in model.encoder_k.named_parameters():
        torch.testing.assert_close(p.data, reference.k[name], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(model.queue, torch.stack(reference.queue, 1), atol=1e-10, rtol=1e-9)
    assert (
        int(model.queue_ptr) == (20 * 4) % 14 == reference.oldest
    )  # 80 keys through a queue of 14: it wrapped around


def test_moco__key_encoder_is_the_one_called_and_gets_no_gradient():
    model = tiny_moco(momentum=1.0)
    # both encoders start equal: only different weights show which one is called
    with torch.no_grad():
        for p in model.encoder_k.parameters():
            p.add_(torch.randn_like(p))
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    before = model.queue.clone()
    logits, target = model(images, images)
    F.cross_entropy(logits, target).backward()
    assert all(p.grad is None for p in model.encoder_k.parameters())
    assert all(p.grad is not None for p in model.encoder_q.parameters())
    with torch.no_grad():
        keys = F.normalize(model.encoder_k(images), dim=1)
    torch.testing.assert_close(model.queue[:, :4].T, keys)
    assert torch.equal(model.queue[:, 4:], before[:, 4:])


def test_moco__first_logit_is_the_positive_pair():
    q, k, queue = torch.eye(3)[:2], torch.eye(3)[:2], torch.eye(3)[:, 2:].repeat(1, 4)
    logits = contrastive_logits(q, k, queue, temperature=0.5)
    assert (
        logits.tolist() == [[2.0, 0.0, 0.0, 0.0, 0.0]] * 2
    )  # cos 1 / T 0.5; all negatives are orthogonal


@pytest.mark.parametrize(
    ("batch", "queue_size"), [(4, 12), (5, 12), (12, 12), (13, 12), (30, 12), (1, 1)]
)
def test_enqueue__any_batch_size_keeps_the_newest_in_order(batch, queue_size):
    queue, pointer = torch.zeros(2, queue_size), torch.zeros(1, dtype=torch.int64)
    everything = [0.0] * queue_size
    position, number = 0, 0
    for _ in range(5):
        keys = torch.arange(number, number + batch, dtype=torch.float32)[:, None].repeat(1, 2)
        enqueue(queue, pointer, keys)
        for value in range(number, number + batch):  # one key at a time into a ring
            everything[position] = float(value)
            position = (position + 1) % queue_size
        number += batch
        assert queue[0].tolist() == everything
        assert int(pointer) == position


def test_moco__takes_torchvisions_factory_as_the_official_builder_does():
    torch.manual_seed(0)
    model = MoCo(torchvision.models.resnet18, dim=16, queue_size=8, mlp=True)
    logits, target = model(*torch.randn(2, 2, 3, 32, 32))
    assert logits.shape == (2, 9) and target.tolist() == [0, 0] and int(model.queue_ptr) == 2


def test_moco__state_dict_has_the_published_names():
    model = MoCo(
        lambda num_classes: build_encoder("resnet18", num_classes=num_classes),
        queue_size=8,
        mlp=True,
    )
    names = set(model.state_dict())
    assert {
        "queue",
        "queue_ptr",
        "encoder_q.conv1.weight",
        "encoder_k.layer4.1.bn2.running_var",
        "encoder_q.fc.0.weight",
        "encoder_q.fc.2.bias",
    } <= names
    assert model.queue.shape == (128, 8) and model.queue_ptr.shape == (1,)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(8))
    for q, k in zip(
        model.encoder_q.state_dict().values(), model.encoder_k.state_dict().values(), strict=True
    ):
        assert torch.equal(q, k)  # both start equal, heads too


# Table 1 of the paper has R50 24 M, RX50 46 M, R50w2x 94 M, R50w4x 375 M; R18, R34 and R101 are
# torchvision's published counts less fc.
@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("resnet50", 24),
        ("resnext50_32x8d", 46),
        ("resnet50_w2x", 94),
        ("resnet50_w4x", 375),
        ("resnet18", 11.689512 - 0.513),
        ("resnet34", 21.797672 - 0.513),
        ("resnet101", 44.549160 - 2.049),
    ],
)
def test_encoders__parameters_of_table_1(arch, millions):
    with torch.device("meta"):
        encoder = build_encoder(arch, num_classes=128)
    named = encoder.named_parameters()
    got = sum(p.numel() for name, p in named if not name.startswith("fc.")) / 1e6
    assert (round(got) if isinstance(millions, int) else got) == pytest.approx(millions, abs=1e-9)
    assert encoder.conv1.out_channels == {"resnet50_w2x": 128, "resnet50_w4x": 256}.get(arch, 64)


def test_encoders__wide_resnet_is_initialised_as_torchvision_does_and_runs():
    torch.manual_seed(0)
    encoder = build_encoder("resnet50_w2x", num_classes=128).eval()
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 128)
    # kaiming_normal_ with fan_out: std = sqrt(2 / (kernel area x outputs))
    for name, expected in (
        ("conv1", (2 / (49 * 128)) ** 0.5),
        ("layer1.0.conv1", (2 / 128) ** 0.5),
        ("layer3.2.conv2", (2 / (9 * 512)) ** 0.5),
    ):
        assert encoder.get_submodule(name).weight.std().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_encoders__compute_what_torchvision_does_bit_for_bit(arch):
    torch.manual_seed(0)
    ours, theirs = (
        build_encoder(arch, num_classes=4),
        getattr(torchvision.models, arch)(num_classes=4),
    )
    theirs.load_state_dict(ours.state_dict())
    images = torch.randint(
        -2, 3, (4, 3, 64, 64), generator=torch.Generator().manual_seed(1)
    ).float()
    images[0] = 1.0  # equal values in every window of one image: the gradient goes to the first
    outs = [model(images) for model in (ours, theirs)]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    for (name, mine), exact in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, exact.grad), name
    stem = F.relu(
        ours.bn1(ours.conv1(images))
    )  # and the ReLU is there, with plain arithmetic beside it
    torch.testing.assert_close(
        ours.maxpool(ours.relu(ours.bn1(ours.conv1(images)))),
        F.max_pool2d(stem, 3, 2, 1),
        rtol=0,
        atol=0,
    )


def test_split_batch_norm__equals_batch_norm_of_each_group():
    torch.manual_seed(0)
    split, images = SplitBatchNorm2d(3, group_size=4), torch.randn(8, 3, 5, 5)
    nn.init.uniform_(split.weight)
    out = split(images)
    plain = [nn.BatchNorm2d(3) for _ in range(2)]
    for bn, part, got in zip(plain, images.split(4), out.split(4), strict=True):
        bn.load_state_dict(
            dict(split.state_dict(), running_mean=torch.zeros(3), running_var=torch.ones(3))
        )
        torch.testing.assert_close(bn(part), got)
    torch.testing.assert_close(
        split.running_mean, (plain[0].running_mean + plain[1].running_mean) / 2
    )
    torch.testing.assert_close(split.running_var, (plain[0].running_var + plain[1].running_var) / 2)
    split.eval()
    torch.testing.assert_close(
        split(images),
        F.batch_norm(images, split.running_mean, split.running_var, split.weight, split.bias),
    )


@pytest.mark.parametrize(
    ("batch", "group", "groups"),
    [(256, 32, 8), (64, 32, 2), (32, 32, 1), (40, 32, 1), (50, 32, 2), (256, 0, 1), (1, 32, 1)],
)
def test_num_groups(batch, group, groups):
    assert num_groups(batch, group) == groups


def test_shuffle__changes_which_images_share_statistics_and_nothing_else():
    class WithGroups(TinyEncoder):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.norm = SplitBatchNorm2d(3, group_size=4)

        def forward(self, x):
            return super().forward(self.norm(x))

    def keys_of(encoder, shuffle: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = MoCo(encoder, dim=5, queue_size=16, shuffle=shuffle)
        images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(1))
        model(images, images)
        return model.queue[:, :8].T.clone()

    # Without BN a key does not depend on its neighbours, so shuffling must not show, order
    # included.
    torch.testing.assert_close(keys_of(TinyEncoder, True), keys_of(TinyEncoder, False))
    # With groups the neighbours count.
    assert not torch.allclose(keys_of(WithGroups, True), keys_of(WithGroups, False), atol=1e-3)


def test_logits__a_backward_pass_under_autocast_is_in_float32():
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (torch.randn(*shape, generator=generator) for shape in ((4, 6), (4, 6), (6, 9)))
    found = []
    for enabled in (False, True):
        leaf = q.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            contrastive_logits(leaf, k, queue, temperature=0.2).square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)
