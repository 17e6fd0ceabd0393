"""LOGGERS from config to record: both steps, both engines, a run that is killed and resumed, and a
matrix, whose runs are a group and whose tables a record of it.

Written against, and not tried: no row for the evaluation at the end; LOGGERS counted in the
config hash; the tables of a matrix not handed over.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moco_transfer.cli.main import main

from .conftest import REPOSITORY, TINY_DETECTION, TINY_PRETRAIN, environment, words
from .test_lint_and_own_data import train_words

sys.path.insert(0, str(REPOSITORY / "tests" / "runtime"))

import tracker_records as read  # noqa: E402

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def records_equal_metrics(folder: Path, *names: str) -> None:
    expected = read.of_metrics_json(folder)
    ids = folder / "trackers.json"
    for name in names:
        if name == "mlflow":
            uri = f"sqlite:///{folder}/mlflow.db"
            found = read.of_mlflow(uri, json.loads(ids.read_text())["mlflow"])
        else:
            found = getattr(read, f"of_{name}")(folder)
        assert found.keys() == expected.keys()
        for curve, points in expected.items():
            assert found[curve] == pytest.approx(points, rel=1e-6), (name, curve)


def test_train__loggers_have_the_evaluations_too(scenes, tmp_path, capsys):
    more = {"TEST__EVAL_PERIOD": 4, "LOGGERS": "csv,tensorboard"}
    assert main(train_words(scenes, tmp_path / "run", **more)) == 0
    records_equal_metrics(tmp_path / "run", "csv", "tensorboard")
    curve = read.of_csv(tmp_path / "run")["bbox/AP"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [*curve] == [4, 6] and curve[6] == results["metrics"]["bbox"]["AP"]
    assert "metrics.csv" in capsys.readouterr().out
    hashes = {results["config_hash"]}
    assert main(train_words(scenes, tmp_path / "bare", **more | {"LOGGERS": "()"})) == 0
    hashes.add(json.loads((tmp_path / "bare" / "results.json").read_text())["config_hash"])
    assert len(hashes) == 1 and not (tmp_path / "bare" / "tensorboard").exists()


def test_loggers__that_do_not_exist_are_refused(scenes, pool, tmp_path, capsys):
    assert main(train_words(scenes, tmp_path / "run", LOGGERS="tensorbord")) == 2
    assert "Did you mean 'tensorboard'?" in capsys.readouterr().err
    settings = words(TINY_PRETRAIN, DATA__ROOT=pool, OUTPUT_DIR=tmp_path / "run", LOGGERS="csvs")
    assert main(["pretrain", "--config-file", "moco_v2_R_18_96px", *settings]) == 2
    assert "LOGGERS has 'csvs'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def kill_and_resume(arguments: list[str], folder: Path) -> None:
    """Start a run, kill it behind its first checkpoint, and resume it to its end."""
    command = [sys.executable, "-m", "moco_transfer", *map(str, arguments)]
    # Without W&B's process of this one, which would hold the run open.
    env = {name: value for name, value in environment().items() if "WANDB" not in name}
    run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not (folder / "last_checkpoint").exists():
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert main([arguments[0], "--resume", *map(str, arguments[1:])]) == 0


def extras() -> str:
    for name in ("wandb", "mlflow"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return "csv,wandb,mlflow"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_train__killed_and_resumed_has_one_record(engine, scenes, tmp_path):
    folder, names = tmp_path / "run", extras()
    # Long enough to be killed before its end.
    more = {"SOLVER__MAX_ITER": 80, "SOLVER__CHECKPOINT_PERIOD": 20, "LOGGERS": names}
    arguments = train_words(scenes, folder, **more)
    arguments[arguments.index("torchvision")] = engine
    kill_and_resume(arguments, folder)
    assert len(read.of_metrics_json(folder)["total_loss"]) == 4
    records_equal_metrics(folder, *names.split(","))
    saved = [f.path for r in read.wandb_records(folder) for f in r.files.files]
    assert {"config.yaml", "metrics.json", "results.json"} <= set(saved)


@pytest.mark.slow
def test_pretrain__killed_and_resumed_has_one_record(pool, tmp_path):
    folder, names = tmp_path / "run", extras()
    more = {"SOLVER__EPOCHS": 12, "DATA__ROOT": pool, "OUTPUT_DIR": folder, "LOGGERS": names}
    settings = words(TINY_PRETRAIN, **more)
    kill_and_resume(["pretrain", "--config-file", "moco_v2_R_18_96px", *settings], folder)
    assert len(read.of_metrics_json(folder)["loss"]) == 36
    records_equal_metrics(folder, *names.split(","))


@pytest.mark.slow
def test_benchmark__is_a_group_and_hands_over_its_tables(scenes, tmp_path):
    extras()
    output, classes = tmp_path / "matrix", scenes / "classes.txt"
    settings = words({k: v for k, v in TINY_DETECTION.items() if k != "SEED"}, LOGGERS="wandb")
    flags = [
        w
        for split in ("train", "test")
        for w in ("--dataset", f"group_{split}=voc:{scenes}:{split}:{classes}")
    ]
    arguments = ["--tasks", "demo_R_18_FPN", "--init", "random"]
    arguments += ["--output", str(output), "--engine", "torchvision", *flags, *settings]
    sets = ["DATASETS.TRAIN", "group_train", "DATASETS.TEST", "group_test"]
    assert main(["benchmark", *arguments, *sets]) == 0
    run = run_of(output / "demo_R_18_FPN" / "random" / "seed0")
    assert (run.display_name, run.run_group) == ("demo_R_18_FPN/random/seed0", "matrix")
    assert run_of(output / "report").run_group == "matrix"
    saved = [f.path for r in read.wandb_records(output / "report") for f in r.files.files]
    assert {"table.md", "report.html"} < set(saved) and any(f.endswith(".png") for f in saved)


def run_of(folder: Path):
    return next(r.run for r in read.wandb_records(folder) if r.WhichOneof("record_type") == "run")
