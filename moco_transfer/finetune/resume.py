"""Whether a checkpoint is of the run that is to continue from it, and which folder an evaluation
may write into.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.checkpoint import LAST

CHECKPOINT_FORMAT = "moco_transfer.finetune/1"

Header = Mapping[str, Any]  # what a checkpoint says of its run; ``FinetunePlan.header``


def resume_faults(state: Header, path: str, header: Header, *, eval_only: bool) -> Iterator[str]:
    """Yield a sentence for each reason why a run, which says ``header`` of itself, cannot continue
    from the checkpoint at ``path``: it is of another kind, engine or config, or of a run from other
    weights, images or seed (which do not matter for ``eval_only``).
    """
    if state.get("format") != header["format"]:
        yield (
            f"{path} is not a checkpoint of moco-transfer train (format {state.get('format')!r},"
            f" expected {header['format']!r})."
        )
        return
    if state["engine"] != header["engine"]:
        yield (
            f"{path} was made by the engine {state['engine']!r}, this run's is"
            f" {header['engine']!r}. Resume with --engine {state['engine']}."
        )
    elif state["config_hash"] != header["config_hash"]:
        yield (
            f"{path} was made with another config (hash {state['config_hash']}, now"
            f" {header['config_hash']}). Resume with the config.yaml next to it."
        )
    if not eval_only:
        yield from _other_start(state, path, header)


def _other_start(state: Header, path: str, header: Header) -> Iterator[str]:
    def weights(of: Header) -> str:
        digest = of["weights_sha256"]
        return f"{of['weights']['path']!r} with sha256 {digest}" if digest else "none"

    def labels(of: Header) -> str:
        digest = of["label_subset_sha256"]
        return f"the subset with sha256 {digest}" if digest else "all images"

    again = "or choose another OUTPUT_DIR to train from scratch"
    if state["weights_sha256"] != header["weights_sha256"]:
        yield (
            f"{path} is of a run that began with other weights ({weights(state)}), MODEL.WEIGHTS is"
            f" now {weights(header)}. Give it those, {again}."
        )
    if state["label_subset_sha256"] != header["label_subset_sha256"]:
        yield (
            f"{path} is of a run on other labels ({labels(state)}), --label-subset now says"
            f" {labels(header)}. Give it the same, {again}."
        )
    for role, digests in header["datasets"].items():
        for name in (
            n for n, digest in digests.items() if state["datasets"][role].get(n) != digest
        ):
            yield (
                f"{path} is of a run on other data: the annotations of {name!r} in"
                f" DATASETS.{role.upper()} have changed since it began. Put them back, {again}."
            )
    if state["seed"] != header["seed"]:
        yield (
            f"{path} is of a run with SEED {state['seed']}, now it is {header['seed']}. Resume with"
            f" SEED {state['seed']}, {again}."
        )


def resume_notes(state: Header, header: Header, *, eval_only: bool) -> list[str]:
    """Return what is recorded of a resumption, earlier ones first, a sentence each."""
    notes = list(state["resume_notes"])
    if not eval_only and state["world_size"] != header["world_size"]:
        notes.append(
            f"resumed after iteration {state['iteration']} on a world size of"
            f" {header['world_size']}, before it {state['world_size']}: the iterations see other"
            " images and random numbers than those of a run on one number of processes."
        )
    return notes


def folder_fault(folder: Path, *, resume: bool) -> str | None:
    """Return why a run cannot have a folder, in a sentence: it is a file, or holds another run."""
    if folder.exists() and not folder.is_dir():
        return f"OUTPUT_DIR {folder} is a file, expected a folder."
    present = _run_files(folder)
    if present and not resume:
        return (
            f"OUTPUT_DIR {folder} already holds a run ({', '.join(present)}). Continue it with"
            " --resume, or choose another OUTPUT_DIR."
        )
    return None


def _run_files(folder: Path) -> list[str]:
    return [name for name in (LAST, "metrics.json", "results.json") if (folder / name).exists()]


def evaluation_folder(output_dir: Path, test_names: Sequence[str], config_text: str) -> Path:
    """Return where an evaluation may write without replacing anything: ``output_dir`` where it
    holds no run and no other evaluation, else ``eval_<test sets>[_<number>]`` in it.

    An interrupted evaluation of the same config (``config_text``) is repeated in its folder.
    """
    name = "eval_" + re.sub(r"[^\w.+-]", "_", "+".join(test_names))
    numbered = (output_dir / f"{name}_{number}" for number in itertools.count(2))
    folders = itertools.chain([output_dir, output_dir / name], numbered)
    return next(folder for folder in folders if _is_free(folder, config_text))


def _is_free(folder: Path, config_text: str) -> bool:
    if _run_files(folder) or any(folder.glob("predictions_*.json")):
        return False
    config = folder / "config.yaml"
    return not config.exists() or config.read_text(encoding="utf-8") == config_text
