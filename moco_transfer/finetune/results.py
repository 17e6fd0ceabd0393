"""results.json: what a run was and what came of it; the only thing the report reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from ..runtime.environment import git_commit, package_versions
from ..runtime.files import atomic_write_text
from .handover import SUPERVISED

SCHEMA = 1

# Keys in which the rows of a table may differ, and those that change no number.
_FREE_KEYS = (
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "OUTPUT_DIR",
    "SEED",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
)


def config_hash(cfg: CfgNode) -> str:
    """Return 12 hexadecimal digits that are equal for runs whose results may be averaged.

    Args:
        cfg: A merged detection config. Weights, seed, device, output folder and what changes no
            number are left out.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key in _FREE_KEYS:
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[leaf] = None
    return hashlib.sha256(json.dumps(plain(cfg), sort_keys=True).encode()).hexdigest()[:12]


def plain(value: Any) -> Any:
    """Return a value with its mappings and sequences as dicts and lists, as json and a checkpoint
    hold them.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_results(output_dir: str | Path, record: dict[str, Any]) -> Path:
    """Write results.json, with schema, versions and commit added, and return its path."""
    record = {"schema": SCHEMA} | record | {"versions": package_versions(), "git": git_commit()}
    path = Path(output_dir) / "results.json"
    atomic_write_text(path, json.dumps(record, indent=2) + "\n")
    return path


def init_name(weights: dict[str, Any]) -> str:
    """Return a row's name from what results.json says of the weights: the stamp's mechanism, the
    kind, else the file's name.
    """
    if not weights["path"]:
        return "random"
    mechanism = (weights["stamp"] or {}).get("mechanism")
    return mechanism or (
        SUPERVISED if weights.get("kind") == SUPERVISED else Path(weights["path"]).stem
    )
