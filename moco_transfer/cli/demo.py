"""The whole road on generated images, on a CPU, in minutes: pre-train, convert, fine-tune, table.

Draws a pool of object images and a detection set of scenes, pre-trains a ResNet-18 with MoCo
(without labels) and another one supervised (with the pool's labels), converts both, fine-tunes the
same detector from random, supervised and MoCo weights with several seeds, and prints the transfer
table. Each step says what it does, what it wrote, and the command that does it by hand. A second
call with the same --output goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

EPILOG = """example:
  moco-transfer demo --output demo_output            (what `make demo` runs)
"""

POOL_PICTURES, POOL_SIZE = 4000, 72
SCENES, SCENE_SIZE = {"train": 100, "test": 200}, 160
PICTURE_SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument(
        "--output",
        default="demo_output",
        metavar="DIR",
        help="folder for everything (default: demo_output)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="fine-tuning runs per initialisation (default: 3)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status of the step that failed, or 0."""
    from ..runtime.errors import InputError

    if args.seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {args.seeds}.")
    out = Path(args.output)
    started = time.time()
    _draw_images(out)
    for step in _preparation(out):
        status = step.run()
        if status:
            return status
    status = _fine_tune(out, args.seeds)
    if status == 0:
        print(
            f"The demo took {(time.time() - started) / 60:.1f} minutes. It shows that the road"
            f" works and which way the numbers point on generated\nimages with {args.seeds}"
            " seeds; it says nothing about real ones. For those, see 'Your own images' in"
            " README.md."
        )
    return status


class _Step:
    """One command of the road, skipped where its result is there already."""

    def __init__(
        self,
        number: str,
        title: str,
        verb: str,
        words: Sequence[str],
        result: Path,
        *,
        resumable: bool = False,
    ) -> None:
        self.number, self.title, self.verb, self.words, self.result = (
            number,
            title,
            verb,
            list(words),
            result,
        )
        self.resumable = resumable

    def announce(self) -> bool:
        """Say what the step does and by which command; return whether it is still to be done."""
        _say(f"[{self.number}] {self.title}")
        print(f"    by hand: moco-transfer {self.verb} {shlex.join(self.words)}", flush=True)
        if self.result.exists():
            print(f"    {self.result} is there already; going on.", flush=True)
        return not self.result.exists()

    def arguments(self) -> list[str]:
        """Return the words after the verb; a step that was interrupted goes on."""
        words = [*self.words]
        if self.resumable:  # options stand before the KEY VALUE pairs
            words[2:2] = ["--resume"]
        return words

    def run(self) -> int:
        """Run the command in this process and return its exit status."""
        from .main import main

        if not self.announce():
            return 0
        started = time.time()
        status = main([self.verb, *self.arguments()])
        if status == 0:
            print(f"    wrote {self.result} in {time.time() - started:.0f} s", flush=True)
        return status


def _preparation(out: Path) -> list[_Step]:
    from ..config import load_pretrain_config

    titles = {
        "moco": "pre-train a ResNet-18 with MoCo on the pool, without labels",
        "supervised": "pre-train the same ResNet-18 with the pool's labels",
    }
    steps, conversions = [], []
    for i, (mechanism, title) in enumerate(titles.items()):
        epochs = load_pretrain_config(f"demo_{mechanism}").SOLVER.EPOCHS
        last, target = (
            out / mechanism / f"checkpoint_{epochs:04d}.pth",
            out / mechanism / "backbone.pkl",
        )
        words = [
            "--config-file",
            f"demo_{mechanism}",
            "DATA.ROOT",
            str(out / "pool"),
            "OUTPUT_DIR",
            str(out / mechanism),
        ]
        steps.append(_Step(f"{i + 2}/5", title, "pretrain", words, last, resumable=True))
        conversions.append(
            _Step(
                "4/5",
                f"convert the {mechanism} checkpoint to a detector's backbone",
                "convert",
                [str(last), str(target)],
                target,
            )
        )
    return steps + conversions


def _fine_tune(out: Path, seeds: int) -> int:
    """Fine-tune from all initialisations and print the table; a small detector uses a second core
    badly, a second detector uses it well.
    """
    from .main import main

    # One engine on every machine, so that the demo's table is the README's also where Detectron2 is
    # installed.
    words = [
        "--output",
        str(out / "runs"),
        "--engine",
        "torchvision",
        "--tasks",
        "demo_R_18_FPN",
        "--seeds",
        str(seeds),
        "--init",
        "random",
    ]
    words += [
        word
        for init in ("supervised", "moco")
        for word in ("--init", f"{init}={out / init / 'backbone.pkl'}")
    ]
    words += [*_dataset_words(out), "--jobs", str(min(2, os.cpu_count() or 1)), "--no-timing"]
    _say(
        f"[5/5] fine-tune the same detector from random, supervised and MoCo weights, {seeds} seeds"
        " each, and make the table"
    )
    print(f"    by hand: moco-transfer benchmark {shlex.join(words)}\n", flush=True)
    return main(["benchmark", *words])


def _dataset_words(out: Path) -> list[str]:
    scenes = out / "scenes"
    return [
        word
        for split in SCENES
        for word in ("--dataset", f"demo_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}")
    ]


def _draw_images(out: Path) -> None:
    from ..data.scenes import CLASSES, write_pool, write_voc_scenes

    _say(
        f"[1/5] draw {POOL_PICTURES} images of one object (the pool) and {sum(SCENES.values())}"
        " scenes of 1 to 6 objects"
    )
    print(
        f"    {len(CLASSES)} classes, told apart by shape and texture, not by colour:"
        f" {', '.join(CLASSES)}"
    )
    finished = out / "scenes" / "classes.txt"  # the last file that is written
    if finished.exists():
        print(f"    {out / 'pool'} and {out / 'scenes'} are there already; going on.")
        return
    started = time.time()
    write_pool(out / "pool", count=POOL_PICTURES, size=POOL_SIZE, seed=PICTURE_SEED)
    objects = write_voc_scenes(out / "scenes", splits=SCENES, size=SCENE_SIZE, seed=PICTURE_SEED)
    counts = ", ".join(
        f"{SCENES[split]} {split} scenes with {count} objects" for split, count in objects.items()
    )
    print(
        f"    wrote {out / 'pool'} and {out / 'scenes'} ({counts}) in"
        f" {time.time() - started:.0f} s",
        flush=True,
    )


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)
