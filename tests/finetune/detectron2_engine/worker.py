"""Run by tests in several processes: does a run and fails unless every process ends with the same
weights and BN statistics.
"""

from __future__ import annotations

import hashlib
import sys

import torch
from detectron2.utils import comm
from torch import distributed as dist

from moco_transfer.finetune import run
from moco_transfer.finetune.plan import Request, join_processes, plan_finetuning
from moco_transfer.runtime.distributed import exit_process, stop_processes


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Return a hash of all parameters' bits, and one of all running means' and variances'."""
    found = {"weights": hashlib.sha256(), "statistics": hashlib.sha256()}
    for name, tensor in sorted(model.state_dict().items()):
        kind = "statistics" if name.endswith(("running_mean", "running_var")) else "weights"
        found[kind].update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def check_equal(model: torch.nn.Module, when: str) -> dict[str, str]:
    """Fail unless this model has the same bits in every process. Collective."""
    own = digests(model)
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    if any(rank != own for rank in ranks):
        raise SystemExit(f"{when} the processes differ: {ranks}")
    return own


def main() -> None:
    """Take ``--dataset`` flags up to ``--`` and KEY VALUE words after it."""
    torch.set_num_threads(1)
    cut = sys.argv.index("--")
    made = []
    original = run.FineTuning
    run.FineTuning = lambda *args, **more: made.append(original(*args, **more)) or made[-1]
    recompute = run.recompute_bn_statistics

    def recompute_and_check(model, batches, **more):
        done = recompute(model, batches, **more)
        check_equal(model, "after PreciseBN")  # at once: saving would make the statistics equal too
        return done

    run.recompute_bn_statistics = recompute_and_check
    flags, words = sys.argv[1:cut], sys.argv[cut + 1 :]
    request = Request("demo_R_18_FPN", words, flags, engine="detectron2", task="test")
    run.finetune(plan_finetuning(request, device=join_processes(request)))
    if (comm.get_local_rank(), comm.get_local_size()) != (dist.get_rank(), dist.get_world_size()):
        raise SystemExit("Detectron2 does not know which processes share this host")
    own = check_equal(made[0].model, "at the end")
    if dist.get_rank() == 0:
        print("EQUAL", dist.get_world_size(), own)
    stop_processes()
    exit_process(0)


if __name__ == "__main__":
    main()
