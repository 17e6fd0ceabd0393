"""A step of MoCo never makes the host wait for the device.

Went red under: the loss read in the step. Written against, and not tried alone: the constants of
    normalize made again. The
test on a GPU was written without one at hand.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moco_transfer.data.views.view_colours import _per_channel, normalize
from moco_transfer.pretrain.run import step

from .small_runs import run_without_images

# What reads a number back, or makes a shape that depends on one. Waits on a GPU; costs nothing on a
# CPU, where it can yet be seen.
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "equal")


class NoWaiting(TorchDispatchMode):
    """Notes operators that would make the host wait if their tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        )
        if name in _WAITS or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def tiny_run(device: str):
    words = {
        "MODEL.ARCH": "resnet18",
        "DATA.IMAGE_SIZE": 32,
        "DATA.BATCH_SIZE_TOTAL": 8,
        "MOCO.QUEUE_SIZE": 20,
        "MOCO.BN_GROUP_SIZE": 4,
    }
    words |= {"TRAIN.DEVICE": device, "TRAIN.PRECISION": "bf16"}
    run = run_without_images("moco_v2_R_50_200ep", words)
    label = torch.zeros(8, dtype=torch.int64)
    views = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    batch = {"views": views, "label": label, "index": label}
    if device == "cuda":
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return run, batch


def test_step__reads_nothing_back():
    run, batch = tiny_run("cpu")
    with NoWaiting() as seen:
        step(run, batch)
    assert seen.found == []


def test_normalize__makes_its_constants_once():
    views, mean, std = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    normalize(views, mean, std)
    before = _per_channel.cache_info()
    normalize(views, list(mean), list(std))  # a config's lists are the same constants
    after = _per_channel.cache_info()
    assert (after.hits, after.misses) == (before.hits + 2, before.misses)


@pytest.mark.gpu
def test_step__does_not_wait_on_a_gpu():
    """torch itself raises where an operator waits; the first steps, in which libraries set
    themselves up, may.
    """
    run, batch = tiny_run("cuda")
    for _ in range(3):
        step(run, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step(run, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
