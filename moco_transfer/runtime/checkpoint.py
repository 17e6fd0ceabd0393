"""Checkpoints of a run: written whole or not at all, found again by ``last_checkpoint``.

A checkpoint is a ``torch.save`` of plain containers, numbers, strings and tensors, so that it loads
with ``weights_only=True`` and runs no code. ``checkpoint_0200.pth`` holds the state after 200
finished epochs (pre-training) or iterations (fine-tuning).
"""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import InputError, MissingFileError
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
    """Return the dictionary in a file that ``torch.save`` wrote, on the CPU; no code in it is run.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is truncated, not a checkpoint, or holds objects other than tensors and
            plain containers.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a checkpoint such as checkpoint_0200.pth.")
    if not path.exists():
        raise MissingFileError(f"Checkpoint {path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read safely (weights only): {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is truncated or not a PyTorch checkpoint ({reason}). Copy it again, or use an"
            " earlier checkpoint."
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a dictionary.")
    return state
