"""The whole pipeline on generated images: pre-train, convert, fine-tune, table; minutes on a CPU.

Draws a pool of object images and a detection set of scenes. Pre-trains a ResNet-18 with MoCo
(without labels) and another one supervised (with the pool's labels), and converts both. Fine-tunes
the same detector from random, supervised and MoCo weights with several seeds, and prints the
transfer table. Each step prints what it does, the command that does it by hand, and what it wrote.
A second call with the same --output continues where the first stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from . import options

POOL_IMAGES, POOL_SIZE = 4000, 72
SCENES, SCENE_SIZE = {"train": 100, "test": 200}, 160
IMAGE_SEED = 0

_Step = tuple[str, list[str], Path | None]  # title, words, result (None: always run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    add = parser.add_argument
    add("--output", default="demo_output", metavar="DIR")
    add("--seeds", type=options.count, default=3, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status of the step that failed, or 0."""
    from .main import main

    started = time.time()
    _draw_images(Path(args.output))
    for title, words, result in _steps(Path(args.output), args.seeds):
        print(f"\n=== {title}\n    by hand: moco-transfer {shlex.join(words)}", flush=True)
        if result is not None and result.exists():
            print(f"    {result} exists already.", flush=True)
            continue
        resume = ["--resume"] if words[0] == "pretrain" else []  # has no effect on a new run
        if status := main([words[0], *resume, *words[1:]]):
            return status
    print(
        f"The demo took {(time.time() - started) / 60:.1f} minutes. It shows that the pipeline"
        f" works and which way the numbers\npoint on generated images with {args.seeds} seeds, not"
        " what they are on real ones. For those see 'own data' in the docs."
    )
    return 0


def _draw_images(out: Path) -> None:
    from ..data.scenes import CLASSES, write_pool, write_voc_scenes

    pool, scenes = out / "pool", out / "scenes"
    print(
        f"\n=== [1/5] draw {POOL_IMAGES} images of one object (the pool) and"
        f" {sum(SCENES.values())} scenes of 1 to 6 objects\n    {len(CLASSES)} classes that differ"
        f" in shape and texture, not in colour: {', '.join(CLASSES)}",
        flush=True,
    )
    if (scenes / "classes.txt").exists():  # the last file that is written
        print(f"    {pool} and {scenes} exist already.")
        return
    write_pool(pool, count=POOL_IMAGES, size=POOL_SIZE, seed=IMAGE_SEED)
    objects = write_voc_scenes(scenes, splits=SCENES, size=SCENE_SIZE, seed=IMAGE_SEED)
    counts = ", ".join(f"{SCENES[name]} {name} scenes, {n} objects" for name, n in objects.items())
    print(f"    wrote {pool} and {scenes} ({counts})", flush=True)


def _steps(out: Path, seeds: int) -> Iterator[_Step]:
    from ..config import load_pretrain_config

    titles = {
        "moco": "[2/5] pre-train a ResNet-18 with MoCo on the pool, without labels",
        "supervised": "[3/5] pre-train the same ResNet-18 with the pool's labels",
    }
    checkpoints = {}
    for name, title in titles.items():
        epochs = load_pretrain_config(f"demo_{name}").SOLVER.EPOCHS
        checkpoints[name] = out / name / f"checkpoint_{epochs:04d}.pth"
        words = ["pretrain", "--config-file", f"demo_{name}", "DATA.ROOT", str(out / "pool")]
        yield title, [*words, "OUTPUT_DIR", str(out / name)], checkpoints[name]
    for name, checkpoint in checkpoints.items():
        title = f"[4/5] convert the {name} checkpoint to a detector's backbone"
        target = out / name / "backbone.pkl"
        yield title, ["convert", str(checkpoint), str(target)], target
    # One engine on every machine, so that the table is that of the documentation.
    words = ["benchmark", "--output", str(out / "runs"), "--engine", "torchvision"]
    words += ["--tasks", "demo_R_18_FPN", "--seeds", str(seeds), "--init", "random"]
    for name in ("supervised", "moco"):
        words += ["--init", f"{name}={out / name / 'backbone.pkl'}"]
    for split in SCENES:
        scenes = out / "scenes"
        words += ["--dataset", f"demo_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}"]
    # A small detector uses a second core badly, a second run uses it well.
    words += ["--jobs", str(min(2, os.cpu_count() or 1))]
    title = f"[5/5] fine-tune the same detector from three initialisations, {seeds} seeds each"
    yield title, words, None
