"""What a run ran on: versions, device, git commit; written as env.txt and into results.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

# Distribution names, in the order of `moco-transfer doctor` and env.txt.
PACKAGES = (
    *("torch", "torchvision", "detectron2", "fvcore", "iopath", "pycocotools", "hotcoco"),
    *("opencv-python-headless", "opencv-python", "numpy", "Pillow", "cityscapesScripts"),
)


def package_versions() -> dict[str, str]:
    """Return the installed versions of Python, this package and those of :data:`PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in ("moco-transfer", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the tree around this package, ``+`` with changes; None without."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *words]
        return subprocess.check_output(
            command, text=True, timeout=10, stderr=subprocess.DEVNULL
        ).strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def environment_report() -> str:
    """Return the text of env.txt: machine, versions, devices, threads, variables."""
    import torch  # not at the top: `report` imports this module without torch

    names = (
        *("DETECTRON2_DATASETS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WORLD_SIZE"),
        "MOCO_TRANSFER_MAX_PIXELS",
    )
    lines = [
        f"platform: {platform.platform()}",
        f"cpu cores: {os.cpu_count()}",
        f"torch threads: {torch.get_num_threads()}",
        *(f"{name}: {version}" for name, version in package_versions().items()),
        f"cuda: {torch.version.cuda} (available: {torch.cuda.is_available()})",
        *(f"gpu {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())),
        f"git: {git_commit()}",
        *(f"{name}={os.environ[name]}" for name in names if name in os.environ),
    ]
    return "\n".join(lines) + "\n"
