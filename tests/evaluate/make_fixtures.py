"""Write fixtures/detectron2_voc.json: Detectron2's VOC AP on drawn sets, for machines without
Detectron2.

    python tests/evaluate/make_fixtures.py

Made with Detectron2 0.6 (facebookresearch/detectron2@02b5c4e2), numpy 2, torch 2.11. The sets are
drawn again from their seeds in the test and hold no tied scores, whose order depends on the
machine.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from detectron2_numbers import voc_numbers
from random_detections import draw_set

FIXTURE = Path(__file__).parent / "fixtures" / "detectron2_voc.json"
CLASS_NAMES = ("a", "b", "c")


def main() -> None:
    """Write the fixture."""
    numbers = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(12):
            truth, detections = draw_set(seed, ties=False)
            for year in (2007, 2012):
                scores = voc_numbers(
                    Path(folder) / f"{seed}_{year}", truth, detections, CLASS_NAMES, year
                )
                numbers.append({"seed": seed, "year": year, **scores})
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text("[\n" + ",\n".join(json.dumps(row) for row in numbers) + "\n]\n")


if __name__ == "__main__":
    main()
