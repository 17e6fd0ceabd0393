#!/usr/bin/env python
"""Time and memory of converting and verifying a ResNet-50 MoCo checkpoint: ``python
tools/bench_convert.py [--arch NAME]``.

Makes a checkpoint as MoCo's training writes it (both encoders, a queue of 65,536 keys, the
optimizer's momentum; 0.3 GB for ResNet-50), converts it in a process of its own and prints seconds
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

# Runs from a source tree without installation.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def write_checkpoint(path: Path, arch: str) -> None:
    """Write a MoCo v2 checkpoint with random weights."""
    import torch

    from moco_transfer.models import build_encoder

    encoders = {r: build_encoder(arch, num_classes=128) for r in ("encoder_q", "encoder_k")}
    state = {
        f"module.{role}.{name}": tensor
        for role, model in encoders.items()
        for name, tensor in model.state_dict().items()
    }
    state["module.queue"] = torch.randn(128, 65536)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    momentum = {
        index: {"momentum_buffer": torch.randn_like(parameter)}
        for index, parameter in enumerate(encoders["encoder_q"].parameters())
    }
    optimizer = {"state": momentum}
    torch.save({"epoch": 200, "arch": arch, "state_dict": state, "optimizer": optimizer}, path)


def largest_memory_gb() -> float:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss would count the parent's memory
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e6
    unit = 1e9 if sys.platform == "darwin" else 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def convert(source: str, target: str) -> None:
    """Convert with verification and print one line; runs in a process of its own."""
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
        source, target = Path(folder) / "moco.pth.tar", Path(folder) / "moco.pkl"
        write_checkpoint(source, args.arch)
        print(f"{source.name}: {source.stat().st_size / 1e6:.0f} MB")
        for _ in range(args.repeat):
            words = [sys.executable, __file__, "--convert", str(source), str(target)]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
