#!/usr/bin/env python
"""Draw loss and kNN accuracy of CIFAR-10 runs with the official demo's published log.

    python tools/plot_cifar10.py out/cifar10_seed0 out/cifar10_seed1 docs/figures/cifar10_asym.png

Prints the same numbers as a table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # without installation

from moco_transfer.runtime.metrics import read_metrics  # noqa: E402

# epoch: (mean loss, kNN top-1 %), asymmetric, 200 epochs, one V100: the outputs that the notebook
# shows (facebookresearch/moco branch colab-notebook @f736491, colab/moco_cifar10_demo.ipynb).
_EPOCHS = (1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 140, 160, 180, 200)
_LOSS = """6.9569 7.2502 7.2901 7.0985 6.8622 5.9910 5.0541 4.3413 3.9131 3.6916
    3.3835 3.1945 3.0637 2.8952 2.7264 2.5987 2.4661 2.3764 2.2911 2.2716"""
_KNN = """31.98 33.52 34.71 36.98 37.95 48.03 54.84 61.38 65.55 67.05
    71.32 73.30 75.00 77.09 78.06 79.62 81.27 81.79 82.59 82.58"""
_ROWS = zip(map(float, _LOSS.split()), map(float, _KNN.split()), strict=True)
PUBLISHED = dict(zip(_EPOCHS, _ROWS, strict=True))


def run_by_epoch(folder: Path) -> dict[int, dict[str, float]]:
    """Return epoch, 1-based -> its mean loss (one log line an epoch) and kNN accuracy."""
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(folder / "metrics.json"):
        kept = {name: row[name] for name in ("loss", "knn_top1") if row.get(name) is not None}
        found.setdefault(row["epoch"] + 1, {}).update(kept)
    return found


def draw(runs: dict[int, dict[int, dict[str, float]]], path: Path) -> None:
    """Draw the curves of runs by seed, over their epochs and the next published ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [epoch for epoch in PUBLISHED if epoch <= max(5, *(max(run) for run in runs.values()))]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    titles = {"loss": "loss, mean of the epoch", "knn_top1": "kNN top-1, %"}
    for place, (axis, (name, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        published = [PUBLISHED[epoch][place] for epoch in shown]
        axis.plot(shown, published, "o-", color="0.6", label="published log (V100)")
        for (seed, run), marker in zip(runs.items(), itertools.cycle("s^Dvx*")):
            epochs = [epoch for epoch in sorted(run) if name in run[epoch]]
            values = [run[epoch][name] for epoch in epochs]
            axis.plot(epochs, values, f"{marker}-", label=f"moco-transfer, SEED {seed}")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1].legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="OUTPUT_DIRs of cifar10_asym_200ep runs")
    parser.add_argument("image", type=Path, help="PNG or SVG to write")
    args = parser.parse_args()
    configs = {folder: (folder / "config.yaml").read_text(encoding="utf-8") for folder in args.runs}
    runs = {yaml.safe_load(text)["SEED"]: run_by_epoch(path) for path, text in configs.items()}
    print("| seed | epoch | loss | published | kNN | published |", "| --- " * 6 + "|", sep="\n")
    nan = float("nan")
    for seed, run in runs.items():
        for epoch, row in sorted(run.items()):
            loss, knn = PUBLISHED.get(epoch, (nan, nan))
            measured = row.get("loss", nan), row.get("knn_top1", nan)
            cells = f"{measured[0]:.3f} | {loss:.3f} | {measured[1]:.2f} | {knn:.2f}"
            print(f"| {seed} | {epoch} | {cells} |")
    draw(runs, args.image)


if __name__ == "__main__":
    main()
