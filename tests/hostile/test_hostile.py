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
    rows = done.stdout.splitlines()[-16:-1]
    return {row[:18].strip(): int(row[18:28].replace(",", "")) for row in rows}


def test_readers__some_files():
    inputs = run(12)
    assert len(inputs) == 15 and set(inputs.values()) == {12}


@pytest.mark.slow
def test_readers__ten_thousand_files_each():
    inputs = run(10_000)
    assert set(inputs.values()) == {10_000}
