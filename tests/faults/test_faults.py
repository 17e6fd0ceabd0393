"""The fault bench (bench.py) in a process of its own, whose last line is the sum of its table.

Seen red under: no look for the temporary files of killed processes; OUTPUT_DIR not synced in the
folder above it; what last_checkpoint names taken unseen; TensorBoard's tracebacks of a full disk.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).with_name("bench.py")


def total(*options: object) -> dict[str, int]:
    """Run the bench; return what its last line counts."""
    command = [sys.executable, str(BENCH), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    counts = re.fullmatch(r"trials (\d+), lost (\d+), unequal (\d+), left behind (\d+)", last)
    assert counts, done.stderr[-3000:] + done.stdout[-3000:]
    names = ("trials", "lost", "unequal", "left behind")
    found = dict(zip(names, map(int, counts.groups()), strict=True))
    assert not any(found[name] for name in names[1:]), done.stdout[-6000:]
    return found


def test_bench__short_form():
    only = ["--only", "pretrain", "pack", "--faults", "signals", "checkpoints", "disk", "power"]
    assert total("--trials", 1, *only)["trials"] >= 11


@pytest.mark.slow
def test_bench__every_job_and_fault():
    assert total("--trials", 3)["trials"] >= 100
