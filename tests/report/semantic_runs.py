"""Made runs of semantic segmentation, and mIoU computed from them in the plainest way."""

from __future__ import annotations

import numpy as np

TASK, TEST_SET = "voc_R_50_FCN_d6_30k", "voc_2012_sem_seg_val"
CLASSES = ("background", "cat", "dog", "horse", "sheep")  # no image shows a sheep
FILE = f"matches_{TEST_SET}.npz"


def draw_matrices(rng, shown: list[np.ndarray], *, skill: float) -> list[np.ndarray]:
    """Return an image's confusion matrix (C, C), rows labelled, for each image's pixels by class:
    a share of about ``skill`` of them is right.
    """
    matrices = []
    for pixels in shown:
        matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        for true, count in enumerate(pixels):
            share = np.full(len(CLASSES), 1 - skill) / (len(CLASSES) - 1)
            share[true] = skill
            matrix[true] = rng.multinomial(count, rng.dirichlet(20 * share))
        matrices.append(matrix)
    return matrices


def draw_pixels(rng, num_images: int) -> list[np.ndarray]:
    """Return how many pixels (C,) each image has of each class: the background and one or two."""
    shown = []
    for _ in range(num_images):
        pixels = np.zeros(len(CLASSES), np.int64)
        pixels[0] = rng.integers(500, 2000)
        for c in rng.choice([1, 2, 3], size=rng.integers(1, 3), replace=False):
            pixels[c] = rng.integers(50, 1500)
        shown.append(pixels)
    return shown


def file_of(matrices: list[np.ndarray], ids: list[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a file of matches."""
    entries = [(i, t, p, m[t, p]) for i, m in enumerate(matrices) for t, p in np.argwhere(m)]
    columns = zip(("image", "true", "predicted", "pixels"), zip(*entries, strict=True), strict=True)
    arrays = {f"sem_seg/{name}": np.array(values) for name, values in columns}
    return {"image_ids": np.array(ids), "metric": np.array("semantic"), **arrays}


def plain_metrics(matrices: list[np.ndarray]) -> dict[str, float]:
    """Return the metrics of results.json, 0-100."""
    total = sum(matrices)
    ious, accuracies = {}, {}
    for c, name in enumerate(CLASSES):
        if total[c].sum():
            right = total[c, c]
            ious[name] = 100 * right / (total[c].sum() + total[:, c].sum() - right)
            accuracies[name] = 100 * right / total[c].sum()
    return {
        "mIoU": float(np.mean([*ious.values()])),
        "fwIoU": float(sum(ious[n] * total[CLASSES.index(n)].sum() for n in ious) / total.sum()),
        "mACC": float(np.mean([*accuracies.values()])),
        "pACC": float(100 * np.trace(total) / total.sum()),
        **{f"IoU-{name}": float(value) for name, value in ious.items()},
        **{f"ACC-{name}": float(value) for name, value in accuracies.items()},
    }


def results_of(matrices: list[np.ndarray]) -> dict:
    """Return what results.json has of a run, as changes of the tests' usual one."""
    total = sum(matrices)
    names = [(t, p, CLASSES[t], CLASSES[p]) for t, p in np.argwhere(total)]
    confusion: dict[str, dict[str, int]] = {}
    for t, p, true, predicted in names:
        confusion.setdefault(true, {})[predicted] = int(total[t, p])
    return {
        "task": TASK,
        "config": f"configs/segmentation/{TASK}.yaml",
        "metrics": {"sem_seg": plain_metrics(matrices)},
        "confusion": {TEST_SET: {"sem_seg": confusion}},
        "matches": {TEST_SET: FILE},
        "iterations": 30000,
        "dataset": {
            "train": ["voc_2012_sem_seg_trainaug"],
            "test": [TEST_SET],
            "classes": [*CLASSES],
        },
    }


def write_runs(make_run) -> dict[tuple[str, int], list[np.ndarray]]:
    """Write three seeds of random, supervised and moco; return their matrices by row and seed."""
    rng = np.random.default_rng(0)
    shown = draw_pixels(rng, 30)
    found = {}
    for init, skill in (("random", 0.5), ("supervised", 0.8), ("moco", 0.82)):
        for seed in range(3):
            matrices = draw_matrices(rng, shown, skill=skill)
            folder = make_run(f"{init}_{seed}", init, seed, **results_of(matrices))
            order = rng.permutation(30)  # two runs may have read the images in another order
            names = [f"2012_{number:06d}" for number in order]
            np.savez_compressed(folder / FILE, **file_of([matrices[n] for n in order], names))
            lines = ['{"iteration": 99, "total_loss": 2.5, "loss_sem_seg": 2.5}']
            lines += ['{"iteration": 9999, "total_loss": 1.5, "sem_seg/mIoU": 20.5}']
            (folder / "metrics.json").write_text("\n".join(lines) + "\n")
            found[init, seed] = matrices
    return found
