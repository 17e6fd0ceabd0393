"""How the C library treats freed memory."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; True with glibc.

    A training step on a CPU frees and allocates the same hundreds of MB each time. By default
    glibc returns them to the system, and each page that comes back costs a page fault: 9,000 to
    34,000 of them in a step of ResNet-18. The process stays at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; TypeError on Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
