"""What tools/*.py import from the package exists, also inside their functions.

Seen red under: a function that a bench imports moved to another module.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util

import pytest

pytest.importorskip("torch")


def test_tools__import_names_that_exist(repository):
    missing = []
    for file in sorted((repository / "tools").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if not node.module.startswith("moco_transfer") or "detectron2_engine" in node.module:
                continue
            if not _exists(node.module):
                missing.append(f"{file.name}: {node.module}")
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name) and not _exists(f"{node.module}.{alias.name}"):
                    missing.append(f"{file.name}: {node.module}.{alias.name}")
    assert not missing


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
