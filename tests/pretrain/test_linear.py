"""The linear protocol: its SGD against a plain torch loop, its settings against the paper's,
resuming, and that the encoder stays as it is.

Seen red under: the second step at 90 %; the loss divided by the full batch in a partial one;
    momentum not restored; weights from N(0, 0.02); the
same order in each epoch; the trunk in training mode; a run stopped within an epoch that begins it
again, or forgets its sums; no heartbeat.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from moco_transfer.data.views.labelled import EvaluationView, find_labelled
from moco_transfer.models import build_encoder
from moco_transfer.pretrain import linear
from moco_transfer.pretrain.encoder_file import TrainedEncoder
from moco_transfer.pretrain.features import FeatureSet
from moco_transfer.pretrain.linear import (
    LinearPlan,
    LinearProtocol,
    LinearRun,
    accuracy_on,
    evaluate_linear,
    shuffled_batches,
    train_classifier,
)
from moco_transfer.runtime.checkpoint import CheckpointFolder, load_checkpoint
from moco_transfer.runtime.device import Compute
from moco_transfer.runtime.errors import InputError

CPU = torch.device("cpu")


def feature_set(count: int, seed: int) -> FeatureSet:
    """Features whose class shows in one coordinate, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = 0.3 * torch.randn(count, 5, generator=generator)
    features[torch.arange(count), labels] += 0.3
    return FeatureSet(features, labels, ("a", "b", "c"), 0)


def new_run(dim: int, classes: int, protocol: LinearProtocol, **settings) -> LinearRun:
    settings = {"settings": {}} | settings
    return LinearRun(dim, classes, protocol, num_train=22, device=CPU, **settings)


def train(protocol: LinearProtocol, folder, *, resume: bool = False):
    train_set, test_set = feature_set(22, seed=1), feature_set(30, seed=2)
    run = new_run(5, 3, protocol, settings={"checkpoint_sha256": "ab"})
    checkpoints = CheckpointFolder(folder)
    if resume:
        run.restore(load_checkpoint(checkpoints.last()), "checkpoint")
    order = shuffled_batches(22, protocol, start=run.iteration)
    batches = (
        (train_set.features[[i for _, i in places]], train_set.labels[[i for _, i in places]])
        for places in order
    )
    return run, train_classifier(run, batches, test_set, checkpoints=checkpoints, metrics=None)


def plain_loop(protocol: LinearProtocol) -> tuple[nn.Linear, float, float]:
    """The protocol by hand:

    PyTorch's layer, optimiser and scheduler, and the same order of images.
    """
    train_set, test_set = feature_set(22, seed=1), feature_set(30, seed=2)
    layer = nn.Linear(5, 3)
    layer.load_state_dict(new_run(5, 3, protocol).classifier.state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=protocol.lr, momentum=0.9, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 8], 0.1)
    batches = shuffled_batches(22, protocol)
    for _ in range(10):
        losses, count = 0.0, 0
        for _ in range(3):  # 8 + 8 + 6
            index = [i for _, i in next(batches)]
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(train_set.features[index]), train_set.labels[index])
            loss.backward()
            optimizer.step()
            losses, count = losses + loss.item() * len(index), count + len(index)
        scheduler.step()
    assert count == 22
    right = (layer(test_set.features).argmax(1) == test_set.labels).float().mean().item()
    return layer, losses / count, 100 * right


def test_train_classifier__equals_a_plain_torch_loop(tmp_path):
    protocol = LinearProtocol(lr=3.0, epochs=10, batch_size_total=8)
    run, row = train(protocol, tmp_path)
    layer, loss, top1 = plain_loop(protocol)
    torch.testing.assert_close(
        run.classifier.state_dict(), layer.state_dict(), atol=1e-5, rtol=1e-5
    )
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert row["top1"] == pytest.approx(top1) and row["top5"] == 100.0
    assert 60 < row["top1"] < 100


def test_protocol__is_the_papers():
    protocol = LinearProtocol()
    assert [protocol.lr_in(epoch) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [30, 30, 3, 3, 0.3, 0.3]
    )
    assert (
        protocol.weight_decay,
        protocol.sgd_momentum,
        protocol.batch_size_total,
        protocol.epochs,
    ) == (0, 0.9, 256, 100)
    run = new_run(2048, 1000, protocol)
    assert (
        run.classifier.weight.std().item() == pytest.approx(0.01, rel=0.01)
        and run.classifier.weight.mean().abs() < 1e-4
    )
    assert run.classifier.bias.abs().max() == 0
    group = run.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (
        30,
        0.9,
        0,
        False,
    )


def test_shuffled_batches__every_image_once_in_an_epoch_the_partial_batch_too():
    protocol = LinearProtocol(epochs=2, batch_size_total=8)
    batches = list(shuffled_batches(22, protocol))
    assert [len(b) for b in batches] == [8, 8, 6] * 2
    for epoch in (0, 1):
        seen = [i for b in batches[3 * epoch : 3 * epoch + 3] for _, i in b]
        assert sorted(seen) == list(range(22))
    assert [i for _, i in batches[0]] != [i for _, i in batches[3]]
    for epoch, step in ((1, 0), (0, 2), (1, 1)):
        rest = list(shuffled_batches(22, protocol, start=3 * epoch + step))
        assert rest == batches[3 * epoch + step :]


class StopAfter:
    """Stands for StopRequest: SIGTERM comes after so many iterations."""

    name = "SIGTERM"

    def __init__(self, iterations: int) -> None:
        self.left = iterations

    def __call__(self) -> StopAfter:
        return self

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def agreed(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("iterations", "saved"),
    [(21, "0007"), (28, "0009_iter00000028"), (2, "0000_iter00000002"), (0, "0000")],
)
def test_train_classifier__resumed_run_equals_an_uninterrupted_one(
    iterations, saved, tmp_path, monkeypatch
):
    protocol = LinearProtocol(lr=3.0, epochs=10, batch_size_total=8)
    whole, row = train(protocol, tmp_path / "whole")
    monkeypatch.setattr(linear, "StopRequest", StopAfter(iterations))
    _, stopped = train(protocol, tmp_path / "cut")
    assert (
        stopped is None
        and (tmp_path / "cut" / "last_checkpoint").read_text() == f"checkpoint_{saved}.pth\n"
    )
    monkeypatch.undo()
    resumed, row_resumed = train(protocol, tmp_path / "cut", resume=True)
    assert row == row_resumed
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name])
    _, again = train(
        protocol, tmp_path / "cut", resume=True
    )  # nothing left to do: the result is measured again
    assert again["top1"] == row["top1"]


def test_restore__other_features_or_settings__error(tmp_path):
    train(LinearProtocol(lr=3.0, epochs=1, batch_size_total=8), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint_0001.pth")
    with pytest.raises(
        InputError, match="was made with checkpoint_sha256 'ab', the run to resume has 'cd'"
    ):
        new_run(5, 3, LinearProtocol(), settings={"checkpoint_sha256": "cd"}).restore(state, "x")
    with pytest.raises(InputError, match="not a checkpoint of moco-transfer linear"):
        new_run(5, 3, LinearProtocol()).restore({"format": "other"}, "x")


def test_train_classifier__loss_that_is_not_finite__error(tmp_path):
    with pytest.raises(FloatingPointError, match="Lower --lr"):
        train(LinearProtocol(lr=1e38, epochs=3, batch_size_total=8), tmp_path)


def test_accuracy_on__known_numbers():
    scores = torch.tensor(
        [[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]]
    )
    test = FeatureSet(scores, torch.tensor([0, 4, 5, 5]), tuple("abcdef"), 0)
    assert accuracy_on(lambda features: features, test) == {"top1": 50.0, "top5": 75.0}


@pytest.mark.parametrize("cache_features", [False, True])
def test_evaluate_linear__leaves_the_encoder_as_it_is_and_learns(cache_features, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):  # a bright and a dark class
        folder = tmp_path / "images" / ("dark", "bright")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 60, (20, 20, 3)) + 150 * (i % 2)).astype(np.uint8)).save(
            folder / f"{i}.png"
        )
    torch.manual_seed(0)
    network = build_encoder("resnet18_cifar", num_classes=4).eval().requires_grad_(False)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    train_folder, test_folder = find_labelled(tmp_path / "images", tmp_path / "images")
    encoder = TrainedEncoder(
        network, "resnet18_cifar", EvaluationView(16, 18, (127.0,) * 3, (60.0,) * 3), True
    )
    plan = LinearPlan(
        encoder,
        train_folder,
        test_folder,
        {"checkpoint": "x.pth"},
        Compute(CPU),
        tmp_path / "out",
        LinearProtocol(lr=1.0, epochs=4, batch_size_total=5),
        cache_features=cache_features,
    )
    (tmp_path / "out").mkdir()
    beat, beats = tmp_path / "out" / "heartbeat.json", []
    network.conv1.register_forward_hook(lambda *_: beats.append(beat.exists()))
    record = evaluate_linear(plan)
    assert set(beats) == {True} and not beat.exists()
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert record["top1"] == 100.0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == record
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()
    ]
    assert [row["iteration"] for row in rows] == [3, 6, 9, 12]
    assert [row["lr"] for row in rows] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert (
        record["feature_dim"] == 512
        and record["num_train"] == 12
        and record["train_loss"] == rows[-1]["loss"]
    )
    if cache_features:  # a resume that is refused leaves what the run was
        config = (tmp_path / "out" / "config.yaml").read_text()
        with pytest.raises(InputError, match="was made with protocol"):
            other = LinearProtocol(lr=2.0, epochs=4, batch_size_total=5)
            evaluate_linear(dataclasses.replace(plan, protocol=other, resume=True))
        assert (tmp_path / "out" / "config.yaml").read_text() == config and "lr: 1.0" in config
