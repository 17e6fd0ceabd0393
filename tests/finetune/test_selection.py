"""TEST.KEEP_BEST and TEST.PATIENCE: which weights a run reports, when it ends, what the table says.

Evaluations are replaced by a list of APs, so that the best is known. Seen red under: the last
weights reported; the lowest value taken for the best; the counter of patience not reset, one too
late, or not in the checkpoint; the mark left out.
"""

from __future__ import annotations

import logging

import pytest
import torch
from generated_images import write_voc_scenes

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config
from moco_transfer.data import register_dataset
from moco_transfer.data.annotations import catalog
from moco_transfer.finetune import run as finetune_run
from moco_transfer.finetune.plan import Request, config_hash, plan_finetuning
from moco_transfer.finetune.run import finetune
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.stop import StopRequest

TINY = """DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.015 SOLVER.MAX_ITER 6
    SOLVER.STEPS (5,) SOLVER.WARMUP_ITERS 0 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
    MODEL.FPN.OUT_CHANNELS 16
    MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.DEVICE cpu SEED 0
    MODEL.ROI_HEADS.NUM_CLASSES 8 TEST.PRECISE_BN.ENABLED False LOGGERS () TEST.EVAL_PERIOD 1
    DATASETS.TRAIN ('mine_train',) DATASETS.TEST ('mine_test',)""".split()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_voc_scenes(folder, splits={"train": 4, "test": 2}, size=64, seed=0)
    return folder


@pytest.fixture(autouse=True)
def mine(monkeypatch, scenes):
    monkeypatch.setattr(logging.getLogger("moco_transfer"), "propagate", True)
    monkeypatch.setattr(catalog, "_OWN", {})
    classes = (scenes / "classes.txt").read_text().split()
    for name, split in (("mine_train", "train"), ("mine_test", "test"), ("mine_val", "test")):
        register_dataset(name, "voc", root=str(scenes), split=split, class_names=classes)


def plan(folder, *words, **options):
    overrides = [*TINY, "OUTPUT_DIR", str(folder), *map(str, words)]
    request = Request("demo_R_18_FPN", overrides, engine="torchvision", task="tiny", **options)
    return plan_finetuning(request)


@pytest.fixture
def scored(monkeypatch):
    """Return the function that runs a plan whose evaluations give APs, by iteration."""
    real = finetune_run._evaluate

    def run(aps, *arguments, **options):
        seen = []

        def evaluate(plan, run, stop, *, at_end=False):
            found = real(plan, run, stop, at_end=at_end)
            if found is not None and not at_end:  # None: told to stop within it
                seen.append(run.iteration)
                found["metrics"] = {"bbox": {"AP": aps[run.iteration]}}
            return found

        monkeypatch.setattr(finetune_run, "_evaluate", evaluate)
        return finetune(plan(*arguments, **options)), seen

    return run


RISING = {1: 3.0, 2: 9.0, 3: 4.0, 4: 5.0, 5: 1.0, 6: 2.0}


def test_keep_best__the_best_weights_are_reported(scored, tmp_path, capsys):
    record, seen = scored(RISING, tmp_path / "run", "TEST.KEEP_BEST", "bbox/AP")
    assert seen == [1, 2, 3, 4, 5, 6] and record["iterations"] == 6
    assert record["selection"] == {
        **{"metric": "bbox/AP", "patience": 0, "value": 9.0, "iteration": 2},
        **{"chosen_on": "mine_test", "stopped_at": None},
    }
    # Its results are those of the run that ends there.
    short, _ = scored(RISING, tmp_path / "short", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(5,)")
    best, last = (
        torch.load(tmp_path / name, weights_only=True)["model"]
        for name in ("run/best.pth", "short/checkpoint_0000002.pth")
    )
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert record["metrics"] == short["metrics"]
    assert main(["report", str(tmp_path / "run")]) == 0
    table = capsys.readouterr().out
    assert "| random†" in table and "chosen by bbox/AP on the test set itself" in table


def test_patience__ends_the_run_and_survives_a_restart(scored, tmp_path, monkeypatch):
    words = ["TEST.KEEP_BEST", "bbox/AP", "TEST.PATIENCE", 3]
    record, seen = scored(RISING, tmp_path / "whole", *words)
    assert seen == [1, 2, 3, 4, 5] and record["selection"]["stopped_at"] == 5
    assert record["iterations"] == 5
    with monkeypatch.context() as patch:
        # Asked in each iteration, and twice in each evaluation: the fourth iteration.
        stops = iter([*[False] * 9, True])
        patch.setattr(StopRequest, "agreed", lambda self: next(stops, False))
        assert scored(RISING, tmp_path / "cut", *words) == (None, [1, 2, 3])
    again, _ = scored(RISING, tmp_path / "cut", *words, resume=True)
    same = ("selection", "metrics", "iterations")
    assert [again[key] for key in same] == [record[key] for key in same]


def test_keep_best__on_another_set_than_the_tables(tmp_path, capsys):
    sets = ["DATASETS.TEST", "('mine_val','mine_test')", "TEST.KEEP_BEST", "mine_val/bbox/AP"]
    record = finetune(plan(tmp_path / "run", *sets, "TEST.EVAL_PERIOD", 3))
    assert record["selection"]["chosen_on"] == "mine_val"
    assert main(["report", str(tmp_path / "run")]) == 0
    table = capsys.readouterr().out
    assert "by mine_val/bbox/AP on mine_val in" in table and "on the test set itself in" in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TEST.KEEP_BEST", "bbox/AP", "TEST.EVAL_PERIOD", 0], "TEST.EVAL_PERIOD is 0"),
        (["TEST.KEEP_BEST", "segm/AP"], "expected bbox/AP"),
        (["TEST.KEEP_BEST", "", "TEST.PATIENCE", 3], "TEST.KEEP_BEST is ''"),
        (["TEST.PATIENCE", 3], "TEST.PATIENCE needs TEST.KEEP_BEST"),
    ],
)
def test_keep_best__what_cannot_be_chosen_is_refused(words, said, tmp_path):
    with pytest.raises(InputError, match=said):
        plan(tmp_path / "run", *words)


def test_keep_best__a_metric_that_is_not_measured_is_named(tmp_path):
    with pytest.raises(InputError, match="'bbox/APx' was not measured; there is bbox/AP, "):
        finetune(plan(tmp_path / "run", "TEST.KEEP_BEST", "bbox/APx"))


def test_config_hash__knows_the_choice(tmp_path):
    def hash_of(*words):
        return config_hash(load_detection_config("demo_R_18_FPN", words))

    assert hash_of("TEST.KEEP_BEST", "bbox/AP") != hash_of()
    assert hash_of("LOGGERS", "csv") == hash_of()
    longer = hash_of("TEST.KEEP_BEST", "bbox/AP", "TEST.PATIENCE", "3")
    assert longer != hash_of("TEST.KEEP_BEST", "bbox/AP")
