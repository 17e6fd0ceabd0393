#!/usr/bin/env python
"""Compare features learned with DATA.PIPELINE fast and reference.

    python tools/bench_quality.py --data CIFAR10 --output DIR

CIFAR10 is a folder with train/<class>/*.jpg and test/<class>/*.jpg. The first 1,000 training images
of each class (10,000 in all) are pre-trained on: ResNet-18 at 32 px, batch 128, K = 2,048, v2's
augmentation (with blur, so that every operator takes part), for --epochs, with --seeds seeds and
both pipelines. Then kNN (k = 200) and the linear protocol on cached features test them on the whole
test set. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moco_transfer.cli.main import main as moco_transfer  # noqa: E402

SETTINGS = """MODEL: {ARCH: resnet18}
DATA:
  IMAGE_SIZE: 32
  TEST_RESIZE: 32
  AUGMENTATION: v2
  BATCH_SIZE_TOTAL: 128
  NUM_WORKERS: 1
MOCO: {QUEUE_SIZE: 2048, MOMENTUM: 0.99, TEMPERATURE: 0.1, MLP: True}
SOLVER: {BASE_LR: 0.06, SCHEDULE: cosine, WEIGHT_DECAY: 0.0005}
KNN: {PERIOD_EPOCHS: 100}
LOGGERS: []
TRAIN: {PRECISION: bf16, LOG_PERIOD: 78}
"""


def link_first(source: Path, target: Path, count: int) -> Path:
    """Make a folder tree of links to the first images of each class."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[:count]:
            link = target / folder.name / file.name
            if not link.is_symlink():
                link.symlink_to(file.resolve())
    return target


def top1_of(metrics: Path) -> float:
    """Return the last kNN top-1 of a run, per cent."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row["knn_top1"] for row in rows if "knn_top1" in row][-1]


def measure(
    pipeline: str, seed: int, args: argparse.Namespace, train: Path, test: Path
) -> tuple[float, float]:
    """Pre-train, then return kNN and linear top-1, per cent."""
    run, config = args.output / f"{pipeline}_{seed}", args.output / "config.yaml"
    words = [
        "DATA.ROOT",
        train,
        "KNN.TEST",
        test,
        "DATA.PIPELINE",
        pipeline,
        "SEED",
        seed,
        "SOLVER.EPOCHS",
        args.epochs,
        "OUTPUT_DIR",
        run,
    ]
    pretrain = ["pretrain", "--config-file", str(config), *map(str, words)]
    linear = [
        "--train",
        str(train),
        "--test",
        str(test),
        "--output",
        str(run / "linear"),
        "--cache-features",
        "--epochs",
        "30",
    ]
    if moco_transfer(pretrain) or moco_transfer(
        ["linear", str(run / f"checkpoint_{args.epochs:04d}.pth"), *linear]
    ):
        sys.exit(f"{pipeline}, seed {seed}: a step failed")
    return (
        top1_of(run / "metrics.json"),
        json.loads((run / "linear" / "results.json").read_text(encoding="utf-8"))["top1"],
    )


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="CIFAR10", help="folder with train/ and test/"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet"
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="epochs of pre-training (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each pipeline (default: %(default)s)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, help="seed of the first run (default: %(default)s)"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    (args.output / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    train = link_first(args.data / "train", args.output / "train", 1000)
    found: dict[str, list[tuple[float, float]]] = {"reference": [], "fast": []}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for pipeline, rows in found.items():
            rows.append(measure(pipeline, seed, args, train, args.data / "test"))
    row = {}
    for i, name in enumerate(("knn", "linear")):
        for pipeline, rows in found.items():
            values = [r[i] for r in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(
                f"{name:7} {pipeline:10} {statistics.mean(values):6.2f} % +- {spread:.2f} "
                f" ({', '.join(f'{v:.2f}' for v in values)})"
            )
            row |= {f"{name}_{pipeline}": [round(v, 2) for v in values]}
    print(json.dumps(row | {"epochs": args.epochs}))


if __name__ == "__main__":
    main()
