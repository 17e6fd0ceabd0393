"""ShuffleBN over two gloo processes.

Went red under: arrivals sorted in the other order; a process's own keys enqueued alone; draws that
differ between the processes and are not noticed; channels-last images sent as they are.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.shuffle import draw_permutation, gather_unshuffled, shuffle_rows
from moco_transfer.runtime.seed import check_equal_draws

N, WORLD = 5, 2


class Flat(nn.Module):
    """One linear layer without BN, float64."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(12, num_classes, dtype=torch.float64)

    def forward(self, x):
        return self.fc(x.flatten(1))


def in_process(rank: int, port: int, folder: str) -> None:
    """Body of each process; what it finds is written to a file and judged by the test."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.manual_seed(100)  # as each iteration does it
    found = {"permutations": [], "shuffled": [], "restored": []}
    rows = torch.arange(N, dtype=torch.float64)[:, None].repeat(1, 3) + 100 * rank
    for _ in range(4):
        permutation = draw_permutation(N)
        shuffled = shuffle_rows(rows, permutation)
        found["permutations"].append(permutation)
        found["shuffled"].append(shuffled)
        found["restored"].append(gather_unshuffled(shuffled, permutation))
    check_equal_draws()
    plain = torch.rand(N, 3, 4, 5) + rank
    found["image"] = plain, shuffle_rows(plain, permutation)
    layout = {"memory_format": torch.channels_last}
    found["channels_last"] = shuffle_rows(plain.to(**layout), permutation)
    assert found["channels_last"].is_contiguous(**layout)
    torch.manual_seed(100 + rank)
    with pytest.raises(RuntimeError, match="different random numbers"):
        check_equal_draws()
    torch.manual_seed(0)
    model = MoCo(Flat, dim=4, queue_size=24, momentum=0.5, temperature=0.2)
    model.queue = model.queue.double()
    images = torch.randn(
        2, N * WORLD, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )
    own = slice(rank * N, (rank + 1) * N)
    logits, _ = model(images[0][own], images[1][own])
    found |= {"logits": logits.detach(), "queue": model.queue, "queue_ptr": model.queue_ptr}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_shuffle__two_processes(tmp_path):
    mp.spawn(in_process, args=(free_port(), str(tmp_path)), nprocs=WORLD)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD))
    everything = torch.cat([torch.arange(N), torch.arange(N) + 100]).double()
    foreign = 0
    for i in range(4):
        permutation = a["permutations"][i]
        assert torch.equal(permutation, b["permutations"][i])
        together = torch.cat([a["shuffled"][i], b["shuffled"][i]])
        assert torch.equal(
            together[:, 0], everything[permutation]
        )  # each place holds the image that the permutation names
        assert torch.equal(a["restored"][i][:, 0], everything) and torch.equal(
            b["restored"][i], a["restored"][i]
        )
        foreign += int((a["shuffled"][i][:, 0] >= 100).sum())
    assert foreign > 0  # process 0 saw images of process 1
    images = torch.cat([a["image"][0], b["image"][0]])
    for name, part in ((name, part) for part in (a, b) for name in ("image", "channels_last")):
        shuffled = part[name][1] if name == "image" else part[name]
        places = permutation[:N] if part is a else permutation[N:]
        assert torch.equal(shuffled, images[places]), name
    # The same step in one process: without BN, two processes with N images each equal one with 2 N.
    torch.manual_seed(0)
    model = MoCo(Flat, dim=4, queue_size=24, momentum=0.5, temperature=0.2)
    model.queue = model.queue.double()
    images = torch.randn(
        2, N * WORLD, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )
    logits, _ = model(images[0], images[1])
    torch.testing.assert_close(
        torch.cat([a["logits"], b["logits"]]), logits.detach(), rtol=1e-12, atol=1e-12
    )
    for part in (a, b):
        torch.testing.assert_close(part["queue"], model.queue, rtol=1e-12, atol=1e-12)
        assert part["queue_ptr"].item() == N * WORLD
