"""Checkpoints of a run: written whole or not at all, found again by ``last_checkpoint``.

A checkpoint is a ``torch.save`` of plain containers, numbers, strings and tensors, so that it loads
with ``weights_only=True`` and runs no code. ``checkpoint_0200.pth`` holds the state after 200
finished epochs (pre-training) or iterations (fine-tuning).
"""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import InputError, MissingFileError, damaged
from .files import atomic_path, atomic_write_text

LAST = "last_checkpoint"
"""The text file that holds the name of the newest checkpoint."""


class CheckpointFolder:
    """The checkpoints in OUTPUT_DIR, of which the ``keep`` newest stay (0: all)."""

    def __init__(self, folder: str | Path, *, keep: int = 0) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: dict[str, Any], name: str) -> Path:
        """Write ``checkpoint_<name>.pth``, point ``last_checkpoint`` at it, return its path.

        ``name``: epochs or iterations finished, with leading zeros so that names sort by age.
        """
        path = self.folder / f"checkpoint_{name}.pth"
        with atomic_path(path) as tmp:
            torch.save(state, tmp)
        atomic_write_text(self.folder / LAST, path.name + "\n")
        if self.keep > 0:
            others = sorted(p for p in self.folder.glob("checkpoint_*.pth") if p != path)
            for old in others[: max(0, len(others) - (self.keep - 1))]:
                old.unlink(missing_ok=True)
        return path

    def last(self) -> Path | None:
        """Return the newest checkpoint, None without one; MissingFileError if it is gone."""
        pointer = self.folder / LAST
        if not pointer.exists():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8").strip()
        if not path.is_file():
            raise MissingFileError(
                f"{pointer} names {path.name}, which is not in {self.folder}. Put the file back,"
                " or name another checkpoint there."
            )
        return path

    @contextlib.contextmanager
    def advising(self, remedy: str) -> Iterator[None]:
        """Add the newest checkpoint and a remedy to a FloatingPointError of the block."""
        try:
            yield
        except FloatingPointError as error:
            last = self.last() or "none yet"
            raise FloatingPointError(f"{error} Last checkpoint: {last}. {remedy}") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dictionary in a file that ``torch.save`` wrote; raises as :func:`torch_load`."""
    state = torch_load(path)
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a dictionary.")
    return state


def torch_load(path: str | Path, *, mmap: bool = False) -> Any:
    """Return what ``torch.save`` wrote, on the CPU; no code in it is run.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is truncated, damaged, or holds objects other than tensors and plain
            containers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged byte may look like another pickle version
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise MissingFileError(f"Checkpoint {path} does not exist.") from error
    except Exception as error:  # torch's reader raises any kind of exception for a damaged file
        patterns = (r"GLOBAL (\S+)", r"[Uu]nsupported \S+ (\S+)")
        named = next(filter(None, (re.search(p, str(error)) for p in patterns)), None)
        if named and isinstance(error, pickle.UnpicklingError):
            raise InputError(
                f"{path} asks for {named[1][:100]!r}, which is neither a tensor nor a plain value,"
                " and was not run; save its state_dict() alone with torch.save."
            ) from None
        raise damaged(path, error) from error
