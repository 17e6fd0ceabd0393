"""Measure the memory of data workers over 20 epochs, by the number of images.

    python tools/bench_worker_memory.py [--images 1300000]

A worker that loads from a list of many names must not copy it page by page, and must not grow. This
makes a source of so many generated names (each of one of 64 generated JPEGs of 96 px) and one of a
thousand. The project's loader makes batches of both for 20 epochs of --epoch images each. Printed
at the end of each epoch is what the workers have, in MB: USS, pages that no other process shares,
and PSS, in which a shared page counts for its share (/proc/PID/smaps_rollup; Linux alone). The last
line is JSON. Ends with status 1 if a worker has 20 MB or more of its own for the additional names,
or grows by 5 MB or more from the fifth epoch to the last.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moco_transfer.data.images.folder import ImageFolder  # noqa: E402
from moco_transfer.data.images.image_source import name_table  # noqa: E402
from moco_transfer.data.views.loading import Loader, plan_batches  # noqa: E402
from moco_transfer.data.views.view_batch import ViewMaker  # noqa: E402

_MORE_MB, _GROWTH_MB = 20, 5
_FILES = 64


def memory_of(pid: int) -> tuple[float, float]:
    """Return a process's USS and PSS, MB."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    size = {row.split()[0].rstrip(":"): int(row.split()[1]) / 1024 for row in rows}
    return size["Private_Clean"] + size["Private_Dirty"], size["Pss"]


def names(count: int) -> Iterator[str]:
    """Yield names as long as ImageNet's, of the files that are there."""
    for i in range(count):
        yield f"n{i // 1300:08d}/../n{i // 1300:08d}/../{i % _FILES:02d}.jpg"


def write_files(folder: Path) -> None:
    """Write generated JPEGs of 96 px, as large as smooth images are."""
    rng = np.random.default_rng(0)
    for i in range(_FILES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
            (96, 96), Image.BICUBIC
        ).save(buffer, "JPEG", quality=90)
        (folder / f"{i:02d}.jpg").write_bytes(buffer.getvalue())


def measure(folder: Path, count: int, args: argparse.Namespace) -> list[list[tuple[float, float]]]:
    """Return each worker's USS and PSS at the end of each epoch, MB."""
    for i in range((count + 1299) // 1300):
        (folder / f"n{i:08d}").mkdir(exist_ok=True)
    source = ImageFolder(
        folder,
        name_table(names(count)),
        labels=np.arange(count, dtype=np.int64) % 1000,
        class_names=tuple(map(str, range(1000))),
    )
    batch, per_epoch = 64, args.epoch // 64
    settings = {
        "batch_size_total": batch,
        "epochs": 10**6,
        "seed": 0,
        "num_workers": args.workers,
        "shuffle_buffer": 1,
        "start_iteration": 0,
    }
    make_views = ViewMaker("v2", 64, (0.2, 1.0), 2, args.pipeline)
    loader = Loader(
        source,
        plan_batches(source, **settings),
        make_views,
        num_workers=args.workers,
        pin_memory=False,
    )
    batches = iter(loader)
    found = []
    for epoch in range(args.epochs):
        for _ in range(per_epoch):
            next(batches)
        found.append([memory_of(worker.pid) for worker in multiprocessing.active_children()])
        uss, pss = (", ".join(f"{worker[i]:6.1f}" for worker in found[-1]) for i in range(2))
        print(f"{count:9} names, epoch {epoch + 1:2}: USS {uss}   PSS {pss}", flush=True)
    batches.close()
    return found


def main() -> int:
    """Measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=1_300_000, help="number of names (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="data workers (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="epochs (default: %(default)s)")
    parser.add_argument(
        "--epoch", type=int, default=2048, help="images in an epoch, a multiple of 64"
    )
    parser.add_argument(
        "--context",
        default="fork",
        choices=["fork", "forkserver", "spawn"],
        help="how workers are started",
    )
    parser.add_argument(
        "--pipeline",
        default="fast",
        choices=["fast", "reference"],
        help="DATA.PIPELINE (default: %(default)s)",
    )
    args = parser.parse_args()
    torch.multiprocessing.set_start_method(args.context)
    torch.set_num_threads(1)
    row: dict[str, object] = {"context": args.context, "epochs": args.epochs, "images": args.images}
    last, growth = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for count in (1000, args.images):
            uss = [max(own for own, _ in workers) for workers in measure(Path(folder), count, args)]
            tail = max(1, args.epochs // 5)
            last[count] = mean(uss[-tail:])
            grown = last[count] - mean(uss[min(4, args.epochs - 1) : 4 + tail] or uss[-1:])
            growth = max(growth, grown)
            row |= {
                f"uss_mb_{count}": [round(value, 1) for value in uss],
                f"growth_mb_{count}": round(grown, 1),
            }
    more = last[args.images] - last[1000]
    print(f"{more:.1f} MB more for {args.images} images (limit {_MORE_MB})")
    print(f"{growth:.1f} MB more at the end than in the fifth epoch (limit {_GROWTH_MB})")
    print(json.dumps(row | {"more_mb": round(more, 1), "growth_mb": round(growth, 1)}))
    return int(more >= _MORE_MB or growth >= _GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
