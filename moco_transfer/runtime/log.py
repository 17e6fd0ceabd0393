"""Log lines: rank 0 to the terminal, every process to a file of its own in OUTPUT_DIR."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from .distributed import get_rank
from .files import make_folder


class _Formatter(logging.Formatter):
    """Shows the module without the package's name, and a level only where it is not INFO."""

    def __init__(self) -> None:
        line = "[%(asctime)s %(shortname)s] %(levelmark)s%(message)s"
        super().__init__(line, "%m/%d %H:%M:%S")

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


class _FileHandler(logging.FileHandler):
    """Drops lines that a full disk refuses: what the run needs to write says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextlib.contextmanager
def logged_to(output_dir: str | Path) -> Iterator[None]:
    """Add the package's log lines to ``OUTPUT_DIR/log.txt`` for the block, for programs that have
    logging of their own.
    """
    root = logging.getLogger("moco_transfer")
    handler, level = _file_handler(output_dir), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


def _file_handler(output_dir: str | Path) -> logging.Handler:
    make_folder(output_dir)
    name = "log.txt" if get_rank() == 0 else f"log.txt.rank{get_rank()}"
    file = Path(output_dir) / name
    handler = _FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Formatter())
    return handler


def set_up_logging(output_dir: str | Path | None = None, *, quiet: bool = False) -> None:
    """Send the package's log lines to the terminal (rank 0; with ``quiet`` only warnings) and add
    them to ``OUTPUT_DIR/log.txt``, those of other ranks to ``log.txt.rank1``, ...
    """
    root = logging.getLogger("moco_transfer")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = []
    if get_rank() == 0:
        handlers.append(_TerminalHandler(sys.stdout))
        handlers[0].setLevel(logging.WARNING if quiet else logging.INFO)
    if output_dir is not None:
        handlers.append(_file_handler(output_dir))
    for handler in handlers:
        handler.setFormatter(_Formatter())
        root.addHandler(handler)
