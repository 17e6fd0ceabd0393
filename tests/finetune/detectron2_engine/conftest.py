"""Lets the tests of this folder import the modules next to them, however pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from generated_images import write_voc_scenes

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Eight training and three test scenes in VOC's layout, with the fields that Detectron2's
    evaluator of VOC asks for.
    """
    folder = tmp_path_factory.mktemp("scenes")
    write_voc_scenes(folder, splits={"train": 8, "test": 3}, size=64, seed=0)
    for file in (folder / "Annotations").glob("*.xml"):
        file.write_text(
            file.read_text().replace(
                "<difficult>", "<pose>Unspecified</pose><truncated>0</truncated><difficult>"
            )
        )
    return folder
