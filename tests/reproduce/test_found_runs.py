"""Which run records stand next to which number of the papers, and what is said of their protocol.

Seen red under: the test set not compared; a run of the `_msra` config put into the row with tuned
BN; seeds counted once a column; no remark on 2 iterations; K = 256 taken for K = 2560; the pretext
accuracy in the place of kNN's; no remark on 100 test images.
"""

from __future__ import annotations

import json
import statistics

import pytest

from moco_transfer.cli.main import main
from moco_transfer.config import load_pretrain_config


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes the record of a fine-tuning run below ``tmp_path``."""

    def make(name, task, init, metrics, *, seed=0, test="voc_2007_test", iterations=24000):
        data = {
            "schema": 1,
            "task": task,
            "config": task,
            "config_hash": f"hash of {task}",
            "engine": "torchvision",
            "init": init,
            "seed": seed,
            "norm": "SyncBN",
            "iterations": iterations,
            "wall_sec": 1.0,
            "world_size": 8,
            "weights": {"path": "", "sha256": None, "stamp": None, "coverage": {}},
            "metrics": metrics,
            "versions": {},
            "git": "abc",
            "flags": {"allow_partial": False, "forced": []},
            "dataset": {"train": ["voc_2007_trainval"], "test": [test]},
        }
        data["dataset"]["num_images"] = {test: 100 if name == "small" else 4952}
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(data))

    return make


@pytest.fixture
def cells(capsys, tmp_path):
    """Return a function from a table to its cells with runs: (row, column) -> the runs."""

    def read(*words):
        assert main(["reproduce", *words, "--runs", str(tmp_path), "--json"]) == 0
        ledger = json.loads(capsys.readouterr().out)
        found = {(c["row"], c["column"]): c["runs"] for c in ledger["cells"] if c["runs"]}
        others = [run for part in ledger["parts"] for run in part["other_runs"]]
        return found, others

    return read


def test_runs__stand_next_to_their_row(make_run, cells):
    task, values = "pascal_voc_R_50_C4_24k", (55.0, 56.5)
    for seed, ap in enumerate(values):
        bbox = {"AP": ap, "AP50": ap + 20, "AP75": ap + 5}
        make_run(f"moco{seed}", task, "moco_v1", {"bbox": bbox}, seed=seed)
    make_run("other", task, "moco", {"bbox": {"AP": 1.0}}, test="voc_2012_val")
    make_run("mine", task, "mine", {"bbox": {"AP": 50.0}}, iterations=2)
    make_run("small", task, "moco_v2", {"bbox": {"AP": 50.0}})
    found, others = cells("table2")
    row = "MoCo v1 IN-1M 200 ep"
    assert {key[0] for key in found} == {row}
    (run,) = found[row, "bbox/AP"]
    assert run["mean"] == pytest.approx(55.75)
    assert (run["std"], run["n"]) == (pytest.approx(statistics.stdev(values)), 2)
    assert found[row, "bbox/AP50"][0]["mean"] == pytest.approx(75.75)
    assert not any("24000" in remark for remark in run["remarks"])
    mine, small = others
    assert any("100 images" in remark and "4952" in remark for remark in small["remarks"])
    assert not any("4952" in remark for remark in mine["remarks"])
    assert mine["row"] == "mine" and mine["values"]["bbox/AP"]["mean"] == 50.0
    assert any("2 iterations" in remark and "24000" in remark for remark in mine["remarks"])


def test_runs__of_frozen_and_tuned_bn(make_run, cells):
    for name, ap in (("lvis_v0.5_R_50_FPN_2x", 23.0), ("lvis_v0.5_R_50_FPN_2x_msra", 24.0)):
        metrics = {"segm": {"AP": ap, "AP50": 30.0, "AP75": 20.0}}
        make_run(name, name, "supervised", metrics, test="lvis_v0.5_val", iterations=180000)
    found, _ = cells("a4")
    assert found["super. IN-1M, BN tuned", "segm/AP"][0]["mean"] == 23.0
    assert found["super. IN-1M, BN frozen", "segm/AP"][0]["mean"] == 24.0


def _write_features(folder, checkpoint, top1, epochs=100):
    folder.mkdir(parents=True)
    record = {"schema": "moco_transfer.linear/1", "checkpoint": str(checkpoint), "top1": top1}
    record |= {"protocol": {"epochs": epochs}, "num_train": 1000, "num_test": 500}
    record["num_classes"] = 1000
    (folder / "results.json").write_text(json.dumps(record))


def test_features__by_the_name_of_the_pre_training(cells, tmp_path):
    folder = tmp_path / "pretrain" / "moco_queue_size_256"
    folder.mkdir(parents=True)
    words = ["MOCO.QUEUE_SIZE", "256", "SOLVER.EPOCHS", "2", "DATA.ROOT", "elsewhere", "SEED", "7"]
    config = load_pretrain_config("moco_v1_R_50_200ep", words)
    (folder / "config.yaml").write_text(config.dump())
    _write_features(tmp_path / "linear" / "a", folder / "checkpoint_0002.pth", 12.5, epochs=1)
    _write_features(tmp_path / "linear" / "b", tmp_path / "moco_queue_size_2560" / "c.pth", 50.0)
    found, _ = cells("fig3")
    assert list(found) == [("MoCo", "256")]
    (run,) = found["MoCo", "256"]
    assert (run["mean"], run["n"]) == (12.5, 1)
    images, epochs, layer = sorted(run["remarks"])
    assert "1000" in images and "1281167" in images
    assert "SOLVER.EPOCHS 2" in epochs and "200" in epochs
    assert "1 epochs" in layer and "100" in layer


def test_features__of_a_checkpoint_without_a_config(cells, tmp_path):
    _write_features(tmp_path / "linear" / "moco_v2" / "seed0", tmp_path / "official.pth", 67.4)
    found, _ = cells("v2-table2")
    (run,) = found["MoCo v2, 200 ep, batch 256", "linear/top1"]
    assert run["mean"] == 67.4 and "official.pth" in run["remarks"][1]


def test_monitor__the_last_value_of_a_pre_training(cells, tmp_path):
    folder = tmp_path / "cifar10_asym_200ep"
    folder.mkdir()
    rows = [{"iteration": i, "loss": 5.0, "contrast_acc1": 70.0} for i in (97, 194)]
    rows += [{"iteration": i, "knn_top1": 30.0 + i / 97} for i in (97, 194)]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(load_pretrain_config("cifar10_asym_200ep").dump())
    found, _ = cells("cifar10")
    (run,) = found["asymmetric, 200 ep", "knn/top1"]
    assert run["mean"] == 32.0 and list(found) == [("asymmetric, 200 ep", "knn/top1")]
    assert "194" in run["remarks"][0]


def test_text__has_the_number_next_to_the_published_one(make_run, tmp_path, capsys):
    task = "coco_keypoint_R_50_FPN_2x"
    metrics = {"keypoints": {"AP": 65.55, "AP50": 86.0, "AP75": 71.0}}
    make_run("a", task, "moco", metrics, test="keypoints_coco_2017_val", iterations=180000)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text("{")
    assert main(["reproduce", "table6", "--only", "keypoint", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    published = next(i for i, line in enumerate(lines) if line.startswith("| MoCo v1 IN-1M"))
    assert "66.8 (+1.0)" in lines[published] and "| 65.5 |" in lines[published + 1]
    assert str(tmp_path / "b") in printed.err
