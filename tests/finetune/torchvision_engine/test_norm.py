"""Normalisation by name, frozen, and over two processes.

Seen red under: SyncBN's backward without its all-reduce; frozen layers that keep their BN;
    PreciseBN
without the average over ranks.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from moco_transfer.finetune.sync_norm import SyncBatchNorm2d, describe_norm, recompute_bn_statistics
from moco_transfer.finetune.torchvision_engine.layers import (
    NORMS,
    ConvNorm,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm2d,
    freeze,
)


@pytest.mark.parametrize("name", ["BN", "SyncBN", "naiveSyncBN"])
def test_one_process__equals_torchs_bn(name):
    torch.manual_seed(0)
    ours, theirs = NORMS[name](6), nn.BatchNorm2d(6)
    x = torch.randn(3, 6, 4, 5) * 2 + 1
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_frozen__is_bn_with_stored_statistics_and_learns_nothing():
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(4)
    for tensor in (bn.weight.data, bn.bias.data, bn.running_mean, bn.running_var):
        tensor.uniform_(0.5, 2)
    frozen = FrozenBatchNorm2d(4)
    frozen.load_state_dict({k: v for k, v in bn.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    expected = bn.eval()(x)
    torch.testing.assert_close(frozen.train()(x), expected)
    torch.testing.assert_close(frozen(x.detach()), expected)
    assert not list(frozen.parameters())
    torch.testing.assert_close(
        FrozenBatchNorm2d(4)(x), x
    )  # the identity, before anything is loaded


def test_freeze__stops_gradients_and_turns_bn_into_frozen_bn():
    layer = ConvNorm(3, 32, kernel_size=3, norm="SyncBN", bias=False)
    keys = layer.state_dict().keys()
    assert freeze(layer) is layer
    assert isinstance(layer.norm, FrozenBatchNorm2d)
    assert not any(p.requires_grad for p in layer.parameters())
    assert layer.state_dict().keys() == keys
    group_norm = freeze(ConvNorm(3, 32, kernel_size=3, norm="GN"))
    assert isinstance(group_norm.norm, nn.GroupNorm) and not group_norm.norm.weight.requires_grad


def test_describe__names_what_is_really_used():
    model = nn.Sequential(
        *(NORMS[name](32) for name in ("SyncBN", "naiveSyncBN", "FrozenBN", "BN", "GN"))
    )
    assert (
        describe_norm(model, 1, torch.device("cpu"))
        == "BN (SyncBN in one process) x 1 + BN (naiveSyncBN in one process) x 1 + FrozenBN x 1 +"
        " BN x 1 + GN x 1"
    )
    assert describe_norm(nn.Linear(2, 2), 1, torch.device("cpu")) == "none"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_two_processes(folder: Path, work, *args) -> list:
    """Run work(rank, *args) on two gloo ranks; return what each returned.

    A rank's exception fails the test.
    """
    mp.spawn(_rank, (free_port(), folder, work, args), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _rank(rank: int, port: int, folder: Path, work, args) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(work(rank, *args), folder / f"{rank}.pt")
    dist.destroy_process_group()


def _inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Unequal sizes: the ranks' statistics must be weighted by their number of positions.
    return [
        torch.randn(2, 3, 4, 5, generator=generator) + 1,
        torch.randn(1, 3, 7, 2, generator=generator) * 3,
    ]


def _sync_step(rank: int, name: str) -> dict:
    norm = NORMS[name](3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = _inputs()[rank].requires_grad_()
    y = norm(x)
    (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
    parameters = {
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }
    return {"y": y.detach(), "grad": x.grad, "text": describe_norm(norm, 2, x.device)} | parameters


def _everything(rank: int) -> dict[str, dict]:
    steps = {name: _sync_step(rank, name) for name in ("SyncBN", "naiveSyncBN")}
    return steps | {"trained": _train_steps(rank, 2, 2), "precise": _precise(rank)}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict[str, dict]]:
    """What each of two ranks got, for all tests: starting the processes takes most of the time."""
    return in_two_processes(tmp_path_factory.mktemp("ranks"), _everything)


def test_sync_bn__two_ranks_equal_one_process_with_all_positions(two_ranks):
    ranks = [rank["SyncBN"] for rank in two_ranks]
    # One process: the positions of both ranks in one long row.
    norm = nn.BatchNorm2d(3).double()
    norm.weight.data.copy_(torch.tensor([0.5, 1.0, 2.0]))
    rows = [x.double().transpose(0, 1).reshape(1, 3, 1, -1) for x in _inputs()]
    row = torch.cat(rows, dim=3).requires_grad_()
    out = norm(row)
    back = [
        y.reshape(3, x.shape[0], *x.shape[2:]).transpose(0, 1)
        for y, x in zip(out.split([r.shape[3] for r in rows], dim=3), _inputs(), strict=True)
    ]
    sum((y * torch.arange(y.numel()).view(y.shape).sin()).sum() for y in back).backward()
    grads = row.grad.split([r.shape[3] for r in rows], dim=3)
    for rank, x, y, grad in zip(ranks, _inputs(), back, grads, strict=True):
        torch.testing.assert_close(rank["y"].double(), y.detach(), rtol=1e-5, atol=1e-6)
        wanted = grad.reshape(3, x.shape[0], *x.shape[2:]).transpose(0, 1)
        torch.testing.assert_close(rank["grad"].double(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rank["mean"].double(), norm.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rank["var"].double(), norm.running_var, rtol=1e-5, atol=1e-6)
        assert rank["text"] == "SyncBN over 2 ranks (gloo) x 1"
    # Weight and bias hold this rank's share, for DistributedDataParallel to add up.
    torch.testing.assert_close(
        (ranks[0]["bias"] + ranks[1]["bias"]).double(), norm.bias.grad, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        (ranks[0]["weight"] + ranks[1]["weight"]).double(), norm.weight.grad, rtol=1e-4, atol=1e-5
    )


def test_naive_sync_bn__two_ranks_by_hand(two_ranks):
    ranks = [rank["naiveSyncBN"] for rank in two_ranks]
    inputs = [x.double() for x in _inputs()]
    # Each rank has the same weight, for any size; the variance is E[x^2] - E[x]^2, also in the
    # running average.
    mean = sum(x.mean(dim=(0, 2, 3)) for x in inputs) / 2
    var = sum(x.square().mean(dim=(0, 2, 3)) for x in inputs) / 2 - mean.square()
    weight = torch.tensor([0.5, 1.0, 2.0]).double()
    for rank, x in zip(ranks, inputs, strict=True):
        expected = (
            (x - mean.view(1, 3, 1, 1))
            / (var + 1e-5).sqrt().view(1, 3, 1, 1)
            * weight.view(1, 3, 1, 1)
        )
        torch.testing.assert_close(rank["y"].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rank["mean"].double(), 0.1 * mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rank["var"].double(), 0.9 + 0.1 * var, rtol=1e-5, atol=1e-5)
        assert rank["text"] == "naiveSyncBN over 2 ranks (gloo) x 1"


def _reference_naive_step(rank: int) -> dict:
    from detectron2.layers import NaiveSyncBatchNorm

    outputs = []
    for norm in (NaiveSyncBatchNorm(3), NaiveSyncBatchNorm2d(3)):
        x = _inputs()[rank].requires_grad_()
        y = norm(x)
        (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        outputs.append([y.detach(), x.grad, norm.weight.grad, norm.running_var])
    return outputs


@pytest.mark.detectron2
def test_naive_sync_bn__equals_detectron2_live(tmp_path):
    for theirs, ours in in_two_processes(tmp_path, _reference_naive_step):
        for their, our in zip(theirs, ours, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


def _train_steps(rank: int, world_size: int, num_steps: int) -> dict:
    """The run's own step on a small detector: four images in one batch, or two on each rank in
    DistributedDataParallel.
    """
    from detector_cases import draw_images, draw_weights, make_config

    from moco_transfer.finetune import trainer
    from moco_transfer.finetune.torchvision_engine.build import build_model, build_optimizer

    cfg = make_config(
        "r18_fpn",
        MODEL__RESNETS__NORM="SyncBN",
        MODEL__FPN__NORM="SyncBN",
        MODEL__RESNETS__STEM_OUT_CHANNELS=16,
        MODEL__ROI_BOX_HEAD__FC_DIM=32,
        MODEL__FPN__OUT_CHANNELS=32,
        SOLVER__BASE_LR=0.002,
    )
    model = build_model(cfg).double()
    model.load_state_dict(draw_weights(model))
    records = draw_images(4)
    for record in records:  # one size: else one batch is padded further than two
        record["image"] = record["image"][:, :64, :64]
        record["gt_boxes"] = torch.tensor(
            [[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 34.0], [30.0, 30.0, 62.0, 62.0]]
        )
    engine = SimpleNamespace(
        device=torch.device("cpu"),
        build_optimizer=lambda model: build_optimizer(cfg, model),
        iteration_starter=lambda optimizer: lambda iteration: None,
    )
    run = trainer.FineTuning(engine, model, {})
    for _ in range(num_steps):
        trainer.step(run, records if world_size == 1 else records[2 * rank : 2 * rank + 2])
    return model.state_dict()


def test_two_ranks_with_sync_bn__train_like_one_process_with_all_images(two_ranks):
    one = _train_steps(0, 1, 2)
    first, second = (rank["trained"] for rank in two_ranks)
    for name, value in one.items():
        for rank in (first, second):
            torch.testing.assert_close(
                rank[name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


class _Normalised(nn.Module):
    """A model of one BN layer that takes batches as a detector does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, batch: list[dict]) -> torch.Tensor:
        return self.norm(torch.stack([record["image"] for record in batch]))


def _precise_batches(rank: int) -> list[list[dict]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        [{"image": torch.randn(3, 4, 5, generator=generator) * (1 + rank) + rank}] for _ in range(3)
    ]


def _precise(rank: int) -> dict:
    model = _Normalised()
    recompute_bn_statistics(model, _precise_batches(rank), num_iterations=2)
    return model.state_dict()


def test_precise_bn__every_rank_ends_with_the_mean_over_ranks(two_ranks):
    first, second = (rank["precise"] for rank in two_ranks)
    # By hand: each batch's statistics, averaged over the two batches that are used, then over the
    # ranks.
    images = [
        [batch[0]["image"].double().flatten(1) for batch in _precise_batches(rank)[:2]]
        for rank in (0, 1)
    ]
    mean = torch.stack([image.mean(dim=1) for rank in images for image in rank]).mean(dim=0)
    for rank in (first, second):
        torch.testing.assert_close(rank["norm.running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(first["norm.running_var"], second["norm.running_var"])
    assert 1.5 < first["norm.running_var"].mean() < 4  # between the ranks' own 1 and 4


def test_sync_bn__cuda_takes_torchs_code_and_the_cpu_may_be_wrapped(monkeypatch):
    """On CUDA with several ranks torch's own forward runs; the class itself is none that
    DistributedDataParallel refuses on the CPU.
    """
    from moco_transfer.finetune import sync_norm as module

    assert not issubclass(SyncBatchNorm2d, nn.SyncBatchNorm)
    layer, asked = SyncBatchNorm2d(2), []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: asked.append(self) or x)
    monkeypatch.setattr(module, "get_world_size", lambda: 2)

    class OnCuda:
        device = torch.device("cuda", 0)

    layer.forward(OnCuda())
    assert asked == [layer]
    # what torch's forward reads of its own class
    assert layer.process_group is None and layer._check_non_zero_input_channels is not None
