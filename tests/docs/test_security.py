"""SECURITY.md names each dependency with its licence; the lint rules refuse what it says they do.

Seen red under: a dependency not named; TID251 taken out of ruff's rules;
    torch.load taken from the banned names.
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
