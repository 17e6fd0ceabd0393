"""What trackers are given is read back by their own libraries and equals metrics.json, also of runs
that were killed and resumed; what they do wrong changes nothing in a run.

Seen red under: rows of before the resumption not handed over; TensorBoard's events after it kept;
an exception of a writer not caught; a hanging one waited for (the test does not end).
Not tried: MLflow given a row twice; earlier offline folders of W&B kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import tracker_records as read

from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.metrics import MetricsFile
from moco_transfer.runtime.trackers import record, writers


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(logging.getLogger("moco_transfer"), "propagate", True)


def has(name):
    return importlib.util.find_spec(name) is not None


def needed(name):
    if not has(name):
        pytest.skip(f"{name} is not installed")


def rows(metrics, first, last):
    for iteration in range(first, last + 1, 10):
        values = {"loss": 1 / iteration, "epoch": iteration // 20, "none": None}
        metrics.write(iteration, values | ({"bbox/AP-a": 40.5} if iteration % 20 == 0 else {}))


def read_back(name, folder):
    if name == "mlflow":
        run_id = json.loads((folder / "trackers.json").read_text())["mlflow"]
        return read.of_mlflow(f"sqlite:///{folder}/mlflow.db", run_id)
    return getattr(read, f"of_{name}")(folder)


KILLED = """
import json, os, signal, sys, time
from moco_transfer.runtime.metrics import MetricsFile
path, loggers = sys.argv[1], sys.argv[2].split(",")
metrics = MetricsFile(path, loggers=loggers, settings={"SEED": 3})
for iteration in range(10, 51, 10):
    metrics.write(iteration, {"loss": 1 / iteration, "epoch": iteration // 20})
while any(not worker.calls.empty() for worker in metrics._trackers._workers):
    time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "loggers",
    [("tensorboard", "csv"), pytest.param(("csv", "wandb", "mlflow"), marks=pytest.mark.slow)],
)
def test_trackers__killed_and_resumed_it_is_one_record(loggers, tmp_path):
    for name in set(loggers) & {*writers.EXTRAS}:
        needed(name)
    path, config = tmp_path / "metrics.json", tmp_path / "config.yaml"
    command = [sys.executable, "-c", KILLED, str(path), ",".join(loggers)]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    time.sleep(1)  # TensorBoard orders event files by the second
    config.write_text("SEED: 3\n")
    resumed = MetricsFile(path, start_iteration=30, loggers=loggers, settings={"SEED": 3})
    rows(resumed, 40, 80)  # its checkpoint is of iteration 30
    resumed.finish([config, tmp_path / "results.json"])
    resumed.close()
    expected = read.of_metrics_json(tmp_path)
    assert len(expected["loss"]) == 8 and len(expected["bbox/AP-a"]) == 3
    for name in loggers:
        found = read_back(name, tmp_path)
        assert found.keys() == expected.keys(), name
        for curve, points in expected.items():
            assert found[curve] == pytest.approx(points, rel=1e-6), name


def test_wandb__has_settings_group_files_and_an_end(tmp_path):
    needed("wandb")
    (tmp_path / "matrix.yaml").write_text("")
    folder = tmp_path / "voc" / "moco_seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("SEED: 3\n")
    metrics = MetricsFile(folder / "metrics.json", loggers=("wandb",), settings={"SEED": 3})
    rows(metrics, 10, 20)
    metrics.finish([folder / "config.yaml"])
    metrics.close()
    records = read.wandb_records(folder)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_group, run.display_name) == (tmp_path.name, "voc/moco_seed0")
    assert {u.key: u.value_json for u in run.config.update}["SEED"] == "3"
    saved = [f.path for r in records for f in r.files.files]
    assert {"config.yaml", "metrics.json"} <= set(saved)
    assert records[-1].exit.exit_code == 0


def test_mlflow__has_settings_experiment_files_and_an_end(tmp_path):
    needed("mlflow")
    from mlflow import MlflowClient

    (tmp_path / "matrix.yaml").write_text("")
    folder = tmp_path / "voc" / "moco_seed0"
    folder.mkdir(parents=True)
    settings = {f"KEY{n}": n for n in range(230)}
    metrics = MetricsFile(folder / "metrics.json", loggers=("mlflow",), settings=settings)
    rows(metrics, 10, 20)
    metrics.close()  # not finished
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(tmp_path.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "voc/moco_seed0" and run.info.status == "KILLED"
    assert run.data.params == {key: str(value) for key, value in settings.items()}
    metrics = MetricsFile(
        folder / "metrics.json", start_iteration=20, loggers=("mlflow",), settings={"KEY0": "new"}
    )
    metrics.finish([])
    metrics.close()
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["metrics.json"]


class Failing(writers.Csv):
    def log(self, iteration, values):
        if iteration == 20:
            raise RuntimeError("no space for this row\nand more")
        super().log(iteration, values)


class Hanging(writers.Csv):
    def log(self, iteration, values):
        time.sleep(600)


class Absent(writers.Csv):
    def __init__(self, run):
        raise ConnectionError("no route to the server")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Failing, "no space for this row"), (Hanging, "left behind"), (Absent, "no route")],
)
def test_trackers__one_that_fails_changes_nothing(kind, said, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(writers.WRITERS, "csv", kind)
    monkeypatch.setattr(record, "ENDS_WITHIN", 0.5)
    metrics = MetricsFile(tmp_path / "metrics.json", loggers=("csv",))
    rows(metrics, 10, 50)
    metrics.finish([])
    metrics.close()
    assert len(read.of_metrics_json(tmp_path)["loss"]) == 5
    (line,) = [r.getMessage() for r in caplog.records if "LOGGERS: csv" in r.getMessage()]
    assert said in line and "\n" not in line


def test_check_loggers__names_and_packages(monkeypatch):
    assert record.check_loggers(("csv", "tensorboard", "csv")) == ("csv", "tensorboard")
    with pytest.raises(InputError, match="'wanbd'.*Did you mean 'wandb'"):
        record.check_loggers(("wanbd",))
    monkeypatch.setattr(record.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"moco-transfer\[mlflow\]"):
        record.check_loggers(("mlflow",))


@contextlib.contextmanager
def mlflow_server(folder):
    """Run MLflow's own server and yield its process and address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield server, f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_mlflow__its_server_is_killed_in_the_middle(tmp_path, monkeypatch, caplog):
    needed("mlflow")
    with mlflow_server(tmp_path) as (server, uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for name in ("whole", "cut"):
            (tmp_path / name).mkdir()
        whole = MetricsFile(tmp_path / "whole" / "metrics.json", loggers=("mlflow",))
        rows(whole, 10, 50)
        whole.finish([])
        whole.close()
        ids = json.loads((tmp_path / "whole" / "trackers.json").read_text())
        assert read.of_mlflow(uri, ids["mlflow"]) == read.of_metrics_json(tmp_path / "whole")
        cut = MetricsFile(tmp_path / "cut" / "metrics.json", loggers=("mlflow", "csv"))
        rows(cut, 10, 20)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        began = time.monotonic()
        rows(cut, 30, 50)
        assert time.monotonic() - began < 1  # no row waits for the server
        cut.finish([])
        cut.close()
        assert time.monotonic() - began < record.ENDS_WITHIN + 10
    expected = read.of_metrics_json(tmp_path / "whole")
    assert read.of_metrics_json(tmp_path / "cut") == expected
    assert read.of_csv(tmp_path / "cut") == expected
    assert [r for r in caplog.records if "LOGGERS: mlflow" in r.getMessage()]
