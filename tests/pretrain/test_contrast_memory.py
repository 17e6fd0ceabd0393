"""The contrast holds no more than two copies of the (N, 1 + K) logits, counted in torch's own
allocations at a small size.

tools/bench_contrast_memory.py measures the same at N = 256 and K = 65,536, by the kernel's peak.

Seen red under: a softmax, or its product with the gradient, that is not made in place; a copy of
    the queue per step.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from moco_transfer.pretrain.memory_bank import MemoryBank
from moco_transfer.pretrain.moco import MoCo

BATCH, QUEUE, DIM = 64, 4096, 8
LOGITS = BATCH * (1 + QUEUE) * 4  # bytes
QUEUE_BYTES = DIM * QUEUE * 4


class Head(nn.Module):
    """An encoder that takes next to no memory: what is measured is the contrast."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def peak_of(step) -> int:
    """Return the largest sum of bytes that were allocated and not yet freed since the beginning of
    ``step``.
    """
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        step()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("kind", ["moco", "moco_symmetric", "memory_bank"])
def test_step__holds_at_most_two_copies_of_the_logits(kind):
    torch.manual_seed(0)
    x, index = torch.randn(BATCH, 4), torch.arange(BATCH)
    if kind == "memory_bank":
        model = MemoryBank(Head, num_images=QUEUE + BATCH, dim=DIM, num_negatives=QUEUE)
    else:
        model = MoCo(Head, dim=DIM, queue_size=QUEUE, symmetric=kind == "moco_symmetric")

    def step() -> None:
        model.begin_step(index)
        loss, _ = model.loss([x, x], index, index)
        model.end_step()
        loss.backward()

    step()  # whatever is allocated once
    copies = peak_of(step) / LOGITS
    directions = 2 if kind == "moco_symmetric" else 1
    # The bank's negatives are gathered, K x C; a queue is not copied. 5 % is for what grows with N
    # alone.
    gathered = QUEUE_BYTES / LOGITS if kind == "memory_bank" else 0
    # The logits of each direction, and one gradient at a time.
    expected = directions + 1
    assert 0.95 * expected < copies <= 1.025 * expected + 2.1 * gathered, copies


def test_peak_of__sees_what_is_held_and_not_what_is_freed():
    def step() -> None:
        held = torch.empty(LOGITS // 4)
        for _ in range(3):
            torch.empty(LOGITS // 4)
        del held

    assert peak_of(step) == pytest.approx(2 * LOGITS, rel=0.01)
