"""One class for each name in LOGGERS: a dozen lines on top of the tracker's own library.

A writer is made at the beginning of a run or of its resumption. Its record then holds what the rows
of metrics.json up to there hold, whether it was killed or not, and nothing that is logged twice.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..files import atomic_write_text

IDS_FILE = "trackers.json"  # in OUTPUT_DIR: the run's ids in the trackers that give some
PROJECT = "moco-transfer"
_REACHED_WITHIN = 3.0  # s, of W&B's server; else the run is recorded offline

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of a run.

    Attributes:
        folder: OUTPUT_DIR.
        config: Its settings by full key.
        rows: Of metrics.json, up to the iteration that the run continues from.
        start: Iterations finished.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    start: int = 0

    @property
    def matrix(self) -> Path | None:
        """The folder of the benchmark that the run is part of."""
        folders = self.folder.resolve().parents
        return next((folder for folder in folders if (folder / "matrix.yaml").exists()), None)

    @property
    def group(self) -> str:
        """What the runs of a benchmark have in common; "" for a run of its own."""
        return self.matrix.name if self.matrix else ""

    @property
    def name(self) -> str:
        """The folder, below the benchmark's where there is one."""
        folder = self.folder.resolve()
        return str(folder.relative_to(self.matrix)) if self.matrix else folder.name

    def identity(self, tracker: str, new: str = "") -> str:
        """Return the run's id in a tracker, kept in OUTPUT_DIR; ``new`` is kept if there is none,
        and "" is returned where that is empty.
        """
        file = self.folder / IDS_FILE
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if tracker not in known and new:
            known[tracker] = new
            atomic_write_text(file, json.dumps(known, indent=2) + "\n")
        return known.get(tracker, "")


class Writer(Protocol):
    """What LOGGERS names. Any method may raise: the run continues without the tracker."""

    def __init__(self, run: RunFacts) -> None:
        """Begin or continue the record of a run."""

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Take a row of metrics.json, numbers alone."""

    def save(self, file: Path) -> None:
        """Take a file of the run: config, curves, table, sheets."""

    def close(self, *, finished: bool) -> None:
        """End the record; ``finished`` is False for a run that was stopped or failed."""


def numbers(row: Row) -> dict[str, float]:
    """Return the numbers of a row of metrics.json."""
    is_number = (int, float)
    return {k: v for k, v in row.items() if isinstance(v, is_number) and k != "iteration"}


class TensorBoard:
    """Event files in ``tensorboard/``."""

    def __init__(self, run: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        threading.excepthook = _without_full_disks
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.start + 1)

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()  # else a kill loses up to two minutes

    def save(self, file: Path) -> None:
        """Do nothing: event files hold no files."""

    def close(self, *, finished: bool) -> None:
        """Flush the event file."""
        self._writer.close()


def _without_full_disks(args: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of TensorBoard's thread: metrics.json names the full disk."""
    of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)


class Csv:
    """``metrics.csv``: iteration, metric, value, one number a line."""

    def __init__(self, run: RunFacts) -> None:
        self._file = open(  # noqa: SIM115 - open during the run
            run.folder / "metrics.csv", "w", encoding="utf-8", newline=""
        )
        self._writer = csv.writer(self._file)
        self._writer.writerow(["iteration", "metric", "value"])
        for row in run.rows:
            self.log(row["iteration"], numbers(row))

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Append a line for each number."""
        self._writer.writerows([iteration, name, value] for name, value in values.items())
        self._file.flush()

    def save(self, file: Path) -> None:
        """Do nothing: it lies next to the files."""

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._file.close()


class WandB:
    """Weights & Biases: online where it is logged in and reached, else ``wandb/offline-run-*`` for
    ``wandb sync``; WANDB_MODE decides by itself, WANDB_PROJECT and the others as usual.
    """

    def __init__(self, run: RunFacts) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _reaches(wandb) else "offline")
        earlier = list((run.folder / "wandb").glob("offline-run-*"))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            group=run.group or None,
            id=run.identity("wandb", uuid.uuid4().hex[:8]),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(run.folder),
            config=run.config,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        # Online, the server has the steps before this one. Offline, a new folder takes the place of
        # the earlier ones, so that there is one to sync.
        begin = self._run.step if self._run.resumed else 0
        for row in run.rows:
            if row["iteration"] >= begin:
                self.log(row["iteration"], numbers(row))
        for folder in earlier:
            shutil.rmtree(folder)

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Hand a row to W&B's own process."""
        self._run.log(values, step=iteration)

    def save(self, file: Path) -> None:
        """Add a file to the run's files."""
        self._run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self, *, finished: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if finished else 1)


def _reaches(wandb: Any) -> bool:
    """Whether W&B has a key and its server takes a connection."""
    if not wandb.login(prompt=False):
        return False
    place = urlsplit(wandb.setup().settings.base_url)
    port = place.port or (443 if place.scheme == "https" else 80)
    with contextlib.suppress(OSError):
        socket.create_connection((place.hostname or "", port), _REACHED_WITHIN).close()
        return True
    return False


class Mlflow:
    """MLflow: at MLFLOW_TRACKING_URI or, without that, in ``mlflow.db`` in OUTPUT_DIR, or in the
    folder of the benchmark, which is an experiment of its own.
    """

    def __init__(self, run: RunFacts) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else 2 minutes a call
        from mlflow import MlflowClient
        from mlflow.entities import Param

        place = (run.matrix or run.folder).resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or f"sqlite:///{place}/mlflow.db")
        self._last: dict[str, int] = {}
        known = run.identity("mlflow")
        if known:
            self._id = known
            self._client.update_run(known, "RUNNING")
            for name in self._client.get_run(known).data.metrics:
                points = self._client.get_metric_history(known, name)
                self._last[name] = max(point.step for point in points)
        else:
            files = None if uri else f"{(place / 'mlartifacts').as_uri()}"
            experiment = self._experiment(run.group or PROJECT, files)
            info = self._client.create_run(experiment, run_name=run.name).info
            self._id = run.identity("mlflow", info.run_id)
            params = [Param(key, str(value)[:6000]) for key, value in run.config.items()]
            for begin in range(0, len(params), 100):
                self._client.log_batch(self._id, params=params[begin : begin + 100])
        for row in run.rows:
            self.log(row["iteration"], numbers(row))

    def _experiment(self, name: str, files: str | None) -> str:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it exists, by another run perhaps
            return self._client.create_experiment(name, artifact_location=files)
        experiment: Any = self._client.get_experiment_by_name(name)
        return experiment.experiment_id

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Log a row, without what the record has already."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w\-./ :]", "_", name): value for name, value in values.items()}
        new = {k: v for k, v in named.items() if iteration > self._last.get(k, -1)}
        points = [Metric(name, float(value), now, iteration) for name, value in new.items()]
        self._client.log_batch(self._id, metrics=points)

    def save(self, file: Path) -> None:
        """Add a file to the run's artefacts."""
        self._client.log_artifact(self._id, str(file))

    def close(self, *, finished: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


WRITERS: dict[str, type[Writer]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WandB,
    "mlflow": Mlflow,
}
EXTRAS = ("wandb", "mlflow")  # packages, of extras of the same name
