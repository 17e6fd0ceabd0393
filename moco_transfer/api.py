"""The pipeline as functions, for notebooks and scripts; each returns what the cell of a notebook
shows as tables and curves.

    from moco_transfer import api

    plan = api.plan_pretrain("moco_v2_R_18_96px", {"DATA.ROOT": "images", "OUTPUT_DIR": "out/moco"})
    run = api.pretrain(plan)
    api.convert(run.checkpoint, "out/moco/backbone.pkl")

The functions are here because ``moco_transfer.pretrain``, ``.convert``, ... are folders. Nothing
global stays changed: loggers, generators of random numbers, names of data sets and signal handlers
are as before. Ctrl-C ends a run after its iteration: it saves, KeyboardInterrupt is raised, and
``resume=True`` continues it. In another thread than the main one no signal is handled. torch is
imported when a function is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runtime.errors import InputError

if TYPE_CHECKING:
    from .convert import ConversionReport
    from .finetune.plan import FinetunePlan
    from .pretrain.plan import PretrainPlan
    from .report import Problem, Table


@dataclass(frozen=True)
class Pretraining:
    """A finished pre-training run."""

    folder: Path
    checkpoint: Path

    def _repr_html_(self) -> str:
        from .report.html.notebook import facts_html
        from .report.pretraining import find_pretraining

        runs, _ = find_pretraining([self.folder])
        last = {name: f"{points[-1][1]:.3f}" for run in runs for name, points in run.series.items()}
        facts = {"iterations": runs[0].iterations if runs else 0, **last}
        return facts_html(f"Pre-trained: {self.checkpoint}", facts, runs)


@dataclass(frozen=True)
class Report:
    """The transfer table of runs; ``str`` of it is Markdown."""

    tables: list[Table]
    problems: list[Problem]

    def __str__(self) -> str:
        from .report import render_markdown

        return render_markdown(self.tables, self.problems)

    def _repr_html_(self) -> str:
        from .report.html.notebook import tables_html

        return tables_html(self.tables, self.problems)


@dataclass(frozen=True)
class FineTuning:
    """A finished fine-tuning run; ``record`` is what its results.json holds."""

    folder: Path
    record: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """Kind of result -> metric -> value on 0-100; with several test sets, below their names."""
        found: dict[str, Any] = self.record["metrics"]
        return found

    def _repr_html_(self) -> str:
        from .report.html.notebook import facts_html

        if self.metrics:
            return report(self.folder)._repr_html_()
        return facts_html(
            f"Fine-tuned, not evaluated: {self.folder}", {"init": self.record["init"]}
        )


def plan_pretrain(
    config: str,
    overrides: Mapping[str, object] = {},  # noqa: B006 - only read
    *,
    resume: bool = False,
    init_from: str | None = None,
) -> PretrainPlan:
    """Return the plan of a pre-training run; nothing is written.

    Args:
        config: A YAML file, or the name of a config that comes with the package.
        overrides: Config key -> value, such as ``{"SOLVER.EPOCHS": 10}``.
        resume: Continue the run in OUTPUT_DIR from its last checkpoint, where there is one.
        init_from: A checkpoint whose weights the encoders start from.

    Raises:
        InputError: Names every fault of data, config, weights and checkpoint.
    """
    from .config import load_pretrain_config
    from .pretrain.plan import plan_pretrain as plan

    cfg = load_pretrain_config(config, _words(overrides))
    with _guest():
        return plan(cfg, resume=resume, init_from=init_from)


def pretrain(plan: PretrainPlan) -> Pretraining:
    """Carry out a plan; KeyboardInterrupt if Ctrl-C or SIGTERM ended it, which has then saved."""
    from .pretrain.run import pretrain as run
    from .runtime.checkpoint import CheckpointFolder

    with _guest(plan.output_dir):
        finished = run(plan)
    last = CheckpointFolder(plan.output_dir).last()
    if finished is None or last is None:
        raise _stopped(last)
    return Pretraining(plan.output_dir, last)


def convert(src: str | Path, dst: str | Path, **options: Any) -> ConversionReport:
    """Convert a checkpoint; as :func:`moco_transfer.convert.convert_checkpoint`."""
    from .convert import convert_checkpoint

    with _guest():
        return convert_checkpoint(src, dst, **options)


def plan_finetune(
    config: str,
    overrides: Mapping[str, object] = {},  # noqa: B006 - only read
    *,
    datasets: Sequence[str] = (),
    **request: Any,
) -> FinetunePlan:
    """Return the plan of a fine-tuning run; nothing is written.

    Args:
        config: A YAML file, or the name of a config that comes with the package.
        overrides: Config key -> value, such as ``{"MODEL.WEIGHTS": "backbone.pkl"}``.
        datasets: ``NAME=voc:ROOT:SPLIT:CLASSES``, ..., as ``--dataset`` takes them.
        request: The other fields of :class:`moco_transfer.finetune.plan.Request`, e.g. ``resume``.

    Raises:
        InputError: Names every fault of data, config, weights and checkpoint.
    """
    from .finetune.plan import Request, join_processes, plan_finetuning

    asked = Request(config, _words(overrides), datasets=list(datasets), **request)
    with _guest(datasets=datasets):
        return plan_finetuning(asked, device=join_processes(asked))


def finetune(plan: FinetunePlan) -> FineTuning:
    """Carry out a plan; KeyboardInterrupt if Ctrl-C or SIGTERM ended it, which has then saved."""
    from .finetune.run import finetune as run
    from .runtime.checkpoint import CheckpointFolder

    with _guest(plan.output_dir, plan.request.datasets):
        record = run(plan)
    if record is None:
        raise _stopped(CheckpointFolder(plan.output_dir).last())
    return FineTuning(plan.output_dir, record)


def benchmark(output: str | Path, *, jobs: int | None = None, **matrix: Any) -> Report:
    """Run what is missing of a matrix of fine-tuning runs, and return its table.

    Args:
        output: Folder of all runs.
        jobs: Runs at a time; by default one for each GPU, or one.
        matrix: ``tasks``, ``inits``, ``seeds``, ``datasets``, ..., as in a matrix file;
            ``overrides`` may be a mapping.

    Raises:
        InputError: Names every fault before anything is run, or the runs that failed.
    """
    from .benchmark.launch import LaunchSettings
    from .benchmark.matrix import make_matrix
    from .benchmark.plan import plan_benchmark
    from .benchmark.run import Stopped, run_benchmark
    from .runtime.device import num_gpus

    if isinstance(matrix.get("overrides"), Mapping):
        matrix["overrides"] = _words(matrix["overrides"])
    settings = LaunchSettings(jobs=jobs)
    with _guest():
        plan = plan_benchmark(make_matrix(matrix, output), world_size=1)
    try:
        failures = run_benchmark(plan, settings, num_gpus=num_gpus(), on_end=list)
    except Stopped as stop:
        raise KeyboardInterrupt(stop.advice(plan.matrix.output)) from None
    if failures:
        raise InputError("\n".join(["Failed:", *map(str, failures)]))
    return report(output, baseline=plan.matrix.baseline)


def report(*runs: str | Path, baseline: str = "") -> Report:
    """Return the transfer table of run folders, or of folders that hold some at any depth.

    Raises:
        InputError: If no readable run is found.
    """
    from .report import build_tables, read_runs
    from .report.bootstrap import with_intervals

    records, problems = read_runs(runs)
    if not records:
        raise InputError("\n".join(["There is no readable run.", *map(str, problems)]))
    return Report(with_intervals(build_tables(records, baseline=baseline)), problems)


def _words(overrides: Mapping[str, object]) -> list[str]:
    return [str(word) for pair in overrides.items() for word in pair]


def _stopped(last: Path | None) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"The run was stopped and has saved {last}; resume=True continues it.")


@contextlib.contextmanager
def _guest(folder: Path | None = None, datasets: Sequence[str] = ()) -> Iterator[None]:
    """Leave the generators of random numbers and the names of data sets as they were; log into the
    folder of a run.
    """
    from .data.annotations.catalog import own_names, parse_dataset_flag
    from .runtime.log import logged_to
    from .runtime.seed import random_state_kept

    logged = logged_to(folder) if folder else contextlib.nullcontext()
    with random_state_kept(), own_names(), logged:
        for flag in datasets:
            parse_dataset_flag(flag)
        yield
