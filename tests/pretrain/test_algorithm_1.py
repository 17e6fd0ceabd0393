"""MoCo with BN, in one process with SplitBN and in two with ShuffleBN, against Algorithm 1 written
in loops and float64.

Went red under: m and 1 - m swapped; keys left shuffled; the two key batches of the symmetric loss
    in the other order; BN over one group; the key
encoder never moving; the key encoder moving in every micro-batch.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import moco_transfer.pretrain.moco as moco_module
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.run import LossModule
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d

from .algorithm_1 import (
    IMAGES,
    LR,
    NUM_STEPS,
    Reference,
    assert_equal,
    build,
    images_of,
    permutation_of,
)
from .two_processes import run_in_two_processes

CASES = [(False, False), (True, False), (False, True), (True, True)]


def train(model, loss_of, images, parts=1, reduce=lambda tensor: tensor) -> list[float]:
    """Run NUM_STEPS of plain gradient descent.

    Args:
        model: MoCo.
        loss_of: Its ``loss``, or DistributedDataParallel of it.
        images: Gives this process's part of a step.
        parts: Micro-batches per step.
        reduce: Mean over the processes.
    """
    losses = []
    for step in range(NUM_STEPS):
        none = torch.zeros(0)
        model.zero_grad()
        model.begin_step(none)
        total = 0.0
        for views in images(step).chunk(parts, dim=1):
            loss, _ = loss_of(list(views), none, none)
            (loss / parts).backward()
            total += float(reduce(loss.detach())) / parts
        model.end_step()
        with torch.no_grad():
            for p in model.encoder_q.parameters():
                p -= LR * p.grad
        losses.append(total)
    return losses


def numbered_permutations():
    """Replace the random draw by the reference's permutations, in order."""
    draws = iter(range(10**6))
    return lambda batch_size: permutation_of(next(draws))


@pytest.mark.parametrize(("mlp", "symmetric"), CASES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_moco__one_process_with_split_bn(mlp, symmetric, accumulate, monkeypatch):
    norm = functools.partial(SplitBatchNorm2d, group_size=4)
    model = build(MoCo, norm, mlp=mlp, symmetric=symmetric)
    reference = Reference(model, num_groups=2)
    # One group per micro-batch: only without shuffling over both are they the groups of one batch.
    if accumulate == 2:
        model.shuffle = False
        reference.keys_of = lambda images: reference.encode(reference.k, list(images))
    monkeypatch.setattr(moco_module, "draw_permutation", numbered_permutations())
    losses = train(model, model.loss, images_of, parts=accumulate)
    assert_equal(model.state_dict(), losses, reference, reference.run(symmetric=symmetric))


def in_process(rank: int) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        return [in_process_case(rank, patch, *case) for case in CASES]


def in_process_case(rank: int, patch: pytest.MonkeyPatch, mlp: bool, symmetric: bool) -> dict:
    patch.setattr(moco_module, "draw_permutation", numbered_permutations())
    model = build(MoCo, nn.BatchNorm2d, mlp=mlp, symmetric=symmetric)
    wrapped = nn.parallel.DistributedDataParallel(LossModule(model), broadcast_buffers=False)
    own = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)

    def mean(loss):
        torch.distributed.all_reduce(loss)
        return loss / 2

    losses = train(model, wrapped, lambda step: images_of(step)[:, own], reduce=mean)
    return {"losses": losses, "state": model.state_dict()}


@pytest.fixture(scope="module")
def found_in_two_processes(tmp_path_factory):
    return run_in_two_processes(in_process, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_moco__two_processes_with_shuffle_bn(case, found_in_two_processes):
    mlp, symmetric = CASES[case]
    reference = Reference(build(MoCo, nn.BatchNorm2d, mlp=mlp, symmetric=symmetric), num_groups=2)
    expected = reference.run(symmetric=symmetric)
    for part in found_in_two_processes:
        assert_equal(part[case]["state"], part[case]["losses"], reference, expected)
