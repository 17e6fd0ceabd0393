"""Made files of matches, and AP computed from them in the plainest way."""

from __future__ import annotations

import bisect

import numpy as np

NUM_CLASSES = 3


def draw_images(rng, num_images: int) -> list[list[tuple[int, float]]]:
    """Return the objects of some images: class, and how hard it is to find (0-1)."""
    return [
        [(int(rng.integers(NUM_CLASSES)), float(rng.random())) for _ in range(rng.integers(1, 4))]
        for _ in range(num_images)
    ]


def draw_matches(rng, images, *, skill: float) -> dict[str, np.ndarray]:
    """Return the arrays of a file of a detector: the more ``skill``, the more and the tighter it
    finds; a hard object is hard for every detector.
    """
    detections: list[tuple[int, float, int, int, int]] = []  # class, -score, image, hit, ignored
    truth = []
    for image, objects in enumerate(images):
        for c in range(NUM_CLASSES):
            if count := sum(c == of for of, _ in objects):
                truth.append((image, c, count))
        for c, hardness in objects:
            quality = skill - hardness + rng.normal(0, 0.1)
            thresholds = int(np.clip(10 * quality, 0, 10))
            detections.append((c, -float(rng.beta(3, 2)), image, 2**thresholds - 1, 0))
        for _ in range(rng.integers(0, 3)):
            ignored = 1023 * int(rng.random() < 0.2)
            c = int(rng.integers(NUM_CLASSES))
            detections.append((c, -float(rng.beta(2, 4)), image, 0, ignored))
    detections.sort()
    classes, scores, image, hit, ignored = zip(*detections, strict=True)
    return {
        "image_ids": np.arange(100, 100 + len(images)),
        "metric": np.array("coco"),
        "bbox/image": np.array(image, np.int32),
        "bbox/class": np.array(classes, np.int32),
        "bbox/score": -np.array(scores, np.float32),
        "bbox/hit": np.array(hit, np.uint16),
        "bbox/ignored": np.array(ignored, np.uint16),
        "bbox/truth": np.array(truth, np.int32),
    }


def plain_ap(found: dict[str, np.ndarray], drawn=None) -> float:
    """Return COCO's AP, 0-100, of drawn image numbers (all of them once by default)."""
    times = np.bincount(
        np.arange(len(found["image_ids"])) if drawn is None else drawn,
        minlength=len(found["image_ids"]),
    )
    aps = []
    for c in range(NUM_CLASSES):
        mine = found["bbox/truth"][found["bbox/truth"][:, 1] == c]
        num_objects = sum(int(times[image]) * int(count) for image, _, count in mine)
        if not num_objects:
            continue
        of_class = np.flatnonzero(found["bbox/class"] == c)
        for t in range(10):
            right = wrong = 0
            recalls, precisions = [], []
            for index in of_class:
                if found["bbox/ignored"][index] >> t & 1:
                    continue
                is_hit = found["bbox/hit"][index] >> t & 1
                for _ in range(times[found["bbox/image"][index]]):
                    right, wrong = right + int(is_hit), wrong + int(not is_hit)
                    recalls.append(right / num_objects)
                    precisions.append(right / (right + wrong))
            for place in range(len(precisions) - 2, -1, -1):
                precisions[place] = max(precisions[place], precisions[place + 1])
            places = [bisect.bisect_left(recalls, recall) for recall in np.linspace(0, 1, 101)]
            aps.append(np.mean([precisions[p] if p < len(precisions) else 0.0 for p in places]))
    return 100 * float(np.mean(aps))
