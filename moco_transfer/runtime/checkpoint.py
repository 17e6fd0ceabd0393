"""Checkpoints of a run: written whole or not at all, found again by ``last_checkpoint``.

A checkpoint is a ``torch.save`` of plain containers, numbers, strings and tensors, so that it loads
with ``weights_only=True`` and runs no code. ``checkpoint_0200.pth`` holds the state after 200
finished epochs (pre-training) or iterations (fine-tuning); the text file ``last_checkpoint`` holds
the name of the newest one.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import InputError, MissingFileError
from .files import atomic_path, atomic_write_text

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: The run's OUTPUT_DIR.
        keep: How many of the newest checkpoints stay; older ones are deleted after a newer one is
            safely on the disk. 0 keeps all.
    """

    def __init__(self, folder: str | Path, *, keep: int = 0) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: dict[str, Any], name: str) -> Path:
        """Write ``checkpoint_<name>.pth`` and point ``last_checkpoint`` at it.

        Args:
            state: What to save: containers, numbers, strings and tensors only.
            name: Epochs or iterations finished, with leading zeros so that names sort by age, e.g.
                ``0200``.

        Returns:
            The path of the file.
        """
        path = self.folder / f"checkpoint_{name}.pth"
        with atomic_path(path) as tmp:
            torch.save(state, tmp)
        atomic_write_text(self.folder / LAST, path.name + "\n")
        self._delete_old(path)
        return path

    def last(self) -> Path | None:
        """Return the newest checkpoint's path, or None when the run has none yet.

        Raises:
            MissingFileError: If ``last_checkpoint`` names a file that is gone.
        """
        pointer = self.folder / LAST
        if not pointer.exists():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8").strip()
        if not path.is_file():
            raise MissingFileError(
                f"{pointer} names {path.name}, which is not in {self.folder}. "
                f"Put the file back, or write the name of another checkpoint into {pointer}."
            )
        return path

    def _delete_old(self, newest: Path) -> None:
        if self.keep <= 0:
            return
        others = sorted(p for p in self.folder.glob("checkpoint_*.pth") if p != newest)
        for path in others[: max(0, len(others) - (self.keep - 1))]:
            path.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code from it.

    Args:
        path: A file that ``torch.save`` wrote.

    Returns:
        The saved dictionary.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is truncated, not a checkpoint, or holds objects other than tensors and
            plain containers.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(
            f"Checkpoint {path} does not exist. Give the path of a .pth file, e.g."
            " OUTPUT_DIR/checkpoint_0200.pth."
        )
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, expected a checkpoint file such as {path}/checkpoint_0200.pth."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} is not a checkpoint that can be read safely (weights only): {reason}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} is truncated or not a PyTorch checkpoint ({size} bytes:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}). Copy it"
            " again, or use an earlier checkpoint."
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"{path} holds a {type(state).__name__}, expected a dictionary as tools/pretrain.py and"
            " tools/train_net.py write it."
        )
    return state
