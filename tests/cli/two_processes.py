"""Run by tests under torchrun: does a whole run and fails unless both processes end with equal
weights and buffers.
"""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import distributed as dist

from moco_transfer.config import load_pretrain_config
from moco_transfer.runtime.distributed import exit_process, stop_processes


def digest(state: dict[str, torch.Tensor]) -> str:
    """Return a hash of every tensor's name and bits."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def main(kind: str, config: str, overrides: list[str]) -> None:
    """Run ``kind`` ("pretrain", "train", or "train=ENGINE") with a config and compare the
    processes.
    """
    kind, _, engine = kind.partition("=")
    engine = engine or "torchvision"
    torch.set_num_threads(1)
    if kind == "pretrain":
        from moco_transfer.pretrain.plan import plan_pretrain
        from moco_transfer.pretrain.run import pretrain

        plan = plan_pretrain(load_pretrain_config(config, overrides))
        state = pretrain(plan).model.state_dict()
    else:
        from moco_transfer.finetune import run
        from moco_transfer.finetune.plan import Request, join_processes, plan_finetuning

        built = []
        original = run.FineTuning
        run.FineTuning = lambda *args, **more: built.append(original(*args, **more)) or built[-1]
        request = Request(config, overrides[1:], overrides[:1], engine=engine, task="test")
        run.finetune(plan_finetuning(request, device=join_processes(request)))
        state = built[0].model.state_dict()
    digests = [None, None]
    dist.all_gather_object(digests, digest(state))
    if digests[0] != digests[1]:
        raise SystemExit(f"the processes differ: {digests}")
    if dist.get_rank() == 0:
        print("EQUAL", digests[0])
    stop_processes()
    exit_process(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
