#!/usr/bin/env python
"""Measure time and memory of converting and verifying a ResNet-50 MoCo checkpoint.

    python tools/bench_convert.py [--arch NAME]

Makes a checkpoint as MoCo's training writes it (both encoders, a queue of 65,536 keys, the
optimizer's momentum; 0.3 GB for ResNet-50). Converts it in a process of its own and prints seconds
and gigabytes. The limits for ResNet-50 are 5 s and 1 GB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # runs from a source tree without installation


def write_checkpoint(path: Path, arch: str) -> None:
    """Write a MoCo v2 checkpoint with random weights."""
    import torch
    import torchvision

    encoders = {role: torchvision.models.get_model(arch) for role in ("encoder_q", "encoder_k")}
    state = {
        f"module.{role}.{name}": t
        for role, model in encoders.items()
        for name, t in model.state_dict().items()
    }
    state["module.queue"], state["module.queue_ptr"] = (
        torch.randn(128, 65536),
        torch.zeros(1, dtype=torch.long),
    )
    parameters = encoders["encoder_q"].parameters()
    momentum = {
        index: {"momentum_buffer": torch.randn_like(p)} for index, p in enumerate(parameters)
    }
    torch.save(
        {"epoch": 200, "arch": arch, "state_dict": state, "optimizer": {"state": momentum}}, path
    )


def largest_memory_gb() -> float:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if (
        status.exists()
    ):  # Linux: ru_maxrss would count the memory of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e9 if sys.platform == "darwin" else 1e6
    )


def convert(source: str, target: str) -> None:
    """Convert with verification and print one line; runs in a process of its own, so that the
    memory is its own.
    """
    start = time.perf_counter()
    from moco_transfer.convert import convert_checkpoint

    imported = time.perf_counter()
    before = largest_memory_gb()
    report = convert_checkpoint(source, target, verify=True)
    done = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{report.arch}: {done - imported:.2f} s to convert and verify (and {imported - start:.2f}"
        f" s to import torch), {used.ru_utime + used.ru_stime:.2f} s of processor time in all;"
        f" {largest_memory_gb():.2f} GB of memory at most ({before:.2f} GB after the import)"
    )


def main() -> None:
    """Make the checkpoint and convert it ``--repeat`` times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="resnet50", help="torchvision's name of the network")
    parser.add_argument("--repeat", type=int, default=3, help="conversions to time")
    parser.add_argument("--convert", nargs=2, metavar=("SRC", "DST"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.convert:
        convert(*args.convert)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "moco.pth.tar"
        write_checkpoint(source, args.arch)
        print(f"{source.name}: {source.stat().st_size / 1e6:.0f} MB")
        for _ in range(args.repeat):
            subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--convert",
                    str(source),
                    str(Path(folder) / "moco.pkl"),
                ],
                check=True,
            )


if __name__ == "__main__":
    main()
