"""Random test sets and detections with everything that makes evaluators differ; the tests and
make_fixtures.py draw from it.
"""

from __future__ import annotations

import numpy as np


def draw_set(seed: int, *, num_images: int = 12, num_classes: int = 3, ties: bool = True):
    """Draw ground truth and detections of one test set.

    Args:
        seed: Decides everything.
        num_images: Images, 100 x 100 px.
        num_classes: Classes.
        ties: Whether scores repeat. Their order is then up to the machine's sort, so numbers that
            are kept in a file need False.

    Returns:
        truth {image id: [(class, [x0, y0, x1, y1] whole px, difficult)]} and
        detections {image id: [(class, score, [x0, y0, x1, y1])]}.
    """
    rng = np.random.RandomState(
        seed
    )  # its stream is frozen, so numbers that are kept in a file stay right
    truth, detections = {}, {}
    for number in range(num_images):
        image_id = f"{number:06d}"
        objects = [
            (int(rng.randint(num_classes)), _box(rng), bool(rng.rand() < 0.2))
            for _ in range(rng.randint(0, 5))
        ]
        if number == 0:  # each class is there once at least, so that AP is defined
            objects += [(c, _box(rng), False) for c in range(num_classes)]
        truth[image_id] = objects
        found = []
        for c, box, _ in objects:
            for _ in range(rng.randint(0, 4)):  # none, one, or duplicates
                shift = rng.normal(0, rng.choice([0, 1, 4]), 4)
                other = int(rng.randint(num_classes)) if rng.rand() < 0.1 else c
                found.append((other, box + shift))
        found += [
            (int(rng.randint(num_classes)), np.array(_box(rng), float))
            for _ in range(rng.randint(0, 4))
        ]
        detections[image_id] = [
            (c, _score(rng, ties), np.asarray(box, np.float32).tolist()) for c, box in found
        ]
    if not ties:
        _spread_scores(detections, rng)
    return truth, detections


def _box(rng) -> list[int]:
    x0, y0 = rng.randint(0, 80, 2)
    width, height = rng.randint(4, 20, 2)
    return [int(x0), int(y0), int(x0 + width), int(y0 + height)]


def _score(rng, ties: bool) -> float:
    return (
        float(rng.choice([0.1, 0.25, 0.5, 0.5004, 0.5006, 0.9]))
        if ties and rng.rand() < 0.5
        else float(np.float32(rng.rand()))
    )


def _spread_scores(detections: dict, rng) -> None:
    """Give all detections scores that still differ after rounding to three digits."""
    total = sum(map(len, detections.values()))
    assert total < 1000
    scores = iter((rng.permutation(1000)[:total] / 1000).tolist())
    for image_id, found in detections.items():
        detections[image_id] = [(c, next(scores), box) for c, _, box in found]


def integer_images(drawn):
    """Number the images from 10, as COCO does."""
    return {int(image_id) + 10: value for image_id, value in drawn.items()}


def enlarged(drawn):
    """Six times as large: boxes of 24 to 114 px, so that small, medium and large ones occur."""
    return {
        i: [
            (a, [6 * v for v in b], c) if isinstance(b, list) else (a, b, [6 * v for v in c])
            for a, b, c in o
        ]
        for i, o in drawn.items()
    }
