"""Run by a test under torchrun: a whole run on shards that fails unless the processes end equal and
read different images.
"""

from __future__ import annotations

import sys

import torch
from small_runs import pretrain
from torch import distributed as dist

from moco_transfer.config import load_pretrain_config
from moco_transfer.data.images.sources import open_source
from moco_transfer.data.views.loading import Loader
from moco_transfer.runtime.distributed import exit_process, start_processes, stop_processes


def main(overrides: list[str]) -> None:
    """Run with a config and compare what the processes read and end with."""
    torch.set_num_threads(1)
    seen: list[list[int]] = []
    iterate = Loader.__iter__

    def recording(self):
        for batch in iterate(self):
            seen.append(batch["index"].tolist())
            yield batch

    Loader.__iter__ = recording
    cfg = load_pretrain_config("demo_moco", overrides)
    start_processes(cfg.TRAIN.DEVICE)
    if len(open_source(cfg.DATA.ROOT)) != 32:  # each process indexes half of the shards
        raise SystemExit("the index is not whole")
    run = pretrain(cfg)
    per_epoch = run.plan.iterations_per_epoch
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(
        gathered,
        (seen, {name: tensor.sum().item() for name, tensor in run.model.state_dict().items()}),
    )
    if gathered[0][1] != gathered[1][1]:
        raise SystemExit("the processes end with different weights")
    for epoch in range(run.plan.epochs):
        parts = [
            sum(indices[epoch * per_epoch : (epoch + 1) * per_epoch], []) for indices, _ in gathered
        ]
        if dist.get_rank() == 0:
            common, distinct = set(parts[0]) & set(parts[1]), set(parts[0] + parts[1])
            print(
                "EPOCH",
                epoch,
                len(parts[0]),
                len(parts[1]),
                "common",
                len(common),
                "distinct",
                len(distinct),
            )
    stop_processes()
    exit_process(0)


if __name__ == "__main__":
    main(sys.argv[1:])
