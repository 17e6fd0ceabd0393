"""Memory that was freed stays with the process, so that asking for it again costs no page faults.

Went red under: mallopt not called; the heap's end given back; large blocks still mapped by
    themselves.
"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, torch
from moco_transfer.runtime.device import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def at_the_end():  # 64 MB behind everything else, which a heap that is trimmed gives back
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
def step():  # 192 MB in blocks of 48, alive together as a forward pass's are
    blocks = [torch.ones(12 << 20) for _ in range(4)]
for _ in range(12):  # freed blocks find their places in the heap
    step(), at_the_end()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    at_the_end(), step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory"
)
def test_keep_freed_memory__no_page_faults_for_memory_that_was_freed():
    def faults(how: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how],
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
            ).stdout
        )

    assert faults("kept") * 4 < faults(
        "given back"
    )  # 0 and about 200,000 pages of 4 KiB; where all pages are huge, 0 and some 400
