"""`moco-transfer doctor` if something is missing; for Detectron2 see test_detectron2.py.

Seen red under: engines.py importing torch at its top; the check of torchvision, OpenCV or
pycocotools always reporting ok; a file of dense pose not looked for.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import types

import pytest

from moco_transfer.cli.main import main

from .conftest import environment

WITHOUT_TORCH = """
import importlib.metadata, sys
sys.modules["torch"] = None
known = importlib.metadata.version
def version(name):
    if name.startswith("torch"):
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
from moco_transfer.cli.main import main
sys.exit(main(["doctor"]))
"""
NAMES = (
    *("python", "torch", "CUDA", "torchvision", "detectron2"),
    *("pycocotools", "hotcoco", "OpenCV"),
)


def versions_of(lines: list[str]) -> dict[str, str]:
    versions = dict(line.split(maxsplit=1) for line in lines[: len(NAMES)])
    assert tuple(versions) == NAMES
    return versions


def test_doctor__without_torch():
    command = [sys.executable, "-c", WITHOUT_TORCH]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    lines = result.stdout.splitlines()
    versions = versions_of(lines)
    assert versions["torch"] == "not installed" and "unknown" in versions["CUDA"]
    torch, operators = (line for line in lines if line.startswith("FAILS"))
    assert "torch" in torch and "pytorch.org" in torch and "operators" in operators


@pytest.mark.parametrize(
    ("module", "distribution", "name", "next_step"),
    [
        ("torchvision", "torchvision", "torchvision", "torch 2.11.0 and torchvision 0.26.0"),
        ("cv2", "opencv-python", "OpenCV", "pip install opencv-python-headless"),
        ("pycocotools.mask", "pycocotools", "pycocotools", "pip install pycocotools"),
    ],
)
def test_doctor__without_a_package(module, distribution, name, next_step, monkeypatch, capsys):
    known = importlib.metadata.version

    def version(package):
        if package.startswith(distribution):
            raise importlib.metadata.PackageNotFoundError(package)
        return known(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert versions_of(lines)[name] == "not installed"
    (line,) = [line for line in lines if line.startswith("FAILS")]
    assert next_step in line


def test_doctor__all_works_and_the_compiled_loops_are_switched_off(monkeypatch, capsys):
    monkeypatch.setenv("MOCO_TRANSFER_NO_NATIVE", "1")
    monkeypatch.setattr("moco_transfer.data.views.native.available", lambda: False)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("FAILS")]
    (line,) = [line for line in lines if "compiled loops" in line]
    assert line.startswith("note ") and "unset MOCO_TRANSFER_NO_NATIVE" in line


def test_doctor__says_what_dense_pose_lacks_and_where_it_belongs(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    place = str(tmp_path / "densepose" / "data")
    files = "UV_symmetry_transforms.mat SMPL_subdiv.mat SMPL_SUBDIV_TRANSFORM.mat Pdist_matrix.pkl"

    def line_of_doctor() -> str:
        assert main(["doctor"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if "ense pose" in line or "DensePose" in line]
        return line

    monkeypatch.setitem(sys.modules, "densepose", None)
    without_project = line_of_doctor()
    assert without_project.startswith("note ") and "projects/DensePose" in without_project
    monkeypatch.setitem(sys.modules, "densepose", types.ModuleType("densepose"))
    without_files = line_of_doctor()
    assert without_files.startswith("note ")
    for text in (place, *files.split()):
        assert text in without_project and text in without_files
    (tmp_path / "densepose" / "data").mkdir(parents=True)
    for name in files.split():
        (tmp_path / "densepose" / "data" / name).write_bytes(b"")
    assert line_of_doctor().startswith("ok ")
