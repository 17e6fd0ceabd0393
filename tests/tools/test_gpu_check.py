"""tools/gpu_check.sh: all of it with tiny sizes on a CPU, and the table that its lines become.

Seen red under: the rest of the page left out behind the table. The slow test: not tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CHECKS = """environment tests equal step profile split_norm images fed detectors resume ranks
    sanitizer compiled""".split()


@pytest.mark.slow
def test_tiny__every_check_ends_well(repository, tmp_path):
    settings = {"OUT": str(tmp_path), "PYTHON": sys.executable, "GPU_CHECK_SECONDS": "1200"}
    done = subprocess.run(
        ["bash", str(repository / "tools" / "gpu_check.sh"), "--tiny"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["check"] for row in rows] == CHECKS
    assert {row["check"]: row["data"] for row in rows if row["rc"]} == {}
    found = {row["check"]: row["data"] for row in rows}
    assert found["resume"]["equal_bits"] and found["equal"]["most_apart"] < 1e-3
    assert found["ranks"]["trained"]


def test_table__becomes_the_pages(repository, tmp_path):
    page, lines = tmp_path / "performance.md", tmp_path / "gpu_check.jsonl"
    text = (repository / "docs" / "performance.md").read_text()
    page.write_text(text)
    rows = [
        {"check": "equal", "rc": 0, "sec": 9, "data": {"most_apart": 0.25}},
        {"check": "step", "rc": 0, "sec": 8, "data": {"ours": {"ms": 7}, "theirs": {"ms": 21}}},
        {"check": "fed", "rc": 1, "sec": 3, "data": {"end": ["a | b"]}},
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tool = repository / "tools" / "gpu_check.py"
    command = [sys.executable, str(tool), "table", str(lines), "--page", str(page)]
    for _ in range(2):  # the second run replaces the first's
        subprocess.run(command, check=True)
    new = page.read_text()
    assert "| equal | most_apart 0.25 | 9 |\n" in new
    assert "| step | ours: ms 7<br>theirs: ms 21 | 8 |\n" in new
    assert "| fed | **failed (1)** end a / b | 3 |\n" in new
    assert "no GPU was at hand" not in new
    begin, end = "<!-- gpu_check -->", "<!-- /gpu_check -->"
    assert new.split(begin)[0] == text.split(begin)[0] and new.split(end)[1] == text.split(end)[1]
