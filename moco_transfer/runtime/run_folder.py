"""OUTPUT_DIR of a run: refuses to mix two runs, and records what the run is before it starts."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import torch

from .checkpoint import LAST
from .distributed import barrier, broadcast_object, cpu_group, get_world_size, is_main_process
from .environment import environment_report
from .errors import InputError
from .files import atomic_write_text

logger = logging.getLogger(__name__)


def open_run_folder(output_dir: str | Path, *, resume: bool, config_text: str, environment: bool = True) -> Path:
    """Make OUTPUT_DIR and write ``config.yaml`` and ``env.txt`` into it. Collective.

    Args:
        output_dir: The run's folder.
        resume: Whether a run that is already there is to be continued.
        config_text: The full, merged config as YAML.
        environment: Also write env.txt.

    Returns:
        The folder.

    Raises:
        InputError: If the folder holds a run and ``resume`` is not set: its results would be lost or mixed.
    """
    folder = Path(output_dir)
    # Decided on one process and told to all: the first to write would otherwise look like an old run to the others.
    state = _state(folder) if is_main_process() else None
    state = broadcast_object(state)
    if state and not resume:
        raise InputError(f"OUTPUT_DIR {folder} already holds a run ({state}). Continue it with --resume, or choose another OUTPUT_DIR.")
    if is_main_process():
        atomic_write_text(folder / "config.yaml", config_text)
        if environment:
            atomic_write_text(folder / "env.txt", environment_report())
    barrier()
    return folder


def _state(folder: Path) -> str:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUTPUT_DIR {folder} is a file, expected a folder.")
    present = [name for name in (LAST, "metrics.json", "results.json") if (folder / name).exists()]
    return ", ".join(present)


class StopRequest:
    """Notices SIGTERM (a scheduler's warning) so that a run can save before it ends.

    Use as ``with StopRequest() as stop: …`` and ask :meth:`agreed` once per iteration.
    """

    def __init__(self) -> None:
        self._seen = False
        self._before = None

    def __enter__(self) -> StopRequest:
        def notice(signum: int, frame: object) -> None:
            self._seen = True

        try:
            self._before = signal.signal(signal.SIGTERM, notice)
        except ValueError:  # not in the main thread (a notebook's worker): signals cannot be caught there
            self._before = None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self, device: torch.device | None = None) -> bool:
        """Return whether any process was told to stop. Collective: all must leave at the same iteration.

        Args:
            device: Where the processes compute. Not needed: they agree over the CPU, so that no host waits for its GPU.
        """
        if get_world_size() == 1:
            return self._seen
        flag = torch.tensor([float(self._seen)])
        torch.distributed.all_reduce(flag, group=cpu_group())
        return bool(flag.item() > 0)
