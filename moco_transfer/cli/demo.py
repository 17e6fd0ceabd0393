"""The whole pipeline on real images, in minutes on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

INITS = ("random", "supervised", "moco")
# How long each step takes, in training steps of ResNet-18 on 64 images of 64 px on all cores: on
# two cores of a server CPU, where such a step takes 0.35 s.
_COSTS = {"pretrain moco": 320, "pretrain supervised": 125, "knn": 20, "fine-tuning run": 68}


class _Step(NamedTuple):
    title: str
    words: list[str]
    result: Path  # what exists when the step is done
    cost: int = 0  # in units of _COSTS


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status of the step that failed, or 0."""
    from .main import main

    started, out = time.time(), Path(args.output)
    _cut_tiles(out, args.wheel)
    steps = list(_steps(out, args.seeds))
    _print_estimate(steps)
    for title, words, result, _ in steps:
        print(f"\n=== {title}\n    by hand: moco-transfer {shlex.join(words)}", flush=True)
        if result.exists() and words[0] != "benchmark":  # which prints the table again
            print(f"    {result} exists already.", flush=True)
            continue
        resume = ["--resume"] if words[0] == "pretrain" else []  # has no effect on a new run
        if status := main([words[0], *resume, *words[1:]]):
            return status
    _print_knn(out)
    minutes = (time.time() - started) / 60
    print(
        f"\nThis took {minutes:.1f} minutes. The table is also in {out / 'runs' / 'report.html'}."
    )
    return 0


def _cut_tiles(out: Path, wheel: str) -> None:
    from ..data import aerial_tiles as tiles

    print(f"=== [1/6] cut aerial photographs of trees into tiles\n    {tiles.CREDIT}", flush=True)
    if (out / "images").exists():
        print(f"    {out / 'images'} exists already.", flush=True)
        return
    out.mkdir(parents=True, exist_ok=True)
    found = tiles.find_wheel(wheel, out)
    counts = tiles.write_tiles(found, out / "images")
    print(
        "    pool: {pool} tiles without labels\n"
        "    labelled: {labelled_train} training and {labelled_test} test tiles, tree or ground\n"
        "    detection: {detection_train} training tiles with {trees_train} trees,"
        " {detection_test} test tiles with {trees_test}\n"
        "    Test tiles are of one photograph, which is in no other tiles.".format(**counts),
        flush=True,
    )


def _steps(out: Path, seeds: int) -> Iterator[_Step]:
    from ..config import load_pretrain_config

    images, checkpoints = out / "images", {"random": _random_encoder(out / "random.pth")}
    for number, name, root, how in (
        (2, "moco", "pool", "a ResNet-18 with MoCo, without labels"),
        (3, "supervised", "labelled/train", "the same ResNet-18 with labels: tree or ground"),
    ):
        epochs = load_pretrain_config(f"demo_{name}").SOLVER.EPOCHS
        checkpoints[name] = out / name / f"checkpoint_{epochs:04d}.pth"
        words = ["pretrain", "--config-file", f"demo_{name}", "DATA.ROOT", str(images / root)]
        words += ["OUTPUT_DIR", str(out / name)]
        cost = _COSTS[f"pretrain {name}"]
        yield _Step(f"[{number}/6] pre-train {how}", words, checkpoints[name], cost)
    for name in INITS[1:]:
        title = f"[4/6] convert the {name} checkpoint to a detector's backbone"
        target = out / name / "backbone.pkl"
        yield _Step(title, ["convert", str(checkpoints[name]), str(target)], target)
    for name in INITS:
        words = ["knn", str(checkpoints[name]), "--output", str(out / "knn" / name), "--k", "50"]
        for split in ("train", "test"):
            words += [f"--{split}", str(images / "labelled" / split)]
        words += ["--features", "trunk", "--image-size", "64", "--workers", "0"]
        title = f"[5/6] classify the test photograph's tiles by their neighbours, {name} features"
        yield _Step(title, words, out / "knn" / name / "results.json", _COSTS["knn"])
    # One engine on every machine, so that the table is that of the documentation.
    words = ["benchmark", "--output", str(out / "runs"), "--engine", "torchvision"]
    words += ["--tasks", "demo_R_18_FPN", "--seeds", str(seeds), "--init", "random"]
    for name in INITS[1:]:
        words += ["--init", f"{name}={out / name / 'backbone.pkl'}"]
    data = images / "detection"
    for split in ("train", "test"):
        words += ["--dataset", f"demo_{split}=voc:{data}:{split}:{data / 'classes.txt'}"]
    # A small detector uses a second core badly, a second run uses it well.
    words += ["--jobs", str(min(2, os.cpu_count() or 1))]
    title = f"[6/6] fine-tune the same detector from three initialisations, {seeds} seeds each"
    missing = len(INITS) * seeds - len(list((out / "runs").rglob("results.json")))
    cost = max(0, missing) * _COSTS["fine-tuning run"]
    yield _Step(title, words, out / "runs" / "table.md", cost)


def _random_encoder(file: Path) -> Path:
    """Write an untrained ResNet-18, whose features show what pre-training adds."""
    import torch

    from ..models import build_encoder
    from ..runtime.files import atomic_path

    if not file.exists():
        with torch.random.fork_rng(), atomic_path(file) as target:
            torch.manual_seed(0)
            torch.save(build_encoder("resnet18", num_classes=128).state_dict(), target)
    return file


def _print_estimate(steps: list[_Step]) -> None:
    units = sum(step.cost for step in steps if step.cost and not step.result.exists())
    if units:
        seconds = _seconds_of_a_training_step()
        print(
            f"\nThis will take about {units * seconds / 60:.0f} minutes on this machine: a training"
            f" step of ResNet-18 on 64 images of 64 px takes {seconds:.2f} s."
        )


def _seconds_of_a_training_step() -> float:
    """Return the best of three, after one that warms up."""
    import torch

    from ..models import build_encoder
    from ..runtime.device import Compute, choose_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute = Compute(device, choose_precision("auto", device))
    network = build_encoder("resnet18", num_classes=128).to(device)
    network, best = network.to(memory_format=torch.channels_last), float("inf")
    images = torch.ones(64, 3, 64, 64, device=device).to(memory_format=torch.channels_last)
    for step in range(4):
        since = time.perf_counter()
        with compute.autocast():
            loss = network(images).float().square().mean()
        loss.backward()
        loss.item()  # waits for a GPU
        best = min(best, time.perf_counter() - since) if step else best
    return best


def _print_knn(out: Path) -> None:
    print("\nkNN accuracy on tiles of the test photograph, tree or ground:")
    for name in INITS:
        record = json.loads((out / "knn" / name / "results.json").read_text(encoding="utf-8"))
        print(f"    {name:12}{record['top1']:.1f} %")
