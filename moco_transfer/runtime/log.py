"""Log lines: rank 0 to the terminal, every process to a file of its own in OUTPUT_DIR."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from .distributed import get_rank

_FORMAT = "[%(asctime)s %(shortname)s] %(levelmark)s%(message)s"
_DATE = "%m/%d %H:%M:%S"


class _Formatter(logging.Formatter):
    """Shows the module without the package's name, and a level only where it is not INFO."""

    def format(self, record: logging.LogRecord) -> str:
        record.shortname = record.name.removeprefix("moco_transfer.")
        record.levelmark = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return super().format(record)


class _TerminalHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)


def set_up_logging(output_dir: str | Path | None = None, *, quiet: bool = False) -> None:
    """Send the package's log lines to the terminal (rank 0) and to ``OUTPUT_DIR/log.txt``
    (``log.txt.rank1``, …).

    Args:
        output_dir: The run's folder, made when missing; None for no file. A file that exists is
            appended to, so that a resumed run keeps its history.
        quiet: Only warnings go to the terminal.
    """
    root = logging.getLogger("moco_transfer")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    if get_rank() == 0:
        terminal = _TerminalHandler(sys.stdout)
        terminal.setLevel(logging.WARNING if quiet else logging.INFO)
        terminal.setFormatter(_Formatter(_FORMAT, _DATE))
        root.addHandler(terminal)
    if output_dir is not None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "log.txt" if get_rank() == 0 else f"log.txt.rank{get_rank()}"
        to_file = logging.FileHandler(folder / name, encoding="utf-8")
        to_file.setFormatter(_Formatter(_FORMAT, _DATE))
        root.addHandler(to_file)
