"""SECURITY.md names each dependency with its licence; the lint rules refuse what it says they do;
the lock holds the versions of constraints.txt, with hashes.

Seen red under: a dependency not named; TID251 taken out of ruff's rules;
    torch.load taken from the banned names; another version, or no hash, in the lock.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

import pytest


def test_security__names_the_licence_of_each_dependency(repository):
    text = (repository / "SECURITY.md").read_text()
    section = text.partition("## Licences of dependencies")[2].partition("\n## ")[0]
    named = {word.lower() for word in re.findall(r"[A-Za-z][\w-]+", section)}
    required = importlib.metadata.requires("moco-transfer")
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in required}
    assert len(names) > 25 and names <= named


def test_lock__has_the_versions_that_the_tests_run_with(repository):
    def pinned(file: str) -> dict[str, str]:
        lines = (repository / file).read_text().splitlines()
        return dict(re.match(r"([\w.-]+)==(\S+)", one).groups() for one in lines if one[0] != "#")

    names = {
        name.lower(): version.rstrip(";") for name, version in pinned("constraints.txt").items()
    }
    locked = pinned("requirements.lock")
    assert {name: locked.get(name) for name in names} == names
    lines = (repository / "requirements.lock").read_text().splitlines()[2:]
    hashes = r"( --hash=sha256:[0-9a-f]{64})+"
    assert all(re.search(hashes + "$", line) for line in lines) and len(lines) > 150
    required = [r for r in importlib.metadata.requires("moco-transfer") if "extra ==" not in r]
    assert {re.match(r"[\w.-]+", line)[0].lower() for line in required} <= set(locked)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.load(file)",
        "import pickle; pickle.loads(data)",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import yaml; yaml.load(text, yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "import os; os.system(text)",
        "import subprocess; subprocess.run(text, shell=True)",
        "import urllib.request",
    ],
)
def test_lint__refuses(line, repository, tmp_path):
    pytest.importorskip("ruff", reason="ruff is not installed (extra 'lint')")
    (tmp_path / "line.py").write_text(line + "\n")
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "line.py"]
    command += ["--config", str(repository / "pyproject.toml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.search(r" (S\d+|TID251) ", done.stdout), done
