"""From the words of ``moco-transfer train`` to the plan of a run; nothing is written.

The only file of fine-tuning, next to each engine's ``build``, that reads a config. Data, weights
and checkpoint are compared with it; all faults are raised together (``lint.PlanError``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from fvcore.common.config import CfgNode

from ..config import (
    flatten_config,
    is_set_by_user,
    load_detection_config,
    name_of,
    reference_batch_and_lr,
    without_schema,
)
from ..config.schema_file import SEGMENTOR
from ..convert import Coverage
from ..data.annotations.catalog import parse_dataset_flag
from ..data.annotations.label_subset import LabelDraw, LabelSubset
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.device import FP32, Precision, best_device, choose_precision
from ..runtime.distributed import broadcast_object, get_world_size, start_processes
from ..runtime.errors import InputError
from ..runtime.run_folder import open_run_folder
from ..runtime.text import carried_config
from ..runtime.trackers.record import check_loggers
from . import handover
from .datasets import DataRequest, Reads, RunData, annotation_digests, evaluated_tasks, read_data
from .engine import Engine, engine_class
from .handover import InitialWeights
from .keypoints import KeypointRequest
from .lint import TEXTS, Finding, PlanError, collecting, lint, remarks
from .resume import CHECKPOINT_FORMAT, FREE_KEYS, evaluation_folder, resume_faults, resume_notes
from .schedule import Schedule, selection
from .sync_norm import describe_norm

T = TypeVar("T")

_SCHEDULE_KEYS = {
    "batch": "SOLVER.IMS_PER_BATCH",
    "lr": "SOLVER.BASE_LR",
    "iterations": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup": "SOLVER.WARMUP_ITERS",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
    "eval_period": "TEST.EVAL_PERIOD",
    "reference": "SOLVER.REFERENCE_WORLD_SIZE",
}


@dataclass(frozen=True)
class Request:
    """What a user asks of one run: the words of ``moco-transfer train``.

    Attributes:
        config_file: A YAML file, or the name of a config that comes with the package.
        overrides, datasets: KEY VALUE words, and ``--dataset`` flags.
        task, init: Name and row in tables; by default the config file's and the weights' own.
        label_subset: File of the training images to use, the subset itself, or what to draw.
        eval_only: Evaluate MODEL.WEIGHTS (with ``resume`` the last checkpoint); train nothing.
        allow_partial, force: Start in spite of a gap in the coverage, or of the linter's findings.
        coco_style: Evaluate VOC test sets by COCO's numbers too, at the end.
        command: The command line, recorded in results.json.
        precision: auto, fp32, bf16 or fp16 of the training. auto: fp32 without SOLVER.AMP; with it
            what suits the device, on the engine Detectron2 with a GPU its fp16.
    """

    config_file: str
    overrides: Sequence[str] = ()
    datasets: Sequence[str] = ()
    engine: str = "auto"
    task: str = ""
    init: str | None = None
    label_subset: str | LabelSubset | LabelDraw | None = None
    resume: bool = False
    eval_only: bool = False
    allow_partial: bool = False
    force: bool = False
    coco_style: bool = False
    command: str | None = None
    precision: str = "auto"


@dataclass(frozen=True)
class FinetunePlan:
    """Everything that is decided about a run before its first iteration.

    Attributes:
        header: What every checkpoint says of the run: ``task``, ``init``, ``seed``, ``config``
            (YAML), ``config_hash``, and more.
        settings: The config of the run by full key: scaled, with the data's classes and the seed.
        coverage: Which tensors MODEL.WEIGHTS provides; None for random initialisation.
        schedule, written_schedule: As it runs, and as the config has it.
        precise_bn: Batches per process for PreciseBN, 0 for none.
        precision: That of the training; evaluation is in float32.
        norm: Which normalisation the detector has here, in words.
        output_dir: Folder that is written to; an evaluation may have one inside OUTPUT_DIR.
    """

    request: Request
    header: dict[str, Any]
    settings: dict[str, Any]
    engine: Engine
    world_size: int
    data: RunData
    weights: InitialWeights
    coverage: Coverage | None
    checkpoint: dict[str, Any] | None
    checkpoint_path: Path | None
    schedule: Schedule
    written_schedule: Schedule
    precise_bn: int
    precision: Precision
    norm: str
    output_dir: Path
    remarks: tuple[str, ...]
    overruled: tuple[Finding, ...]


def plan_finetuning(
    request: Request,
    *,
    world_size: int | None = None,
    device: torch.device | None = None,
    reads: Reads | None = None,
) -> FinetunePlan:
    """Return the plan of a run on ``world_size`` processes (default: this process's group) and a
    device (a GPU if MODEL.DEVICE is cuda and there is one). Collective where SEED is negative.

    Raises:
        InputError: If the config cannot be read or the engine is not there.
        PlanError: With everything else that prevents the run.
    """
    planner = _Planner(request, world_size or get_world_size(), device, reads or Reads())
    planner.compare()
    return planner.plan()


def join_processes(request: Request) -> torch.device:
    """Join the processes that torchrun started, if it did, and return this one's device."""
    cfg = load_detection_config(request.config_file, request.overrides)
    return start_processes("cpu" if cfg.MODEL.DEVICE == "cpu" else "auto")


class _Planner:
    """What is known of a run on the way to its plan; parts that cannot be had are None."""

    def __init__(
        self, request: Request, world_size: int, device: torch.device | None, reads: Reads
    ) -> None:
        """Read config, data, weights and checkpoint, and build the engine."""
        self.request, self.world_size, self.reads = request, world_size, reads
        self.findings: list[Finding] = []
        self.coverage: Coverage | None = None
        self.written = written = load_detection_config(request.config_file, request.overrides)
        self.kind = engine_class(request.engine)
        # Configs say cuda, Detectron2's default; a laptop runs them unchanged on its CPU.
        name, cpu = written.MODEL.DEVICE, torch.device("cpu")
        self.device = device or (best_device() if name == "cuda" else cpu)
        if name not in ("cuda", "cpu"):
            self.findings.append(Finding("", f"MODEL.DEVICE must be cuda or cpu, got {name!r}."))
        self._try(self.kind.check, written)
        schedule = self.written_schedule = _schedule(written)
        self.schedule = self._try(schedule.for_processes, world_size) or schedule
        self.data = self._try(lambda: read_data(data_request(written, request), reads))
        path, init = written.MODEL.WEIGHTS, request.init
        read = functools.partial(handover.read_weights, path, init=init)
        self.weights = self._try(reads.once, ("weights", path, init), read)
        self._try(check_loggers, written.get("LOGGERS", ()))
        if self.data is not None and not request.eval_only:
            self._try(selection, flatten_config(written), self.data.tasks, self.data.test_names)
        newest = CheckpointFolder(written.OUTPUT_DIR).newest
        found = self._try(newest) if request.resume else None
        self.checkpoint_path = found[0] if found is not None else None
        self.checkpoint = found[1] if found is not None else None
        self.precision = self._try(self._precision) or FP32
        self.cfg = _settled(written, self.schedule, self.data, self.checkpoint)
        self.engine = self._try(self.kind, self.cfg, self.device)
        key = ("skeleton", self.kind, self.device, config_hash(self.cfg))
        self.skeleton = self._try(reads.once, key, self.engine.skeleton) if self.engine else None

    def _try(self, read: Callable[..., T], *args: Any) -> T | None:
        """Return ``read(*args)``, or None where it finds a fault, which is collected."""
        with collecting(self.findings):
            return read(*args)
        return None

    def compare(self) -> None:
        """Compare config, data and weights."""
        request, weights = self.request, self.weights
        if weights is None:
            return
        if self.skeleton is not None and self.data is not None and not request.eval_only:
            weights = handover.as_start(weights, self.skeleton.state_dict(), self.data.any_set)
            self.weights = weights
        self.findings += lint(
            flatten_config(self.written),
            weights,
            world_size=self.world_size,
            reference=reference_batch_and_lr(request.config_file),
            eval_only=request.eval_only,
        )
        if request.eval_only and self.checkpoint is None and weights.kind != handover.DETECTOR:
            got = f"{weights.path} is a backbone without one" if weights.path else "there is none"
            self.findings.append(Finding("", TEXTS["no_detector"].format(got=got)))
        elif self.skeleton is not None:
            self.coverage = handover.weights_coverage(self.skeleton.state_dict(), weights)
            gap = handover.coverage_gap(
                self.coverage, weights, f"resnet{self.cfg.MODEL.RESNETS.DEPTH}"
            )
            if gap is not None:  # a detector's own layers cannot start random
                option = "" if weights.kind == handover.DETECTOR else "--allow-partial"
                self.findings.append(Finding("coverage", gap, option))

    def _precision(self) -> Precision:
        """Return the precision that was asked for; auto keeps that of the run to resume."""
        asked, before = self.request.precision, (self.checkpoint or {}).get("precision")
        if asked == "auto" and before and self.request.eval_only:  # evaluated in float32, anywhere
            return Precision(before, "as the run was trained")
        if asked == "auto" and before:
            return replace(choose_precision(before, self.device), reason="as the run began")
        if asked == "auto" and not self.written.SOLVER.AMP.ENABLED:
            return FP32
        if asked == "auto" and self.device.type != "cpu" and self.kind.name == "detectron2":
            asked = "fp16"  # what its AMP is
        return choose_precision(asked, self.device)

    def plan(self) -> FinetunePlan:
        """Return the plan, or raise with every finding that is not overruled."""
        request, cfg, data, weights = self.request, self.cfg, self.data, self.weights
        header: dict[str, Any] = {}
        if data is not None and weights is not None:
            header = self._resumed(self._header(data, weights))
        output_dir = Path(cfg.OUTPUT_DIR)
        keeps = request.resume or request.eval_only
        folder = self._try(functools.partial(open_run_folder, output_dir, resume=keeps))
        if folder is not None and request.eval_only and data is not None:
            output_dir = evaluation_folder(folder, [dataset.name for dataset in data.test_sets])
        overruled = {"--force": request.force, "--allow-partial": request.allow_partial}
        standing = [finding for finding in self.findings if not overruled.get(finding.option)]
        if standing or not data or not weights or not self.engine or self.skeleton is None:
            raise PlanError(standing)
        notes, settings = header["resume_notes"], flatten_config(cfg)
        if not request.eval_only:
            of_config = remarks(settings, world_size=self.world_size)
            notes = [*of_config, *data.remarks, *notes]
        return FinetunePlan(
            request=request,
            header=header,
            settings=settings,
            engine=self.engine,
            world_size=self.world_size,
            data=data,
            weights=weights,
            coverage=self.coverage,
            checkpoint=self.checkpoint,
            checkpoint_path=self.checkpoint_path,
            schedule=self.schedule,
            written_schedule=self.written_schedule,
            precise_bn=cfg.TEST.PRECISE_BN.NUM_ITER if cfg.TEST.PRECISE_BN.ENABLED else 0,
            precision=self.precision,
            norm=describe_norm(self.skeleton, self.world_size, self.device),
            output_dir=output_dir,
            remarks=tuple(notes),
            overruled=tuple(self.findings),
        )

    def _header(self, data: RunData, weights: InitialWeights) -> dict[str, Any]:
        """Return what every checkpoint says of the run, plain numbers and strings."""
        request, subset = self.request, data.subset
        task = request.task or name_of(request.config_file)
        roles = {} if request.eval_only else {"train": data.train_sets, "test": data.test_sets}
        points: dict[str, Any] = {}
        if data.keypoints is not None:
            lines = [list(line) for line in data.any_set.skeleton]
            points = {"keypoints": list(data.any_set.keypoint_names), "skeleton": lines}
        return points | {
            "format": CHECKPOINT_FORMAT,
            "engine": self.kind.name,
            "precision": self.precision.name,
            "task": task + (subset.amount.suffix if subset is not None else ""),
            "class_names": list(data.class_names),
            "init": request.init or (self.checkpoint or {}).get("init") or weights.row,
            "weights": handover.describe_weights(weights, self.coverage),
            "weights_sha256": weights.sha256,
            "label_subset_sha256": subset.sha256 if subset is not None else None,
            "datasets": {r: annotation_digests(roles[r], self.reads) for r in roles},
            "world_size": self.world_size,
            "seed": self.cfg.SEED,
            "resume_notes": [],
            "config_hash": config_hash(self.cfg),
            "config": self.cfg.dump(),
        }

    def _resumed(self, header: dict[str, Any]) -> dict[str, Any]:
        """Return the header with what it takes from the checkpoint that the run continues from."""
        checkpoint, eval_only = self.checkpoint, self.request.eval_only
        if checkpoint is None:
            return header
        faults = resume_faults(checkpoint, str(self.checkpoint_path), header, eval_only=eval_only)
        if sentences := list(faults):
            self.findings += [Finding("", sentence) for sentence in sentences]
            return header
        # The file may be called something else now: the run is recorded as it began.
        notes = resume_notes(checkpoint, header, eval_only=eval_only)
        return header | {"weights": checkpoint["weights"], "resume_notes": notes}


def data_request(cfg: CfgNode, request: Request) -> DataRequest:
    """Register the data sets of ``--dataset`` flags, and return what the config asks of its data.

    With data sets of the user's own the numbers of classes and keypoints are the data's, and with
    any the form of the masks, unless the user set them.
    """
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    own = [parse_dataset_flag(flag) for flag in request.datasets]
    for name in own:
        if name not in (*train, *test):
            raise InputError(
                f"--dataset {name} is named neither in DATASETS.TRAIN {list(train)} nor in"
                f" DATASETS.TEST {list(test)}. Add it to one of them, or leave the flag out."
            )
    by_user = functools.partial(is_set_by_user, request.config_file, request.overrides)

    def unless_from_data(key: str, value: int) -> int | None:
        return value if not own or by_user(key) else None

    points, head = cfg.MODEL.ROI_KEYPOINT_HEAD, _classifier(cfg)
    count = unless_from_data("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", points.NUM_KEYPOINTS)
    sigmas = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    keypoints = KeypointRequest(count, points.MIN_KEYPOINTS_PER_IMAGE, sigmas)
    return DataRequest(
        train,
        test,
        num_classes=unless_from_data(f"MODEL.{head}.NUM_CLASSES", cfg.MODEL[head].NUM_CLASSES),
        tasks=evaluated_tasks(cfg.MODEL),
        mask_format=cfg.INPUT.MASK_FORMAT if by_user("INPUT.MASK_FORMAT") else None,
        eval_only=request.eval_only,
        label_subset=request.label_subset,
        keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else None,
    )


def _classifier(cfg: CfgNode) -> str:
    """Return which key of MODEL holds NUM_CLASSES."""
    return "SEM_SEG_HEAD" if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR else "ROI_HEADS"


def _schedule(cfg: CfgNode) -> Schedule:
    settings = flatten_config(cfg)
    values = {field: settings[key] for field, key in _SCHEDULE_KEYS.items()}
    return Schedule(**values | {"steps": tuple(values["steps"])})


def _settled(
    cfg: CfgNode, schedule: Schedule, data: RunData | None, checkpoint: Mapping[str, Any] | None
) -> CfgNode:
    """Return the config of the run: with its schedule, the data's numbers of classes and keypoints,
    and the seed that is used where SEED asks for a different one in each run.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if schedule != _schedule(cfg):
        for field, key in _SCHEDULE_KEYS.items():
            cfg.merge_from_list([key, getattr(schedule, field)])
    if data is not None and data.count_from_data:
        cfg.MODEL[_classifier(cfg)].NUM_CLASSES = len(data.class_names)
    if data is not None and data.keypoints is not None and data.keypoints.count is None:
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(data.any_set.keypoint_names)
    if data is not None and data.mask_format is not None:
        cfg.INPUT.MASK_FORMAT = data.mask_format
    elif data is not None and not data.train_sets and checkpoint is not None:  # as the run had it
        before = carried_config(checkpoint["config"], "The checkpoint")
        cfg.INPUT.MASK_FORMAT = before["INPUT"]["MASK_FORMAT"]
    if cfg.SEED < 0:
        drawn = broadcast_object(time.time_ns() % 2**31)
        cfg.SEED = (checkpoint or {}).get("seed", drawn)
    cfg.freeze()
    return cfg


def config_hash(cfg: CfgNode) -> str:
    """Return 12 hexadecimal digits, equal for runs that may be averaged: FREE_KEYS are left out."""
    cfg = without_schema(cfg, "logging_schema")
    for key in FREE_KEYS.split():
        cfg.merge_from_list([key, None])
    return hashlib.sha256(json.dumps(cfg, sort_keys=True).encode()).hexdigest()[:12]
