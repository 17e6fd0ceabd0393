"""The tutorial notebook, executed from its first cell to its last on small images."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
import tiny_wheel
from nbclient import NotebookClient

from moco_transfer.data import aerial_tiles

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tutorial.ipynb"
# What makes the runs long, and what it is here.
SHORT = {"SOLVER.EPOCHS 30": "SOLVER.EPOCHS 2", "SOLVER.MAX_ITER 150": "SOLVER.MAX_ITER 2"}


@pytest.mark.slow
def test_tutorial__ends_in_a_table_and_drawn_detections(tmp_path, monkeypatch):
    out = tmp_path / "tutorial_output"
    out.mkdir()
    wheel = tiny_wheel.write_wheel(tmp_path / "photographs.whl", monkeypatch)
    aerial_tiles.write_tiles(wheel, out / "images")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for long, short in SHORT.items():
            assert cell.cell_type == "code" or long not in cell.source
            cell.source = cell.source.replace(long, short)
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    table = next(out.glob("runs/table.md")).read_text()
    for init in ("random", "moco"):
        assert re.search(rf"^\| {init} \|.*\| 3 \| torchvision \|$", table, re.MULTILINE)
    assert list((out / "drawn").rglob("*.jpg"))
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "error" not in kinds and kinds.count("display_data") == 3


def test_tutorial__is_committed_with_the_outputs_of_a_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count == number for number, cell in enumerate(code, start=1))
    text = notebook.cells[-1].source
    assert text and any("text/markdown" in o.get("data", {}) for c in code for o in c.outputs)
