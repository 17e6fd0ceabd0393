"""Damaged files in a process of its own, so that a crash shows as its exit status.

Seen red under: LookupError left out of what safe_pickle takes for damage; the destination written
    before the checks.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


def run(count):
    done = subprocess.run([sys.executable, str(SCRIPT), str(count)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_fuzz__some_files():
    assert "36 files" in run(36)


@pytest.mark.slow
def test_fuzz__ten_thousand_files():
    assert "10000 files" in run(10_000)
