"""What `moco-transfer doctor` says where something is missing; of Detectron2 in test_detectron2.py.

Each package is taken away as if it had never been installed: it does not import, and has no
    version.

Seen red under: engines.py importing torch at its top (a traceback without torch); torchvision's,
    OpenCV's and pycocotools'
check always saying ok.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import environment

WITHOUT = """
import importlib.metadata, sys
module, distribution = sys.argv.pop(1), sys.argv.pop(1)
sys.modules[module] = None
known = importlib.metadata.version
def version(name):
    if name.startswith(distribution):
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
from moco_transfer.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
NAMES = ("python", "torch", "CUDA", "torchvision", "detectron2", "pycocotools", "OpenCV")


def doctor(module: str, distribution: str, **more: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", WITHOUT, module, distribution, "doctor"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment() | more
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout.splitlines()


@pytest.mark.parametrize(
    ("module", "distribution", "name", "next_step"),
    [
        ("torch", "torch", "torch", "Install it as pytorch.org says."),
        (
            "torchvision",
            "torchvision",
            "torchvision",
            "Install a pair that belongs together, such as torch 2.11.0 and torchvision 0.26.0.",
        ),
        ("cv2", "opencv-python", "OpenCV", "pip install opencv-python-headless"),
        ("pycocotools", "pycocotools", "pycocotools", "pip install pycocotools"),
    ],
)
def test_doctor__without_a_package_all_versions_and_its_next_step(
    module, distribution, name, next_step
):
    status, lines = doctor(module, distribution)
    assert status == 1
    versions = dict(line.split(maxsplit=1) for line in lines[: len(NAMES)])
    assert tuple(versions) == NAMES
    assert versions[name] == "not installed"
    fails = [line for line in lines if line.startswith("FAILS ")]
    (line,) = [line for line in fails if name in line and next_step in line]
    if module == "torch":
        assert versions["CUDA"] == "unknown: torch does not import"
        assert fails == [
            line,
            "FAILS torchvision's detection operators need torch. Mend torch first.",
        ]
    else:
        assert fails == [line]


def test_doctor__all_there_and_the_compiled_loops_switched_off():
    status, lines = doctor("no_such_module", "no-such-distribution", MOCO_TRANSFER_NO_NATIVE="1")
    assert status == 0 and not [line for line in lines if line.startswith("FAILS")]
    (line,) = [line for line in lines if "compiled loops" in line]
    assert line.startswith("note ") and "unset MOCO_TRANSFER_NO_NATIVE" in line
