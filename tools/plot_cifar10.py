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

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # runs from a source tree without installation

from moco_transfer.runtime.metrics import read_metrics  # noqa: E402

# epoch: (mean loss, kNN top-1 %), asymmetric, 200 epochs, one V100: the outputs that the notebook
# shows (facebookresearch/moco branch colab-notebook @f736491, colab/moco_cifar10_demo.ipynb).
PUBLISHED = {
    **{
        1: (6.9569, 31.98),
        2: (7.2502, 33.52),
        3: (7.2901, 34.71),
        4: (7.0985, 36.98),
        5: (6.8622, 37.95),
        10: (5.9910, 48.03),
    },
    **{
        15: (5.0541, 54.84),
        20: (4.3413, 61.38),
        25: (3.9131, 65.55),
        30: (3.6916, 67.05),
        40: (3.3835, 71.32),
        50: (3.1945, 73.30),
    },
    **{
        60: (3.0637, 75.00),
        80: (2.8952, 77.09),
        100: (2.7264, 78.06),
        120: (2.5987, 79.62),
        140: (2.4661, 81.27),
    },
    **{160: (2.3764, 81.79), 180: (2.2911, 82.59), 200: (2.2716, 82.58)},
}


def run_by_epoch(folder: Path) -> dict[int, dict[str, float]]:
    """Return epoch, 1-based -> its mean loss (one log line an epoch, as the config has it) and kNN
    accuracy.
    """
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(folder / "metrics.json"):
        found.setdefault(row["epoch"] + 1, {}).update(
            {name: row[name] for name in ("loss", "knn_top1") if row.get(name) is not None}
        )
    return found


def draw(runs: dict[int, dict[int, dict[str, float]]], path: Path) -> None:
    """Write the curves of runs by seed as an image, over their epochs and the published ones just
    beyond.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [epoch for epoch in PUBLISHED if epoch <= max(5, *(max(run) for run in runs.values()))]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for axis, place, name, title in (
        (axes[0], 0, "loss", "loss, mean of the epoch"),
        (axes[1], 1, "knn_top1", "kNN top-1, %"),
    ):
        axis.plot(
            shown,
            [PUBLISHED[epoch][place] for epoch in shown],
            "o-",
            color="0.6",
            label="published log (V100)",
        )
        for (seed, run), marker in zip(runs.items(), itertools.cycle("s^Dvx*")):
            epochs = [epoch for epoch in sorted(run) if name in run[epoch]]
            axis.plot(
                epochs,
                [run[epoch][name] for epoch in epochs],
                f"{marker}-",
                label=f"moco-transfer, SEED {seed}",
            )
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1].legend(loc="lower right")  # where neither kNN accuracy runs
    figure.savefig(path, dpi=110)


def main() -> int:
    """Print the table and draw; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="run",
        help="OUTPUT_DIR of a cifar10_asym_200ep run; several of different SEED",
    )
    parser.add_argument("image", type=Path, help="PNG or SVG to write")
    args = parser.parse_args()
    runs = {
        yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["SEED"]: run_by_epoch(run)
        for run in args.runs
    }
    print(
        "| seed | epoch | loss | published | kNN | published |\n| --- | --- | --- | --- | --- |"
        " --- |"
    )
    for seed, run in runs.items():
        for epoch, row in sorted(run.items()):
            loss, knn = PUBLISHED.get(epoch, (float("nan"),) * 2)
            print(
                f"| {seed} | {epoch} | {row.get('loss', float('nan')):.3f} | {loss:.3f} |"
                f" {row.get('knn_top1', float('nan')):.2f} | {knn:.2f} |"
            )
    draw(runs, args.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
