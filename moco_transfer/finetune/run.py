"""From a plan to results.json, on either engine."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..data.annotations.label_subset import LabelDraw, title_of, write_label_subset
from ..data.annotations.records import is_trainable
from ..evaluate.metric_names import is_class_metric
from ..evaluate.predictions import Metrics
from ..runtime.checkpoint import CheckpointFolder, load_checkpoint
from ..runtime.device import FP32
from ..runtime.distributed import barrier, broadcast_module_state, is_main_process
from ..runtime.environment import git_commit, package_versions
from ..runtime.files import atomic_write_text
from ..runtime.health.heartbeat import Heartbeat
from ..runtime.health.loader_watch import LoaderWatch
from ..runtime.health.replay import read_saved, replay, told
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import record_settings
from ..runtime.stop import StopRequest
from ..runtime.trackers.record import DEFAULT
from .datasets import make_evaluator
from .describe import describe_plan
from .engine import Batches
from .handover import load_weights
from .plan import FinetunePlan
from .schedule import BEST_FILE, selection
from .sync_norm import describe_norm, recompute_bn_statistics
from .trainer import FineTuning, evaluate, metric_row, step, train

logger = logging.getLogger(__name__)

_WORKERS = "DATALOADER.NUM_WORKERS"
_STOPPED = "Stopped by %s at iteration %d. Continue with --resume."

_OF_TEST_SET = ("tide", "operating_point", "confusion", "matches")  # attributes of an evaluator

SCHEMA = 1
RESULTS_FILE = "results.json"
SUBSET_FILE = "label_subset.json"  # the training images that a run has drawn


def finetune(
    plan: FinetunePlan, *, on_start: Callable[[Path], None] = lambda folder: None
) -> dict[str, Any] | None:
    """Fine-tune a detector and evaluate it, or only evaluate. Collective.

    ``on_start`` is called with the folder that the run writes into. Returns the record that
    results.json holds (metrics on process 0 alone), or None when SIGTERM or Ctrl-C (in
    the main thread) stopped the run and it has saved.
    """
    _check_shared_memory(plan)
    barrier()  # every process has made its plan before one begins to write
    record_settings(plan.output_dir, plan.header["config"])
    drawn = plan.data.subset if isinstance(plan.request.label_subset, LabelDraw) else None
    if drawn is not None and is_main_process():
        write_label_subset(plan.output_dir / SUBSET_FILE, drawn)
    on_start(plan.output_dir)
    for line in describe_plan(plan):
        surprising = line.startswith(("note", "overruled"))
        logger.log(logging.WARNING if surprising else logging.INFO, "%s", line)
    model = plan.engine.build_model()
    load_weights(model, plan.weights)
    test_names = [] if plan.request.eval_only else plan.data.test_names
    best = selection(plan.settings, plan.data.tasks, test_names) if test_names else None
    run = FineTuning(
        *(plan.engine, model, plan.header),
        precision=plan.precision,
        best=best,
        batches_from=_batches_from(plan) if plan.engine.repeats else None,
        command=plan.request.command or "moco-transfer train",
    )
    if plan.checkpoint is not None:
        run.restore(plan.checkpoint)
        logger.info("resumed from %s at iteration %d", plan.checkpoint_path, run.iteration)
    since, checkpoints = time.perf_counter(), CheckpointFolder(plan.output_dir, keep=2)
    if not plan.request.eval_only:
        checkpoints.resume_from(plan.checkpoint_path)
    beats = Heartbeat(plan.output_dir, LoaderWatch(run.meter, plan.settings[_WORKERS], _WORKERS))
    with StopRequest() as stop, _metrics_file(plan, run) as metrics_file:
        with beats:  # gone before results.json is there: a run with both would be complete and hang
            finished = plan.request.eval_only
            if not finished:
                with plan.engine.training():
                    finished = train(
                        run,
                        plan.engine.training_batches(plan.data.train_sets, run.iteration),
                        plan.schedule,
                        checkpoints=checkpoints,
                        metrics=metrics_file,
                        stop=stop,
                        precise_bn=lambda: _precise_bn(plan, run),
                        evaluation=lambda: (_evaluate(plan, run, stop) or {}).get("metrics"),
                    )
            if finished and run.best is not None:
                _take_best(run.model, plan.output_dir / BEST_FILE)
            evaluated = _evaluate(plan, run, stop, at_end=True) if finished else None
        if evaluated is None:
            logger.warning(_STOPPED, stop.name, run.iteration)
            return None
        record = _record(plan, run, evaluated, wall_sec=round(time.perf_counter() - since, 1))
        if is_main_process() and plan.data.test_sets:
            atomic_write_text(plan.output_dir / RESULTS_FILE, json.dumps(record, indent=2) + "\n")
        if metrics_file is not None:
            if plan.data.test_sets and run.best is None:
                metrics_file.write(run.iteration, metric_row(evaluated["metrics"]))
            names = ("config.yaml", "env.txt", RESULTS_FILE)
            metrics_file.finish(plan.output_dir / name for name in names)
    if is_main_process() and not plan.request.eval_only:
        checkpoints.prune(keep=1)
    return record


def _take_best(model: nn.Module, file: Path) -> None:
    """Load the best weights on process 0, which wrote them and may only now be done with that, and
    hand them on. Collective.
    """
    if is_main_process():
        model.load_state_dict(load_checkpoint(file)["model"])
    broadcast_module_state([*model.parameters(), *model.buffers()])


def replay_iteration(plan: FinetunePlan, path: str | Path) -> list[str]:
    """Return in lines where the iteration that ``save_fault`` wrote goes wrong, as it was and
    in fp32. Collective; nothing is written.
    """
    saved, batch = read_saved(path)
    for item in batch:  # polygons were arrays
        if "gt_masks" in item:
            masks = item["gt_masks"]
            item["gt_masks"] = [m if isinstance(m, dict) else [p.numpy() for p in m] for m in masks]
    tried = []
    for precision in {p.name: p for p in (plan.precision, FP32)}.values():
        run = FineTuning(plan.engine, plan.engine.build_model(), plan.header, precision=precision)
        run.load_weights(saved["state"])
        run.wrapped.train()
        run.begin_iteration(saved["iteration"] - 1)
        tried.append(replay(functools.partial(step, run, batch), run.model, precision.name))
    return told(saved, tried)


def _batches_from(plan: FinetunePlan) -> Callable[[int], Batches]:
    return functools.partial(plan.engine.training_batches, plan.data.train_sets)


def _check_shared_memory(plan: FinetunePlan) -> None:
    """Raise InputError if what the data workers prepare does not fit there."""
    for dataset in [*plan.data.train_sets, *plan.data.test_sets]:
        is_train, processes = dataset in plan.data.train_sets, plan.world_size
        plan.engine.check_shared_memory(dataset.records, train=is_train, world_size=processes)


def _metrics_file(plan: FinetunePlan, run: FineTuning) -> Any:
    """Return metrics.json, open, on process 0 of a training, and a context of None elsewhere."""
    if plan.request.eval_only or not is_main_process():
        return contextlib.nullcontext()
    loggers = plan.settings.get("LOGGERS", DEFAULT)
    how: dict[str, Any] = {"loggers": loggers, "settings": plan.settings}
    file = plan.output_dir / "metrics.json"
    return contextlib.closing(MetricsFile(file, start_iteration=run.iteration, **how))


def _precise_bn(plan: FinetunePlan, run: FineTuning) -> None:
    if plan.precise_bn:
        with plan.engine.aside():
            batches = plan.engine.statistics_batches(plan.data.train_sets, run.iteration)
            recompute_bn_statistics(run.model, batches, num_iterations=plan.precise_bn)


def _evaluate(
    plan: FinetunePlan, run: FineTuning, stop: StopRequest, *, at_end: bool = False
) -> dict[str, Any] | None:
    """Evaluate on every test set, and return results.json's ``metrics`` and ``_OF_TEST_SET``.

    Metrics of several sets are nested below their names, as Detectron2 does. Sets without ground
    truth have predictions alone.
    """
    evaluated: dict[str, tuple[Metrics, Any]] = {}
    coco_style = at_end and plan.request.coco_style
    for dataset in plan.data.test_sets:
        ours = make_evaluator(
            dataset,
            plan.data.tasks,
            plan.output_dir,
            coco_style=coco_style,
            oks_sigmas=plan.data.keypoints.oks_sigmas if plan.data.keypoints else (),
        )
        evaluator = plan.engine.evaluator(ours, dataset)
        with plan.engine.aside():
            found = evaluate(
                run.model,
                plan.engine.test_batches(dataset),
                detect=plan.engine.detector(run.model),
                evaluator=evaluator,
                stop=stop,
                num_images=len(dataset.records),
            )
        if found is None:
            return None
        evaluated[dataset.name] = found, evaluator
    return evaluation_record(evaluated)


def evaluation_record(evaluated: Mapping[str, tuple[Metrics, Any]]) -> dict[str, Any]:
    """Log what evaluators found on test sets, by name, and return results.json's ``metrics``,
    ``tide``, ``operating_point``, ``confusion`` and ``matches``.
    """
    others: dict[str, dict[str, Any]] = {key: {} for key in _OF_TEST_SET}
    for name, (found, evaluator) in evaluated.items():
        for key, of_test_set in others.items():
            if value := getattr(evaluator, key):
                of_test_set[name] = value
        for task, values in found.items():
            shown = (f"{k} {v:.2f}" for k, v in values.items() if not is_class_metric(k))
            logger.info("%s %s: %s", name, task, ", ".join(shown))
    metrics: dict[str, Any] = {name: found for name, (found, _) in evaluated.items() if found}
    if len(evaluated) == 1:
        metrics = next(iter(metrics.values()), {})
    return {"metrics": metrics, **others}


def _record(
    plan: FinetunePlan, run: FineTuning, evaluated: dict[str, Any], *, wall_sec: float
) -> dict[str, Any]:
    header, request, data = plan.header, plan.request, plan.data
    dataset: dict[str, Any] = {
        "train": [title_of(d.name, data.subset) for d in data.train_sets],
        "test": [d.name for d in data.test_sets],
        "classes": list(data.class_names),
        "num_images": {d.name: len(d.records) for d in data.test_sets},
    }
    chosen = run.best.describe(run.iteration, data.test_names) if run.best else None
    if data.subset is not None:
        dataset["label_subset"] = data.subset.describe()
    elif data.train_sets:
        dataset["num_labelled_images"] = sum(
            is_trainable(record) for d in data.train_sets for record in d.records
        )
    of_plan = "task config_hash engine init seed weights world_size precision".split()
    return {
        "schema": SCHEMA,
        **{key: header[key] for key in of_plan},
        "config": request.config_file,
        "command": request.command,
        **evaluated,
        "norm": describe_norm(run.model, plan.world_size, plan.engine.device),
        "iterations": run.iteration,
        **({"selection": chosen} if chosen else {}),
        "wall_sec": wall_sec,
        "device": plan.engine.device.type,
        "flags": {
            "allow_partial": request.allow_partial,
            "forced": [f.name for f in plan.overruled if f.option == "--force"],
            "eval_only": request.eval_only,
        },
        "dataset": dataset,
        "remarks": list(plan.remarks),
        "last_losses": run.last_losses,
        "versions": package_versions(),
        "git": git_commit(),
    }
