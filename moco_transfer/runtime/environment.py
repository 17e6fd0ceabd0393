"""What a run ran on: versions, device, git commit. Written as env.txt, and into results.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

# Distribution names, in the order in which `moco-transfer doctor` and env.txt show them.
PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "fvcore",
    "iopath",
    "pycocotools",
    "opencv-python-headless",
    "opencv-python",
    "numpy",
    "Pillow",
)


def package_versions() -> dict[str, str]:
    """Return the installed versions of Python, this package and what it builds on; absent packages
    are left out.
    """
    found = {"python": platform.python_version()}
    for name in ("moco-transfer", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: str | Path | None = None) -> str | None:
    """Return the commit of the source tree this package runs from, with ``+`` when it has changes,
    or None outside one.

    Args:
        folder: A folder inside the tree; this package's own by default.
    """
    folder = Path(folder or Path(__file__).resolve().parent)
    try:
        commit = _git(folder, "rev-parse", "--short=10", "HEAD")
        return commit + (
            "+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def environment_report() -> str:
    """Return what belongs into env.txt: machine, versions, device, threads and the variables that
    change a run.
    """
    import torch  # `report` and `--help` read this module's neighbours without paying for torch

    lines = [
        f"platform: {platform.platform()}",
        f"cpu cores: {os.cpu_count()}",
        f"torch threads: {torch.get_num_threads()}",
    ]
    lines += [f"{name}: {version}" for name, version in package_versions().items()]
    lines.append(f"cuda: {torch.version.cuda} (available: {torch.cuda.is_available()})")
    lines += [f"gpu {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    lines.append(f"git: {git_commit()}")
    for name in ("DETECTRON2_DATASETS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WORLD_SIZE"):
        if name in os.environ:
            lines.append(f"{name}={os.environ[name]}")
    return "\n".join(lines) + "\n"
