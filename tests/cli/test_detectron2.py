"""The command line if Detectron2 is not installed, does not load, or works.

Seen red under: auto taking an installed Detectron2 that does not load.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from moco_transfer.cli.main import main
from moco_transfer.finetune.engine import DETECTRON2_GUIDE

from .conftest import environment

ABSENT = (
    "import sys; sys.modules['detectron2'] = None; from moco_transfer.cli.main import main;"
    " sys.exit(main(sys.argv[1:]))"
)
CHOOSE = (
    "import sys; from moco_transfer.finetune.engine import choose_engine;"
    " print(choose_engine(sys.argv[1]))"
)
TESTED = "0.6 at commit 02b5c4e2, with torch 2.11.0"


def run(
    program: str, *arguments: str, extra_path: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(extra_path)
    )


@pytest.fixture
def broken(tmp_path):
    """Folder with a Detectron2 that was built for another torch."""
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(
        "raise ImportError('_C.so: undefined symbol: _ZN3c10')\n"
    )
    return str(tmp_path)


def test_engine_detectron2__not_installed_is_one_sentence():
    result = run(ABSENT, "train", "--engine", "detectron2", "--config-file", "own_R_18_FPN_small")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(
        "moco-transfer train: Engine 'detectron2' is not installed: "
    )
    for part in (DETECTRON2_GUIDE, f"(tested: {TESTED})", "or use --engine torchvision"):
        assert part in result.stderr


def test_engine_auto__is_the_embedded_one_without_detectron2():
    result = run(
        "import sys; sys.modules['detectron2'] = None;" + CHOOSE.removeprefix("import sys;"), "auto"
    )
    assert (result.stdout, result.stderr) == ("torchvision\n", "")


def test_engine_auto__says_so_when_detectron2_does_not_load(broken):
    result = run(CHOOSE, "auto", extra_path=broken)
    assert result.stdout == "torchvision\n"
    assert (
        "Detectron2 is installed but does not load (_C.so: undefined symbol: _ZN3c10)"
        in result.stderr
    )


def test_engine_detectron2__that_does_not_load_is_refused(broken):
    program = "import sys; from moco_transfer.cli.main import main; sys.exit(main(sys.argv[1:]))"
    result = run(
        program,
        "train",
        "--engine",
        "detectron2",
        "--config-file",
        "own_R_18_FPN_small",
        extra_path=broken,
    )
    assert (
        result.returncode == 2
        and "Engine 'detectron2' is installed but does not load: _C.so: undefined symbol"
        in result.stderr
    )


@pytest.mark.detectron2
def test_engine_auto__is_detectron2_where_it_loads():
    assert run(CHOOSE, "auto").stdout == "detectron2\n"


def test_engine__unknown_word(capsys):
    assert main(["train", "--engine", "detecton2", "--config-file", "own_R_18_FPN_small"]) == 2
    assert "Unknown engine 'detecton2'. Did you mean 'detectron2'?" in capsys.readouterr().err


@pytest.fixture
def not_imported(monkeypatch):
    """Forget Detectron2, and our engine on it, for a test."""
    for name in list(sys.modules):
        if name.split(".")[0] == "detectron2" or "detectron2_engine" in name:
            monkeypatch.delitem(sys.modules, name)


def test_doctor__without_detectron2(not_imported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "detectron2: not installed" in line]
    assert line.startswith("note ") and DETECTRON2_GUIDE in line and TESTED in line


def test_doctor__a_detectron2_that_does_not_load(not_imported, broken, monkeypatch, capsys):
    monkeypatch.syspath_prepend(broken)
    assert main(["doctor"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "does not load" in line]
    assert line.startswith("note ") and DETECTRON2_GUIDE in line
    assert "_C.so: undefined symbol: _ZN3c10" in line


@pytest.mark.detectron2
def test_doctor__a_detectron2_that_works(capsys):
    assert main(["doctor"]) == 0
    assert "ok    Detectron2 0." in capsys.readouterr().out


def test_dense_pose__the_embedded_engine_refuses_it_by_name(capsys, tmp_path):
    config = "coco_densepose_R_50_FPN_s1x"
    words = [
        "--engine",
        "torchvision",
        "--config-file",
        config,
        "OUTPUT_DIR",
        str(tmp_path / "run"),
    ]
    assert main(["train", *words]) == 2
    message = capsys.readouterr().err
    assert message.count("dense pose (MODEL.DENSEPOSE_ON True)") == 1
    assert "--engine detectron2" in message and not (tmp_path / "run").exists()
