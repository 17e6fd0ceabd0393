"""Batches on the training device, one ahead of the step that uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_STAYS = ("colours",)  # says on the CPU which views need which operation; see view_colours.py


def to_device(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the batches with their tensors on the device.

    On a GPU the next batch is fetched (where the device decodes, that is done then) and copied on a
    stream of its own while the current step runs; batches must lie in pinned memory for that.
    Elsewhere they are passed on.

    Args:
        batches: As ``view_batch.ViewBatch.finished`` returns them.
        device: The training device.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    waiting: dict[str, Any] | None = None
    coming = iter(batches)
    while True:
        with torch.cuda.stream(stream):
            batch = next(coming, None)
            if batch is None:
                break
            ahead = {name: _moved(name, value, device) for name, value in batch.items()}
        if waiting is not None:
            yield _ready(waiting, stream, device)
        waiting = ahead
    if waiting is not None:
        yield _ready(waiting, stream, device)


def _moved(name: str, value: Any, device: torch.device) -> Any:
    return (
        value.to(device, non_blocking=True)
        if isinstance(value, Tensor) and name not in _STAYS
        else value
    )


def _ready(
    batch: dict[str, Any], stream: torch.cuda.Stream, device: torch.device
) -> dict[str, Any]:
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_cuda:
            value.record_stream(current)  # its memory was taken on the other stream
    return batch
