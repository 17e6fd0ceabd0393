"""Progress of long work: a bar on a terminal, a line every 10 s in a log file or a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from .distributed import is_main_process

LINE_PERIOD_SEC = 10.0
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f}%), {rate_fmt}, {remaining} left"


class _Lines:
    """A file for tqdm that ends each of its texts with a new line, instead of overwriting it."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def progress(
    items: Iterable[Any] | None = None,
    description: str = "",
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    leave: bool = True,
) -> tqdm:
    """Return tqdm's bar, or over ``items`` the iterator with it, as process 0 shows it on stderr.

    Where stderr is no terminal, there is a line every 10 s and none for work that takes less.
    """
    lines = {}
    if not sys.stderr.isatty():
        every = LINE_PERIOD_SEC
        lines = {"file": _Lines(), "mininterval": every, "miniters": 0, "delay": every}
        lines |= {"bar_format": _LINE if description else _LINE.removeprefix("{desc}: ")}
        leave = False
    return tqdm(
        items,
        description,
        total,
        leave,
        initial=initial,
        unit=unit,
        disable=not is_main_process(),
        **lines,
    )


def logged(bar: tqdm) -> None:
    """Note that a log line has just told how far the work is: the bar's next line is due later."""
    bar.last_print_t = time.time()
