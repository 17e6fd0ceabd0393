"""Work that is dealt out to threads: loops that leave Python's lock alone while they run (decoding,
resizing, colours).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(work: Callable[[range], Result], count: int) -> list[Result]:
    """Call ``work`` with parts of ``range(count)``, one for each of ``torch.get_num_threads()``
    threads (1 in a data worker).

    Returns:
        What it returned, in the order of the parts.
    """
    threads = max(1, min(torch.get_num_threads(), count))
    parts = [range(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
    return list(
        map(work, parts) if threads == 1 else _threads(os.getpid(), threads).map(work, parts)
    )


@functools.cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    # By process: a forked one has none of its parent's threads.
    return ThreadPoolExecutor(count, thread_name_prefix="images")
