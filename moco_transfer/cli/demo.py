"""The whole pipeline on real images, in minutes on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

INITS = ("random", "supervised", "moco")
STEPS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class _Step(NamedTuple):
    title: str
    words: list[str]
    result: Path  # what exists when the step is done
    cost: int  # in the unit of demo.yaml


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status of the step that failed, or 0."""
    from .main import main

    started, out = time.perf_counter(), Path(args.output)
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
            print("The demo has stopped; the same command continues here.", file=sys.stderr)
            return status
    _print_knn(out)
    minutes = (time.perf_counter() - started) / 60
    print(
        f"\nThis took {minutes:.1f} minutes. The table is also in {out / 'runs' / 'report.html'}."
    )
    return 0


def _cut_tiles(out: Path, wheel: str) -> None:
    from ..data import stained_tiles, tiles

    print(f"=== [1/6] cut stained tissue into tiles\n    {stained_tiles.CREDIT}", flush=True)
    if (out / "images").exists():
        print(f"    {out / 'images'} exists already.", flush=True)
        return
    out.mkdir(parents=True, exist_ok=True)
    found = tiles.find_wheel(stained_tiles.WHEEL, wheel, out)
    counts = stained_tiles.write_tiles(found, out / "images")
    print(
        "    pool: {pool} tiles without labels\n"
        "    labelled: {labelled_train} training and {labelled_test} test tiles, with a nucleus or"
        " none\n"
        "    detection: {detection_train} training tiles with {nuclei_train} nuclei,"
        " {detection_test} test tiles with {nuclei_test}\n"
        "    Test tiles are of the lower part of one section, which is in no other tiles.".format(
            **counts
        ),
        flush=True,
    )


def _steps(out: Path, seeds: int) -> Iterator[_Step]:
    from ..config import load_pretrain_config

    _write_random_encoder(out / "random.pth")
    checkpoints = {"": "", "random": "random.pth"}
    for init in INITS[1:]:
        epochs = load_pretrain_config(f"demo_{init}").SOLVER.EPOCHS
        checkpoints[init] = f"{init}/checkpoint_{epochs:04d}.pth"
    missing_runs = len(INITS) * seeds - len(list((out / "runs").rglob("results.json")))
    facts = {"out": shlex.quote(str(out)), "seeds": seeds, "jobs": min(2, os.cpu_count() or 1)}
    for step in STEPS:
        for init in step["inits"]:
            facts |= {"init": init, "checkpoint": checkpoints[init]}
            words = shlex.split(step["command"].format(**facts))
            cost = step["cost"] * (max(0, missing_runs) if words[0] == "benchmark" else 1)
            result = out / step["result"].format(**facts)
            yield _Step(step["title"].format(**facts), words, result, cost)


def _write_random_encoder(file: Path) -> None:
    """Write an untrained ResNet-18, whose features show what pre-training adds."""
    import torch

    from ..models import build_encoder
    from ..runtime.files import atomic_path

    if not file.exists():
        with torch.random.fork_rng(), atomic_path(file) as target:
            torch.manual_seed(0)
            torch.save(build_encoder("resnet18", num_classes=128).state_dict(), target)


def _print_estimate(steps: list[_Step]) -> None:
    units = sum(step.cost for step in steps if not step.result.exists())
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
    from ..runtime.device import Compute, best_device, choose_precision

    device = best_device()
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
    print("\nkNN accuracy on tiles of the tested part, with a nucleus or without:")
    for name in INITS:
        record = json.loads((out / "knn" / name / "results.json").read_text(encoding="utf-8"))
        print(f"    {name:12}{record['top1']:.1f} %")
