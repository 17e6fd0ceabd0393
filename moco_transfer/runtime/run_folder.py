"""OUTPUT_DIR of a run: two runs are never mixed, and each records what it is."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import LAST
from .distributed import barrier, broadcast_object, is_main_process
from .environment import environment_report
from .errors import InputError, printable
from .files import atomic_write_text


def open_run_folder(output_dir: str | Path, *, resume: bool) -> Path:
    """Return OUTPUT_DIR as a path; nothing is written. Collective.

    Raises:
        InputError: If it is no name of a folder, a file, or holds a run and ``resume`` is not set.
    """
    folder = Path(output_dir)
    if "\0" in str(output_dir):
        raise InputError(f"OUTPUT_DIR {printable(output_dir)} is not the name of a folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUTPUT_DIR {folder} is a file, expected a folder.")
    files = [name for name in (LAST, "metrics.json", "results.json") if (folder / name).exists()]
    # Decided on one process: the first to write would look like an old run to the others.
    if (found := broadcast_object(files)) and not resume:
        raise InputError(
            f"OUTPUT_DIR {folder} already holds a run ({', '.join(found)}). Continue it with"
            " --resume, or choose another OUTPUT_DIR."
        )
    return folder


def record_settings(folder: Path, config_text: str) -> None:
    """Write the merged config as ``config.yaml``, and ``env.txt``, into OUTPUT_DIR. Collective."""
    if is_main_process():
        atomic_write_text(folder / "config.yaml", config_text)
        atomic_write_text(folder / "env.txt", environment_report())
    barrier()
