"""The kNN monitor in a run, and knn and linear as a user calls them.

Seen red under: a monitor that leaves BN in evaluation mode; the trunk's features for the head's;
``linear --resume`` without the optimiser's state.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch
import torchvision

from moco_transfer.cli import encoder as encoder_options
from moco_transfer.cli.main import main
from moco_transfer.pretrain.features import trunk_of
from moco_transfer.runtime.errors import InputError

from .conftest import TINY_PRETRAIN, environment, words


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def pretrained(folder, pool, **more: object):
    settings = words(TINY_PRETRAIN, SOLVER__EPOCHS=3, DATA__ROOT=pool, OUTPUT_DIR=folder, **more)
    run("pretrain", "--config-file", "demo_moco", *settings)
    state = torch.load(folder / "checkpoint_0003.pth", weights_only=True)["state_dict"]
    return rows_of(folder), state


def test_monitor__measures_every_nth_epoch_and_the_end_equals_the_tool_and_does_not_change_the_run(
    pool, tmp_path, capsys
):
    knn = {"KNN__TEST": pool, "KNN__PERIOD_EPOCHS": 2, "KNN__K": 20, "KNN__TEMPERATURE": 10.0}
    rows, state = pretrained(tmp_path / "with", pool, **knn)
    measured = {
        row["iteration"]: (row["epoch"], row["knn_top1"]) for row in rows if "knn_top1" in row
    }
    # Epochs 2 and 3 of three iterations each.
    assert [(i, epoch) for i, (epoch, _) in measured.items()] == [(6, 1), (9, 2)]
    assert "epoch 2/3 kNN top-1" in (tmp_path / "with" / "log.txt").read_text()
    _, alone = pretrained(tmp_path / "without", pool)
    assert state.keys() == alone.keys()
    assert all(torch.equal(state[name], alone[name]) for name in state)
    checkpoint = tmp_path / "with" / "checkpoint_0003.pth"
    command = ["knn", checkpoint, "--train", pool, "--test", pool, "--workers", 0]
    command += ["--k", 20, "--temperature", 10]
    capsys.readouterr()
    run(*command, "--output", tmp_path / "knn")
    found = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert (found["features"], found["image_size"]) == ("head", 32)
    assert found["num_train"] == found["num_test"] == 24
    assert found["top1"] == measured[9][1]
    assert f"kNN top-1 {found['top1']:.2f} %" in capsys.readouterr().out
    # Other features give another answer here, so the check above can fail.
    run(*command, "--features", "trunk", "--output", tmp_path / "trunk")
    assert json.loads((tmp_path / "trunk" / "results.json").read_text())["top1"] != found["top1"]


@pytest.mark.parametrize("mechanism", ["memory_bank", "end_to_end", "supervised"])
def test_monitor__serves_every_mechanism_and_equals_the_tool(mechanism, pool, tmp_path, capsys):
    settings = words(
        TINY_PRETRAIN,
        MECHANISM=mechanism,
        DATA__ROOT=pool,
        OUTPUT_DIR=tmp_path / "run",
        KNN__TEST=pool,
        KNN__K=5,
    )
    assert main(["pretrain", "--config-file", "demo_moco", *settings]) == 0
    measured = [row["knn_top1"] for row in rows_of(tmp_path / "run") if "knn_top1" in row]
    capsys.readouterr()
    checkpoint = tmp_path / "run" / "checkpoint_0002.pth"
    run("knn", checkpoint, "--train", pool, "--test", pool, "--k", 5, "--workers", 0)
    assert len(measured) == 2
    assert f"kNN top-1 {measured[-1]:.2f} %" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("webdataset") is None,
    reason="webdataset is not installed (extra 'shards')",
)
def test_monitor__on_two_processes_that_read_shards(pool, tmp_path, capsys):
    images = sorted(pool.glob("*/*"))
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for i, image in enumerate(images[number::2]):
                archive.add(image, f"{number}{i:03d}{image.suffix}")
    settings = words(
        TINY_PRETRAIN,
        DATA__ROOT=tmp_path / "{0..1}.tar",
        OUTPUT_DIR=tmp_path / "run",
        KNN__TRAIN=pool,
        KNN__TEST=pool,
        KNN__K=5,
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "moco_transfer.cli.main",
        "pretrain",
    ]
    done = subprocess.run(
        [*command, "--config-file", "demo_moco", *settings],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [row["knn_top1"] for row in rows_of(tmp_path / "run") if "knn_top1" in row]
    capsys.readouterr()
    checkpoint = tmp_path / "run" / "checkpoint_0002.pth"
    run("knn", checkpoint, "--train", pool, "--test", pool, "--k", 5, "--workers", 0)
    assert len(measured) == 2
    assert f"kNN top-1 {measured[-1]:.2f} %" in capsys.readouterr().out


def refusal(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file in the layout of the official checkpoints, and the network in it."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=8)
    folder = tmp_path_factory.mktemp("official")
    state = {f"module.encoder_q.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state}, folder / "official.pth.tar")
    del network.fc
    torch.save(network.state_dict(), folder / "backbone.pth")
    return folder


def test_cli_knn__refuses_what_it_cannot_use(official, pool, tmp_path, capsys):
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "0.png").write_bytes(next(pool.glob("*/*")).read_bytes())
    asked = ("knn", official / "official.pth.tar", "--train", pool, "--test")
    assert "expected images of at least two classes, found 0" in refusal(
        capsys, *asked, tmp_path / "one"
    )
    assert f"{tmp_path / 'nowhere'} does not exist" in refusal(capsys, *asked, tmp_path / "nowhere")
    absent = ("knn", tmp_path / "absent.pth", "--train", pool, "--test")
    assert f"{tmp_path / 'absent.pth'} does not exist" in refusal(capsys, *absent, pool)
    assert "--temperature: expected a number above 0, got 0" in refusal(
        capsys, *asked, pool, "--temperature", 0
    )


def test_open_encoder__the_same_trunk_of_an_official_file_and_of_a_backbone(official, pool, capsys):
    def opened(name, **more):
        options = {"encoder": "q", "image_size": None} | more
        return encoder_options.open_encoder(
            argparse.Namespace(checkpoint=str(official / name), **options)
        )

    whole, backbone = opened("official.pth.tar"), opened("backbone.pth", image_size=64)
    assert (
        whole.has_head
        and not backbone.has_head
        and whole.arch == backbone.arch == "resnet18"
        and whole.epoch == 200
    )
    assert (whole.view.size, whole.view.resize, backbone.view.size, backbone.view.resize) == (
        224,
        256,
        64,
        73,
    )
    assert backbone.view.mean == (123.675, 116.28, 103.53)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(trunk_of(whole.network)(images), trunk_of(backbone.network)(images))
    with pytest.raises(InputError, match="has no encoder 'k'"):
        opened("official.pth.tar", encoder="k")
    asked = (
        "knn",
        official / "backbone.pth",
        "--train",
        pool,
        "--test",
        pool,
        "--features",
        "head",
    )
    assert "holds a backbone without a head. Use --features trunk." in refusal(capsys, *asked)


def test_cli_linear__trains_and_refuses_to_overwrite(official, pool, tmp_path, capsys):
    command = ["linear", official / "official.pth.tar", "--train", pool, "--test", pool]
    command += ["--image-size", 32, "--workers", 0, "--cache-features", "--batch-size", 8]
    command += ["--lr", 0.1, "--epochs", 30, "--output", tmp_path / "out"]
    run(*command)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        record["schema"] == "moco_transfer.linear/1"
        and record["epoch"] == 200
        and record["cache_features"]
    )
    assert (record["image_size"], record["resize"], record["num_classes"]) == (32, 37, 8)
    assert record["top1"] > 30  # of images seen in training, in 8 classes: chance is 12.5
    assert f"linear top-1 {record['top1']:.2f} %" in capsys.readouterr().out
    assert "already holds a run" in refusal(capsys, *command)
    assert "--lr: expected a number above 0, got -1" in refusal(capsys, *command, "--lr", -1)


def test_cli_linear__told_to_stop_and_resumed_ends_as_an_uninterrupted_run(
    official, pool, tmp_path
):
    asked = ["linear", official / "official.pth.tar", "--train", pool, "--test", pool]
    asked += ["--image-size", 32, "--workers", 0, "--batch-size", 8, "--epochs", 12]
    run(*asked, "--output", tmp_path / "whole")
    words = map(str, [*asked, "--output", tmp_path / "cut"])
    command = [sys.executable, "-m", "moco_transfer", *words]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.time() + 120
    while not (tmp_path / "cut" / "last_checkpoint").exists():
        assert process.poll() is None and time.time() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143 and not (tmp_path / "cut" / "results.json").exists()
    run(*asked, "--resume", "--output", tmp_path / "cut")
    whole, cut = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")
    )
    assert (whole["top1"], whole["top5"]) == (cut["top1"], cut["top5"])
    states = [
        torch.load(sorted((tmp_path / name).glob("checkpoint_*.pth"))[-1], weights_only=True)
        for name in ("whole", "cut")
    ]
    assert all(
        torch.equal(tensor, states[1]["state_dict"][name])
        for name, tensor in states[0]["state_dict"].items()
    )
