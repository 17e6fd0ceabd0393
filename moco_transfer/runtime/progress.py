"""Progress of long work: a bar on a terminal or in a notebook, a line every 10 s in a log file; and
the means of a log period: sums that stay on the device, and the time that the period took.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .distributed import (
    all_gather_object,
    gather_object,
    get_rank,
    get_world_size,
    is_main_process,
    mean_over_processes,
)
from .errors import NotFiniteError

LINE_PERIOD_SEC = 10.0
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f}%), {rate_fmt}, {remaining} left"


class Counted(NamedTuple):
    """How far the work was that was counted last."""

    work: str
    done: int
    total: int | None
    at: float  # time.monotonic()


_last: list[Counted] = []  # one at most


def last_counted() -> Counted | None:
    """Return how far this process is with the work whose bar moved last."""
    return _last[0] if _last else None


class _Counting:
    """Of a bar, that also counts where it is not shown."""

    total: int | None

    def __init__(self, *args: Any, initial: int = 0, **settings: Any) -> None:
        super().__init__(*args, initial=initial, **settings)  # type: ignore[call-arg]
        self._what = settings["desc"]
        self._done = initial
        self._count(0)

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():  # type: ignore[misc]
            yield item
            self._count(1)

    def update(self, n: float | None = 1) -> bool | None:
        self._count(int(n or 0))
        return super().update(n)  # type: ignore[misc]

    def _count(self, more: int) -> None:
        self._done += more
        _last[:] = [Counted(self._what, self._done, self.total, time.monotonic())]


class _Bar(_Counting, tqdm):
    pass


@functools.cache
def _notebook_bar() -> type[tqdm]:
    from tqdm.auto import tqdm as of_notebooks  # of widgets where ipywidgets is installed

    return type("_NotebookBar", (_Counting, of_notebooks), {})


def _is_in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


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
    """Return tqdm's bar, or over ``items`` the iterator with it, as process 0 shows it on stderr or
    in the cell of a notebook.

    Where stderr is neither, there is a line every 10 s and none for work that takes less.
    """
    lines, kind = {}, _notebook_bar() if _is_in_notebook() else _Bar
    if kind is _Bar and not sys.stderr.isatty():
        every = LINE_PERIOD_SEC
        lines = {"file": _Lines(), "mininterval": every, "miniters": 0, "delay": every}
        lines |= {"bar_format": _LINE if description else _LINE.removeprefix("{desc}: ")}
        leave = False
    return kind(
        items,
        desc=description,
        total=total,
        leave=leave,
        initial=initial,
        unit=unit,
        disable=not is_main_process(),
        **lines,
    )


def logged(bar: tqdm) -> None:
    """Note that a log line has just told how far the work is: the bar's next line is due later."""
    bar.last_print_t = time.time()


class Meter:
    """Sums of one log period. Only ``means``, ``state`` and ``first_bad`` wait for the device.
    ``count`` includes the iterations before a resume, ``waited_sec`` does not.
    """

    waiting_since: float | None = None  # by time.perf_counter(), while it waits for data
    usual_sec: float | None = None  # of an iteration, in the last period or so far in this one

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start a new period."""
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.waited_sec = 0.0
        self._steps = 0  # since the reset or resume: what the time is divided by
        self._since = time.perf_counter()
        self._first_bad = torch.full((), -1, device=self.device)

    def add(self, measures: dict[str, Tensor], iteration: int) -> None:
        """Add the measures (detached scalars on the device) of an iteration."""
        for name, value in measures.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        is_bad = ~torch.stack(list(measures.values())).sum().isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(is_bad, iteration, self._first_bad)
        self.count += 1
        self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        since = self.waiting_since = time.perf_counter()
        if self._steps:
            self.usual_sec = (since - self._since) / self._steps
        yield
        self.waiting_since = None
        self.waited_sec += time.perf_counter() - since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block (an evaluation) out of the period's."""
        since = time.perf_counter()
        yield
        self._since += time.perf_counter() - since

    def local_means(self) -> dict[str, float]:
        """Return the period's means on this process."""
        return {name: float(total) / self.count for name, total in self.sums.items()}

    def first_bad(self) -> int:
        """Return this process's first iteration with a measure that is not finite, or -1."""
        return int(self._first_bad)

    def means(self) -> dict[str, float]:
        """Return the period's means over all processes. Collective.

        Raises:
            NotFiniteError: If one is not finite; names the first such iteration of any process.
        """
        means = mean_over_processes(self.local_means(), self.device)
        if not math.isfinite(sum(means.values())):  # equal on all processes, so all enter here
            bad = [found for found in all_gather_object(self.first_bad()) if found >= 0]
            where = f"Iteration {min(bad)}: " if bad else ""
            text = f"{where}the loss is not finite ({means})."
            raise NotFiniteError(text, min(bad, default=0))
        return means

    def timing(self) -> dict[str, float]:
        """Return ``time`` and ``data_time``: seconds per iteration, in all and waiting for data."""
        steps = max(1, self._steps)
        elapsed = time.perf_counter() - self._since
        return {"time": elapsed / steps, "data_time": self.waited_sec / steps}

    def state(self) -> dict[str, Any]:
        """Return on process 0 what a checkpoint holds of an unfinished period. Collective."""
        sums = gather_object({name: value.cpu() for name, value in self.sums.items()})
        return {"count": self.count, "sums": sums} if self.count else {}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue the period of a checkpoint; ``state`` is empty when a new one begins.

        With another number of processes the sums are their mean, equal up to rounding.
        """
        if not state:
            return
        parts = state["sums"]
        if len(parts) == get_world_size():
            sums = dict(parts[get_rank()])
        else:
            sums = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self.sums = {name: value.to(self.device) for name, value in sums.items()}
        self.count = state["count"]


def eta(iterations: int, sec_per_iteration: float) -> str:
    """Return how long the iterations that are left take, as ``[D days, ]H:MM:SS``."""
    most = datetime.timedelta.max.total_seconds()
    return str(datetime.timedelta(seconds=round(min(iterations * sec_per_iteration, most / 2))))
