"""Run by tests in several processes: does a run and fails unless every process ends with the same weights and BN statistics."""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import distributed as dist

from moco_transfer.config import load_detection_config
from moco_transfer.data.catalog import parse_dataset_flag
from moco_transfer.finetune import build


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Return a hash of all parameters' bits, and one of all running means' and variances'."""
    found = {"weights": hashlib.sha256(), "statistics": hashlib.sha256()}
    for name, tensor in sorted(model.state_dict().items()):
        kind = "statistics" if name.endswith(("running_mean", "running_var")) else "weights"
        found[kind].update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def main() -> None:
    """Take ``--dataset`` flags up to ``--`` and KEY VALUE words after it."""
    torch.set_num_threads(1)
    cut = sys.argv.index("--")
    for flag in sys.argv[1:cut]:
        parse_dataset_flag(flag)
    made = []
    original = build._build_run
    build._build_run = lambda *args: made.append(original(*args)) or made[-1]
    build.finetune(load_detection_config("demo_R_18_FPN", sys.argv[cut + 1 :]), task="test", engine="detectron2")
    own = digests(made[0].model)
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    if any(rank != own for rank in ranks):
        raise SystemExit(f"the processes differ: {ranks}")
    if dist.get_rank() == 0:
        print("EQUAL", len(ranks), own)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
