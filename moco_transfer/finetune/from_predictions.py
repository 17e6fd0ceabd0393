"""From detections that another program made to a results.json like that of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.annotations.catalog import get_dataset
from ..evaluate.coco_results import read_coco_results
from ..runtime.environment import git_commit, package_versions
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text, sha256_of
from ..runtime.run_folder import open_run_folder
from .datasets import DataRequest, Reads, has_objects, make_evaluator, read_data
from .keypoints import KeypointRequest
from .run import RESULTS_FILE, SCHEMA, evaluation_record

ENGINE = "other"  # in place of one of ours
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PredictionsRequest:
    """What a user asks of an evaluation.

    Attributes:
        predictions: File in COCO's result format.
        dataset: Name of the test set.
        output: Folder that is written; it holds no run.
        name: Row in tables, by default the file's name without its ending.
        kinds: What is evaluated: bbox, segm, keypoints; none means what the detections have.
        seed: Tells several trainings of one detector apart.
        command: The command line, recorded in results.json.
    """

    predictions: str
    dataset: str
    output: str
    name: str = ""
    kinds: Sequence[str] = ()
    seed: int = 0
    command: str | None = None


def evaluate_predictions(request: PredictionsRequest) -> dict[str, Any]:
    """Score a file of detections as a run's own would be, write ``predictions_<name>.json``, the
    matches and ``results.json``, and return what results.json holds.

    How the detector was trained is not known here, and results.json says so: engine ``other``, norm
    ``unknown``, no config hash, and the key ``predictions`` with the file and its SHA-256.

    Raises:
        InputError: If the file does not fit the data set, which has no ground truth or has label
            images, or the folder holds a run.
    """
    folder = open_run_folder(request.output, resume=False)
    dataset = get_dataset(request.dataset)
    if dataset.kind == "semantic" or not has_objects(dataset):
        lacks = "label images" if dataset.kind == "semantic" else "no ground truth"
        raise InputError(
            f"Data set {dataset.name!r} has {lacks}; detections are evaluated on boxes, masks or"
            " keypoints."
        )
    tasks, found = read_coco_results(request.predictions, dataset, request.kinds)
    keypoints = KeypointRequest(None, 1) if "keypoints" in tasks else None
    asked = DataRequest((), (dataset.name,), None, tasks, eval_only=True, keypoints=keypoints)
    (dataset,) = read_data(asked, Reads()).test_sets
    evaluator = make_evaluator(dataset, tasks, folder)
    evaluated = evaluation_record({dataset.name: (evaluator.evaluate_found(found), evaluator)})
    record = {
        "schema": SCHEMA,
        "task": dataset.name,
        "config_hash": "",
        "engine": ENGINE,
        "init": request.name or Path(request.predictions).stem,
        "seed": request.seed,
        "weights": {},
        "predictions": {
            "path": request.predictions,
            "sha256": sha256_of(request.predictions),
            "detections": sum(len(output["scores"]) for _, output in found),
        },
        "command": request.command,
        **evaluated,
        "norm": UNKNOWN,
        "iterations": 0,
        "dataset": {
            "train": [],
            "test": [dataset.name],
            "classes": list(dataset.class_names),
            "num_images": {dataset.name: len(dataset.records)},
        },
        "versions": package_versions(),
        "git": git_commit(),
    }
    atomic_write_text(folder / RESULTS_FILE, json.dumps(record, indent=2) + "\n")
    return record
