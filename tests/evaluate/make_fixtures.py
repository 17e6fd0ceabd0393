"""Write fixtures/detectron2_voc.json and fixtures/detectron2_cityscapes.json: Detectron2's AP on
drawn sets, for machines without Detectron2.

    python tests/evaluate/make_fixtures.py [voc] [cityscapes]

Made with Detectron2 0.6 (facebookresearch/detectron2@02b5c4e2), numpy 2, torch 2.11. The sets are
drawn again from their seeds in the test and hold no tied scores, whose order depends on the
machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from cityscapes_cases import detectron2_numbers, draw_outputs, let_script_run, write_truth
from detectron2_numbers import voc_numbers
from random_detections import draw_set

FIXTURES = Path(__file__).parent / "fixtures"
CLASS_NAMES = ("a", "b", "c")


def voc(folder: Path) -> list[dict]:
    """Return VOC's numbers, with both metrics."""
    numbers = []
    for seed in range(12):
        truth, detections = draw_set(seed, ties=False)
        for year in (2007, 2012):
            place = folder / f"{seed}_{year}"
            scores = voc_numbers(place, truth, detections, CLASS_NAMES, year)
            numbers.append({"seed": seed, "year": year, **scores})
    return numbers


def cityscapes(folder: Path) -> list[dict]:
    """Return Cityscapes' numbers of masks, by cityscapesscripts 2.3.0."""
    numbers = []
    with pytest.MonkeyPatch.context() as patch:
        let_script_run(patch, folder)
        for seed in range(12):
            dataset = write_truth(folder / str(seed), seed)
            scores = detectron2_numbers(dataset, draw_outputs(dataset, seed), patch)
            numbers.append({"seed": seed, **scores})
    return numbers


def main() -> None:
    """Write those that are named, or both."""
    for name in sys.argv[1:] or ("voc", "cityscapes"):
        with tempfile.TemporaryDirectory() as folder:
            numbers = globals()[name](Path(folder))
        file = FIXTURES / f"detectron2_{name}.json"
        file.write_text("[\n" + ",\n".join(json.dumps(row) for row in numbers) + "\n]\n")


if __name__ == "__main__":
    main()
