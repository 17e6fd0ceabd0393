"""The kNN monitor in a run, and knn and linear as a user calls them.

MUTATIONS
"""

from __future__ import annotations

import json

import torch
import torchvision

from .conftest import TINY_PRETRAIN, moco_transfer, words


def test_monitor__measures_every_nth_epoch_and_the_end_and_equals_the_tool(pool, tmp_path):
    settings = TINY_PRETRAIN | {"SOLVER.EPOCHS": "3", "KNN.PERIOD_EPOCHS": "2", "KNN.K": "5", "TRAIN.KEEP_CHECKPOINTS": "0"}
    done = moco_transfer("pretrain", "--config-file", "demo_moco", *words(settings, DATA__ROOT=pool, KNN__TEST=pool, OUTPUT_DIR=tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    measured = {row["iteration"]: row["knn_top1"] for row in rows if "knn_top1" in row}
    assert list(measured) == [6, 9]  # epochs 2 and 3 of three iterations each
    assert "epoch 2/3 kNN top-1" in (tmp_path / "log.txt").read_text()
    for number, iteration in ((2, 6), (3, 9)):
        common = ["--train", pool, "--test", pool, "--k", 5, "--workers", 0]
        tool = moco_transfer("knn", tmp_path / f"checkpoint_{number:04d}.pth", *common, "--output", tmp_path / "knn")
        assert tool.returncode == 0, tool.stderr
        found = json.loads((tmp_path / "knn" / "results.json").read_text())
        assert found["features"] == "head" and found["num_train"] == found["num_test"] == 24
        assert found["top1"] == measured[iteration]
    # asked about the bank itself with k 1, every picture finds itself
    alone = moco_transfer("knn", tmp_path / "checkpoint_0003.pth", "--train", pool, "--test", pool, "--k", 1, "--workers", 0)
    assert "kNN top-1 100.00 %" in alone.stdout


def test_monitor__does_not_change_the_run(pool, tmp_path):
    for name, more in (("with", {"KNN.TEST": str(pool)}), ("without", {})):
        done = moco_transfer(
            "pretrain", "--config-file", "demo_moco", *words(TINY_PRETRAIN | more, DATA__ROOT=pool, OUTPUT_DIR=tmp_path / name)
        )
        assert done.returncode == 0, done.stderr
    a, b = (torch.load(tmp_path / name / "checkpoint_0002.pth", weights_only=True)["state_dict"] for name in ("with", "without"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_cli_knn__refuses_what_it_cannot_use(pool, tmp_path):
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "0.png").write_bytes(next(pool.glob("*/*")).read_bytes())
    refused = moco_transfer("knn", tmp_path / "absent.pth", "--train", pool, "--test", tmp_path / "one")
    assert refused.returncode == 2 and "expected pictures of at least two classes" in refused.stderr
    refused = moco_transfer("knn", tmp_path / "absent.pth", "--train", pool, "--test", pool)
    assert refused.returncode == 2 and "does not exist" in refused.stderr
    refused = moco_transfer("knn", tmp_path / "absent.pth", "--train", pool, "--test", pool, "--temperature", 0)
    assert refused.returncode == 2 and "--k and --temperature must be positive, got 200 and 0.0" in refused.stderr


def test_cli_linear__trains_refuses_to_overwrite_and_resumes(pool, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=8)
    official = {f"module.encoder_q.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": official}, tmp_path / "official.pth.tar")
    common = ["--train", pool, "--test", pool, "--image-size", 32, "--workers", 0, "--batch-size", 8, "--lr", 0.1]
    command = ["linear", tmp_path / "official.pth.tar", *common, "--cache-features", "--output", tmp_path / "out", "--epochs", 30]
    done = moco_transfer(*command)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["schema"] == "moco_transfer.linear/1" and record["epoch"] == 200 and record["cache_features"]
    assert (record["image_size"], record["resize"]) == (32, 37) and record["num_classes"] == 8
    assert record["top1"] > 30  # of 24 pictures in 8 classes, seen in training: chance is 12.5
    assert f"linear top-1 {record['top1']:.2f} %" in done.stdout
    refused = moco_transfer(*command)
    assert refused.returncode == 2 and "already holds a run" in refused.stderr
    other = moco_transfer(*command, "--resume", "--lr", 0.2)
    assert other.returncode == 2 and "was made with protocol" in other.stderr
    # a backbone without a head has no head's features, but pooled ones
    del network.fc
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    asked = ["knn", tmp_path / "backbone.pth", "--train", pool, "--test", pool, "--image-size", 32, "--workers", 0, "--k", 3]
    refused = moco_transfer(*asked, "--features", "head")
    assert refused.returncode == 2 and "holds a backbone without a head. Use --features trunk." in refused.stderr
    results = [moco_transfer(*words) for words in (asked, ["knn", tmp_path / "official.pth.tar", *asked[2:], "--features", "trunk"])]
    assert "trunk features of 512 dimensions" in results[0].stdout, results[0].stderr
    assert results[0].stdout == results[1].stdout  # the same weights by two roads
