"""Whether a run can continue from a checkpoint, and which folder an evaluation may write into."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import flatten_config
from ..runtime.checkpoint import LAST
from ..runtime.text import carried_config
from .lint import TEXTS

CHECKPOINT_FORMAT = "moco_transfer.finetune/1"

# Keys in which the rows of a table may differ, and those that change no number.
FREE_KEYS = (
    "MODEL.WEIGHTS MODEL.DEVICE OUTPUT_DIR SEED DATALOADER.NUM_WORKERS SOLVER.CHECKPOINT_PERIOD"
    " TEST.EXPECTED_RESULTS VIS_PERIOD CUDNN_BENCHMARK"
)

_FILES = (
    LAST,
    "config.yaml",
    "metrics.json",
    "results.json",
    "predictions_*.json",
    "matches_*.npz",
)

Header = Mapping[str, Any]  # what a checkpoint says of its run; ``FinetunePlan.header``


def resume_faults(state: Header, path: str, header: Header, *, eval_only: bool) -> Iterator[str]:
    """Yield a sentence for each reason why a run, which says ``header`` of itself, cannot continue
    from the checkpoint at ``path``. Weights, images and seed do not matter for ``eval_only``.
    """
    if state.get("format") != header["format"]:
        facts = {"theirs": state.get("format"), "ours": header["format"]}
        yield TEXTS["format"].format(path=path, **facts)
        return
    advice = {
        "engine": f"Resume with --engine {state['engine']}.",
        "config_hash": "Resume with the config.yaml next to it.",
        "weights_sha256": f"Give MODEL.WEIGHTS {state['weights']['path']!r} of then.",
        "label_subset_sha256": "Give --label-subset the file of then.",
        "precision": f"Resume with --precision {state.get('precision')}.",
        "seed": f"Resume with SEED {state['seed']}.",
    }
    for key in ("engine", "config_hash") if eval_only else advice:
        if state.get(key, header[key]) != header[key] and (
            key != "config_hash" or state["engine"] == header["engine"]
        ):
            what = (
                "; ".join(_changes(key, state, header, path))
                or f"{key} {state[key]!r} -> {header[key]!r}"
            )
            yield TEXTS["other_run"].format(path=path, what=what, advice=advice[key])
    sets = {} if eval_only else header["datasets"]
    for role, name in [(role, name) for role, digests in sets.items() for name in digests]:
        if state["datasets"][role].get(name) != sets[role][name]:
            yield TEXTS["other_data"].format(path=path, name=name, role=role.upper())


def _changes(key: str, state: Header, header: Header, path: str) -> Iterator[str]:
    """Yield what a digest stands for and how it differs: each key of a config, a file."""
    if key == "config_hash":
        configs = (carried_config(run["config"], path) for run in (state, header))
        before, now = map(flatten_config, configs)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name) and name not in FREE_KEYS.split():
                yield f"{name} {before.get(name)} -> {now.get(name)}"
    if key == "weights_sha256":
        paths = [run["weights"]["path"] for run in (state, header)]
        content = ", whose content has changed since" if paths[0] == paths[1] else f" -> {paths[1]}"
        yield f"MODEL.WEIGHTS {paths[0]}{content}"
    if key == "label_subset_sha256":
        had = ["none" if run.get(key) is None else "a list" for run in (state, header)]
        yield f"--label-subset {had[0]} -> {'another' * (had[0] == had[1]) or had[1]}"
    if key == "seed":
        yield f"SEED {state[key]} -> {header[key]}"


def resume_notes(state: Header, header: Header, *, eval_only: bool) -> list[str]:
    """Return what is recorded of a resumption, earlier ones first, a sentence each."""
    notes = list(state["resume_notes"])
    if not eval_only and state["world_size"] != header["world_size"]:
        facts = {"now": header["world_size"], "before": state["world_size"]}
        notes.append(TEXTS["world_size"].format(iteration=state["iteration"], **facts))
    return notes


def evaluation_folder(output_dir: Path, test_names: Sequence[str]) -> Path:
    """Return where an evaluation may write without replacing anything: ``output_dir`` where it
    holds no run and no other evaluation, else ``eval_<test sets>[_<number>]`` in it.
    """
    name = "eval_" + re.sub(r"[^\w.+-]", "_", "+".join(test_names))
    numbered = (output_dir / f"{name}_{number}" for number in itertools.count(2))
    folders = itertools.chain([output_dir, output_dir / name], numbered)
    return next(f for f in folders if not any(any(f.glob(pattern)) for pattern in _FILES))
