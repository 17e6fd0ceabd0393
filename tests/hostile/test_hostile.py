"""Damaged and hostile files for every reader, in a process of its own (readers.py).

Seen red under: a YAML error of two lines in a message; NotImplementedError of a damaged index.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("readers.py")


def run(*words):
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_readers__some_files():
    assert run(25).count(": 25 files: ") == 12


@pytest.mark.slow
def test_readers__ten_thousand_files_each():
    assert run(10_000).count(": 10000 files: ") == 12
