"""Write fixtures/repeat_factors.json: Detectron2's repeat factors and the order of images that
follows, for machines without Detectron2.

    python tests/data/make_repeat_factors.py

Made with Detectron2 0.6 (facebookresearch/detectron2@02b5c4e2), torch 2.11.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

FILE = Path(__file__).parent / "fixtures" / "repeat_factors.json"
CASES = [(0.001, True), (0.3, True), (0.3, False)]  # threshold, square root
SEED, COUNT = 7, 400


def class_sets() -> list[list[int]]:
    """The classes of each of 120 images, class k in about 120 / (k + 1) of them; some have none."""
    return [[k for k in range(30) if (i * (k + 3)) % (k + 1) == 0 and i % 9] for i in range(120)]


def records() -> list[dict]:
    return [{"annotations": [{"category_id": c} for c in held]} for held in class_sets()]


def main() -> None:
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    cases = []
    for threshold, sqrt in CASES:
        sampler = RepeatFactorTrainingSampler
        factors = sampler.repeat_factors_from_category_frequency(records(), threshold, sqrt=sqrt)
        order = list(itertools.islice(sampler(factors, seed=SEED), COUNT))
        case = {"threshold": threshold, "sqrt": sqrt, "factors": factors.tolist(), "order": order}
        cases.append(case)
    FILE.write_text("\n".join(map(json.dumps, cases)) + "\n")


if __name__ == "__main__":
    main()
