"""Write fixtures/lvis_api.json: lvis-api's numbers on random sets of detections.

    PYTHONPATH=LVIS_API python tests/evaluate/make_lvis_numbers.py lvis_v0.5_val_100.json

Made with lvis-dataset/lvis-api's master (its last release on PyPI does not run with NumPy 1.24 or
newer). Drawn sets have 6 images and 12 classes; the others are on LVIS's own file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from random_lvis import NUMBERS, draw_lvis, draw_results

FILE = Path(__file__).parent / "fixtures" / "lvis_api.json"


def numbers_of(json_file: Path, results: list[dict], task: str) -> list[float]:
    """Return lvis-api's thirteen numbers; -1 where there is no ground truth."""
    from lvis import LVIS, LVISEval, LVISResults

    truth = LVIS(str(json_file))
    # As Detectron2's evaluator: with a bbox the sizes of masks would be those of the boxes.
    dropped = {"bbox": "segmentation", "segm": "bbox"}[task]
    mine = [{key: result[key] for key in result if key != dropped} for result in results]
    evaluation = LVISEval(truth, LVISResults(truth, mine), task)
    evaluation.run()
    return [float(evaluation.results[name]) for name in NUMBERS]


def case(json_file: Path, seed: int, of: str) -> dict:
    results, _ = draw_results(json.loads(json_file.read_text()), seed)
    return {"of": of, "seed": seed} | {
        task: numbers_of(json_file, results, task) for task in ("bbox", "segm")
    }


def main() -> None:
    cases = [case(Path(sys.argv[1]), seed, "lvis_v0.5_val_100") for seed in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(20):
            file = Path(folder) / "lvis.json"
            file.write_text(json.dumps(draw_lvis(seed)))
            cases.append(case(file, seed, "drawn"))
    FILE.write_text("\n".join(map(json.dumps, cases)) + "\n")


if __name__ == "__main__":
    main()
