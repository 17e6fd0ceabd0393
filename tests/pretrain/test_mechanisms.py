"""Memory bank and end to end, alone and in two processes; gradient accumulation; the memory of
InfoNCE.

Went red under: no gradient to gathered keys; the positive taken without the rank's offset; the
    bank's rows not scaled to unit norm; negatives
drawn from the batch too; keys of micro-batches enqueued one by one; overwritten columns forgotten;
sum for mean in InfoNCE's gradient; the first of two equal numbers kept.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco_transfer.pretrain.end_to_end import EndToEnd
from moco_transfer.pretrain.info_nce import contrastive_logits, enqueue, info_nce
from moco_transfer.pretrain.memory_bank import MemoryBank
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.run import LossModule

from .tiny_encoder import TinyEncoder
from .two_processes import run_in_two_processes

BATCH, STEPS, LR, PICTURES = 8, 5, 0.3, 20


def views_of(step: int) -> torch.Tensor:
    return torch.randn(
        2, BATCH, 3, 2, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64
    )


def images_of(step: int) -> torch.Tensor:
    return torch.randperm(PICTURES, generator=torch.Generator().manual_seed(50 + step))[:BATCH]


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "memory_bank":
        model = MemoryBank(
            TinyEncoder, num_images=PICTURES, dim=5, num_negatives=7, temperature=0.2, mlp=True
        )
    elif kind == "end_to_end":
        model = EndToEnd(TinyEncoder, dim=5, temperature=0.2)
    else:
        model = MoCo(
            TinyEncoder,
            dim=5,
            queue_size=11,
            momentum=0.9,
            temperature=0.2,
            symmetric=kind == "moco_symmetric",
        )
    return model.double()


def train(kind: str, *, rank: int = 0, world_size: int = 1) -> nn.Module:
    """Train through DistributedDataParallel where there are processes; returns the model."""
    model = build(kind)
    loss_of = model.loss
    if world_size > 1:
        loss_of = nn.parallel.DistributedDataParallel(LossModule(model), broadcast_buffers=False)
    part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    for step in range(STEPS):
        torch.manual_seed(step)
        take_step(model, loss_of, views_of(step)[:, part], images_of(step)[part], parts=1)
    return model


def take_step(model, loss_of, views, index, *, parts: int) -> float:
    """Take a step of plain gradient descent in micro-batches; returns the loss."""
    model.zero_grad()
    model.begin_step(index)
    total = 0.0
    for number, (some, of) in enumerate(
        zip(views.chunk(parts, dim=1), index.chunk(parts), strict=True)
    ):
        loss, _ = loss_of(list(some), of, of)
        if number == parts - 1:
            model.end_step()  # before the last backward pass, as in the loop
        (loss / parts).backward()
        total += loss.item() / parts
    with torch.no_grad():
        for p in model.encoder_q.parameters():
            p -= LR * p.grad
    return total


def seen_by_bank(model: MemoryBank, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Take the bank's part of a step; returns the logits."""
    model.begin_step(index)
    logits, _ = model(images, index)
    model.end_step()
    return logits


KINDS = ["moco", "moco_symmetric", "memory_bank", "end_to_end"]


def in_process(rank: int) -> dict:
    return {kind: train(kind, rank=rank, world_size=2).state_dict() for kind in KINDS}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_in_two_processes(in_process, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("kind", KINDS)
def test_mechanisms__two_processes_equal_one_with_the_whole_batch(kind, two_processes):
    expected = train(kind).state_dict()
    before = build(kind).state_dict()
    for found in two_processes:
        assert found[kind].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[kind][name], value, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected["encoder_q.body.weight"], before["encoder_q.body.weight"])


def test_end_to_end__equals_the_definition_and_keys_have_gradient():
    model = build("end_to_end")
    im_q, im_k = views_of(0)
    logits, target = model(im_q, im_k)
    features = [
        [F.normalize(model.encoder_q(x[None]), dim=1)[0] for x in view] for view in (im_q, im_k)
    ]
    losses = []
    for i, q in enumerate(features[0]):
        similarities = [torch.dot(q, k) / 0.2 for k in features[1]]
        losses.append(torch.logsumexp(torch.stack(similarities), 0) - similarities[i])
    expected = sum(losses) / BATCH
    assert logits.shape == (BATCH, BATCH)  # K = BATCH - 1
    assert info_nce(logits).item() == pytest.approx(expected.item(), rel=1e-12)
    own = torch.autograd.grad(info_nce(logits), list(model.encoder_q.parameters()))
    for mine, theirs in zip(
        own, torch.autograd.grad(expected, list(model.encoder_q.parameters())), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_memory_bank__positive_is_the_images_own_row_which_then_moves():
    model = build("memory_bank")
    before, index = model.bank.clone(), images_of(0)
    images = views_of(0)[0]
    logits = seen_by_bank(model, images, index)
    with torch.no_grad():
        q = F.normalize(model.encoder_q(images), dim=1)
    torch.testing.assert_close(logits[:, 0], (q * before[index]).sum(1) / 0.2)
    others = [i for i in range(PICTURES) if i not in index.tolist()]
    similarities = q[0] @ before[others].T / 0.2
    for value in logits[0, 1:]:  # K = 7 draws, each one of the images that are not in the batch
        assert torch.isclose(similarities, value).any()
    expected = before.clone()
    for row, i in enumerate(index.tolist()):
        moved = 0.5 * before[i] + 0.5 * q[row]
        expected[i] = moved / moved.norm()
    torch.testing.assert_close(model.bank, expected)


def test_memory_bank__a_image_that_is_there_twice_moves_once_towards_the_later_query():
    model = build("memory_bank")
    before, images = model.bank.clone(), views_of(0)[0]
    index = torch.tensor([4, 9, 2, 9, 7, 4, 9, 1])
    seen_by_bank(model, images, index)
    with torch.no_grad():
        q = F.normalize(model.encoder_q(images), dim=1)
    for number, last in ((4, 5), (9, 6), (2, 2), (7, 4), (1, 7)):
        moved = 0.5 * before[number] + 0.5 * q[last]
        torch.testing.assert_close(model.bank[number], moved / moved.norm())


def test_memory_bank__fewer_images_than_negatives():
    model = MemoryBank(TinyEncoder, num_images=10, dim=5, num_negatives=100).double()
    logits = seen_by_bank(model, views_of(0)[0], torch.arange(8))
    assert logits.shape == (8, 1 + 2)  # the two images outside the batch


@pytest.mark.parametrize("kind", ["moco", "moco_symmetric", "memory_bank"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation__equals_one_batch_queue_order_included(kind, parts):
    one, several = build(kind), build(kind)
    for step in range(3):
        losses = []
        for model, count in ((one, 1), (several, parts)):
            torch.manual_seed(step)
            losses.append(
                take_step(model, model.loss, views_of(step), images_of(step), parts=count)
            )
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(several.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_info_nce__equals_cross_entropy_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(6, 9, generator=generator, dtype=torch.float64)).requires_grad_()
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    assert info_nce(logits).item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (3 * info_nce(logits), 3 * expected))
    )
    assert info_nce(torch.zeros(2, 65537)).item() == pytest.approx(
        math.log(65537), rel=1e-6
    )  # 11.09, what a new run shows at most


def test_enqueue__backward_sees_the_queue_of_the_forward_pass():
    q = F.normalize(
        torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
    ).requires_grad_()
    queue = F.normalize(
        torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=0
    )
    k = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    plain = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone()], 1) / 0.1
    (expected,) = torch.autograd.grad(F.cross_entropy(plain, torch.zeros(4, dtype=torch.int64)), q)
    loss = info_nce(contrastive_logits(q, k, queue, temperature=0.1))
    enqueue(queue, torch.tensor([4]), torch.full((3, 3), 0.5, dtype=torch.float64))
    assert queue[:, [4, 5, 0]].eq(0.5).all()
    torch.testing.assert_close(torch.autograd.grad(loss, q, retain_graph=True)[0], expected)
    queue[:, 1] = 0.0
    with pytest.raises(RuntimeError, match="queue changed between a forward pass and its backward"):
        loss.backward()
