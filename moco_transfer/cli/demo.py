"""The whole road on generated pictures, on a CPU, in minutes: pre-train, convert, fine-tune, table.

Draws a pool of object pictures and a detection set of scenes, pre-trains a ResNet-18 with MoCo (without labels) and another one
supervised (with the pool's labels), converts both, fine-tunes the same detector from random, supervised and MoCo weights with
several seeds, and prints the transfer table. Each step says what it does, what it wrote, and the command that does it by hand.
A second call with the same --output goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EPILOG = """example:
  moco-transfer demo --output demo_output            (what `make demo` runs)
"""

POOL_PICTURES, POOL_SIZE = 4000, 72
SCENES, SCENE_SIZE = {"train": 100, "test": 200}, 160
PICTURE_SEED = 0
SHEET_PICTURES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument("--output", default="demo_output", metavar="DIR", help="folder for everything (default: demo_output)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="fine-tuning runs per initialisation (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status of the step that failed, or 0."""
    from ..runtime.errors import InputError

    if args.seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {args.seeds}.")
    out = Path(args.output)
    started = time.time()
    _draw_pictures(out)
    for step in _preparation(out):
        status = step.run()
        if status:
            return status
    status = _run_side_by_side(_fine_tuning(out, args.seeds))
    if status:
        return status
    _finish(out, args.seeds, time.time() - started)
    return 0


class _Step:
    """One command of the road, skipped where its result is there already."""

    def __init__(self, number: str, title: str, verb: str, words: Sequence[str], result: Path, *, resumable: bool = False) -> None:
        self.number, self.title, self.verb, self.words, self.result = number, title, verb, list(words), result
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
        from .main import run_verb

        if not self.announce():
            return 0
        started = time.time()
        status = run_verb(self.verb, self.arguments(), program=f"moco-transfer {self.verb}")
        if status == 0:
            print(f"    wrote {self.result} in {time.time() - started:.0f} s", flush=True)
        return status


def _run_side_by_side(steps: Sequence[_Step]) -> int:
    """Run fine-tuning steps in processes of their own, two at a time where there are two cores, one core each.

    A small detector uses a second core badly; a second detector uses it well.
    """
    waiting = [step for step in steps if step.announce()]
    lanes = min(2, os.cpu_count() or 1)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // lanes))}
    running: list[tuple[_Step, subprocess.Popen, float]] = []
    if waiting:
        print(f"\n    running them, {lanes} at a time; each writes its log.txt while it runs", flush=True)
    try:
        while waiting or running:
            while waiting and len(running) < lanes:
                step = waiting.pop(0)
                command = [sys.executable, "-m", "moco_transfer.cli.main", step.verb, *step.arguments()]
                process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
                running.append((step, process, time.time()))
            time.sleep(0.2)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                step, process, started = entry
                if process.returncode:
                    return process.returncode
                print(f"    wrote {step.result} in {time.time() - started:.0f} s ({step.title})", flush=True)
    finally:
        for _, process, _ in running:  # an error or Ctrl-C ends the others too; they go on with the next call
            process.terminate()
            process.wait()
    return 0


def _preparation(out: Path) -> list[_Step]:
    from ..config import load_pretrain_config

    titles = {
        "moco": "pre-train a ResNet-18 with MoCo on the pool, without labels",
        "supervised": "pre-train the same ResNet-18 with the pool's labels",
    }
    steps, conversions = [], []
    for i, (mechanism, title) in enumerate(titles.items()):
        epochs = load_pretrain_config(f"demo_{mechanism}").SOLVER.EPOCHS
        last, target = out / mechanism / f"checkpoint_{epochs:04d}.pth", out / mechanism / "backbone.pkl"
        words = ["--config-file", f"demo_{mechanism}", "DATA.ROOT", str(out / "pool"), "OUTPUT_DIR", str(out / mechanism)]
        steps.append(_Step(f"{i + 2}/7", title, "pretrain", words, last, resumable=True))
        conversions.append(_Step("4/7", f"convert the {mechanism} checkpoint to a detector's backbone", "convert", [str(last), str(target)], target))
    return steps + conversions


def _fine_tuning(out: Path, seeds: int) -> list[_Step]:
    steps = []
    for seed in range(seeds):
        for init in ("random", "supervised", "moco"):
            folder = out / "runs" / f"{init}_seed{seed}"
            weights = "" if init == "random" else str(out / init / "backbone.pkl")
            # One engine on every machine, so that the demo's table is the README's also where Detectron2 is installed.
            words = ["--engine", "torchvision", "--config-file", "demo_R_18_FPN", *_dataset_words(out)]
            words += ["MODEL.WEIGHTS", weights, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
            title = f"fine-tune the detector from {init} weights, seed {seed}"
            steps.append(_Step("5/7", title, "train", words, folder / "results.json", resumable=True))
    return steps


def _dataset_words(out: Path) -> list[str]:
    scenes = out / "scenes"
    return [word for split in SCENES for word in ("--dataset", f"demo_{split}=voc:{scenes}:{split}:{scenes / 'classes.txt'}")]


def _draw_pictures(out: Path) -> None:
    from ..data.scenes import CLASSES, write_pool, write_voc_scenes

    _say(f"[1/7] draw {POOL_PICTURES} pictures of one object (the pool) and {sum(SCENES.values())} scenes of 1 to 6 objects")
    print(f"    {len(CLASSES)} classes, told apart by shape and texture, not by colour: {', '.join(CLASSES)}")
    finished = out / "scenes" / "classes.txt"  # the last file that is written
    if finished.exists():
        print(f"    {out / 'pool'} and {out / 'scenes'} are there already; going on.")
        return
    started = time.time()
    write_pool(out / "pool", count=POOL_PICTURES, size=POOL_SIZE, seed=PICTURE_SEED)
    objects = write_voc_scenes(out / "scenes", splits=SCENES, size=SCENE_SIZE, seed=PICTURE_SEED)
    counts = ", ".join(f"{SCENES[split]} {split} scenes with {count} objects" for split, count in objects.items())
    print(f"    wrote {out / 'pool'} and {out / 'scenes'} ({counts}) in {time.time() - started:.0f} s", flush=True)


def _finish(out: Path, seeds: int, seconds: float) -> None:
    from ..data.catalog import get_dataset, parse_dataset_flag
    from ..evaluate.detection_sheet import draw_detection_sheet
    from ..evaluate.predictions import load_predictions
    from .main import run_verb

    _say("[6/7] detections beside the ground truth")
    for flag in _dataset_words(out)[1::2]:
        parse_dataset_flag(flag)
    dataset = get_dataset("demo_test")
    columns = {init: load_predictions(out / "runs" / f"{init}_seed0" / "predictions_demo_test.json") for init in ("random", "supervised", "moco")}
    # The first pictures of the set, not the best ones.
    ids = [record["image_id"] for record in dataset.records[:SHEET_PICTURES]]
    sheet = draw_detection_sheet(out / "detections.png", dataset, columns, image_ids=ids)
    print(f"    wrote {sheet} (the first {SHEET_PICTURES} test scenes, seed 0)")

    _say("[7/7] the transfer table")
    table = out / "table.md"
    words = [str(out / "runs"), "--output", str(table)]
    print(f"    by hand: moco-transfer report {shlex.join(words[:1])}\n")
    run_verb("report", words, program="moco-transfer report")
    print(table.read_text(encoding="utf-8"))
    print(
        f"wrote {table}. The demo took {seconds / 60:.1f} minutes. It shows that the road works and which way the numbers point on generated\n"
        f"pictures with {seeds} seeds; it says nothing about real ones. For those, see 'Your own pictures' in README.md."
    )


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)
