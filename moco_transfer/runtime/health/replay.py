"""The iteration whose loss was not finite: found again, saved, and taken once more with a look at
every layer.

A loss is read when it is logged, by which time the weights are spoilt. So a run holds a copy of its
state, returns to it, and repeats the iterations up to the first that goes wrong; images and random
numbers are functions of the iteration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..checkpoint import CheckpointFolder, load_checkpoint
from ..distributed import (
    all_gather_object,
    gather_object,
    get_rank,
    get_world_size,
    is_main_process,
)
from ..errors import InputError

FORMAT = "moco_transfer.replay/1"
_BETWEEN = 200  # iterations between two copies from a GPU, which waits for them

Measures = dict[str, Tensor]
Step = tuple[int, Any, Callable[[], Measures]]  # number from 1 on, batch, what takes the step


class Rewind:
    """A copy of a run's state, in host memory, at its last log line whose weights were finite.

    ``state`` returns what a checkpoint holds of model and optimizer; it is not collective.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, state: Callable[[], dict[str, Any]]
    ) -> None:
        self._model, self._device, self.state = model, device, state
        self.iteration, self.kept = 0, dict[str, Any]()

    def keep(self, iteration: int) -> None:
        """Copy the state after an iteration, at the first and where the last copy is old."""
        is_due = self._device.type == "cpu" or iteration - self.iteration >= _BETWEEN
        if (is_due or not self.kept) and is_finite(self._model):
            self.iteration, self.kept = iteration, plain(self.state())


def is_finite(model: nn.Module) -> bool:
    """Return whether all parameters are finite."""
    values = [p.detach() for p in model.parameters()]
    is_small = bool(get_total_norm(values).isfinite())  # a pass; of large values it overflows
    return is_small or all(bool(value.isfinite().all()) for value in values)


def plain(tree: Any) -> Any:
    """Return a copy on the CPU, of what loads with weights_only: arrays become tensors."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(plain, tree))
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree.copy())
    return tree.detach().to("cpu", copy=True) if isinstance(tree, Tensor) else tree


def save_fault(
    steps: Iterable[Step],
    rewind: Rewind,
    *,
    model: nn.Module,
    folder: Path,
    header: dict[str, Any],
    last: int,
) -> Path | None:
    """Repeat ``steps`` up to iteration ``last``; save the first whose loss or update is not finite.

    Returns:
        The file: ``header``, the state before the iteration, and each process's batch; None if all
        were finite this time. Collective.
    """
    for iteration, batch, step in steps:
        before = plain(rewind.state())
        good = all(bool(value.isfinite()) for value in step().values())
        if not all(all_gather_object(good and is_finite(model))):
            batches = gather_object(plain(batch))
            path = folder / f"nonfinite_{iteration:08d}.pth"
            content = {"format": FORMAT, "iteration": iteration, "state": before}
            content |= {"batches": batches, "world_size": get_world_size()}
            if is_main_process():
                CheckpointFolder(folder).write(header | content, path.name)
            return path
        if iteration >= last:
            break
    return None


def outcome(path: Path | None, command: str) -> str:
    """Return what to say of :func:`save_fault`."""
    if path is None:
        return "Repeated from the last copy of the weights, all was finite: nothing to replay."
    return f"Saved as {path}; look for the layer with `{command}`."


def read_saved(path: str | Path) -> tuple[dict[str, Any], Any]:
    """Return what was saved, and this process's batch.

    Raises:
        InputError: If it cannot be read, or was saved by another number of processes.
    """
    saved = load_checkpoint(path)
    if saved.get("format") != FORMAT:
        raise InputError(f"{path} is no saved iteration: name a nonfinite_*.pth of a run's folder.")
    if (then := saved["world_size"]) != get_world_size():
        raise InputError(
            f"{path} was saved by {then} processes, and these are {get_world_size()}: start as many"
            f" (--num-gpus {then}, or torchrun)."
        )
    return saved, saved["batches"][get_rank()]


@dataclasses.dataclass
class Replayed:
    """An iteration that was taken again, in a precision."""

    precision: str
    measures: dict[str, float]
    faults: list[str]  # in the order in which they arose

    @property
    def lines(self) -> list[str]:
        """What to print."""
        text = ", ".join(f"{name} {value:.4g}" for name, value in self.measures.items())
        return [
            f"{self.precision}: {text or 'no loss'}",
            *(f"  {fault}" for fault in self.faults or ["finite"]),
        ]


def replay(step: Callable[[], Measures], model: nn.Module, precision: str) -> Replayed:
    """Take a step, and name the first layer, gradient and weight that is not finite."""
    faults = [f"before the iteration: {name}" for name in _first(model, lambda p: p)]
    handles = [
        module.register_forward_hook(_look(name, faults))
        for name, module in model.named_modules()
        if name
    ]
    measures = {name: float(value) for name, value in step().items()}
    for handle in handles:
        handle.remove()
    faults += [f"gradient nearest to the loss: {n}" for n in _first(model, lambda p: p.grad)]
    faults += [f"after the update: {name}" for name in _first(model, lambda p: p)]
    return Replayed(precision, measures, faults)


def told(saved: dict[str, Any], tried: list[Replayed]) -> list[str]:
    """Return in lines what the replays, the last in fp32, say."""
    lines = [line for each in tried for line in each.lines]
    return [f"Iteration {saved['iteration']}, once more", *lines, _verdict(tried)]


def _verdict(tried: list[Replayed]) -> str:
    if not tried[0].faults:
        return (
            "Not reproduced: this time all is finite. On a GPU results vary unless the run is"
            " deterministic (TRAIN.DETERMINISTIC)."
        )
    if len(tried) > 1 and not tried[-1].faults:
        return f"In fp32 it is finite: the range or precision of {tried[0].precision} is the cause."
    return "Reproduced in fp32: data, weights or learning rate are the cause, not the precision."


def _first(model: nn.Module, part: Callable[[nn.Parameter], Tensor | None]) -> Iterator[str]:
    """Yield the last parameter, in the order of the network, of which ``part`` is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        value = part(parameter)
        if value is not None and not bool(value.isfinite().all()):
            yield f"{name} ({_bad(value)})"
            return


def _look(name: str, faults: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if any(fault.startswith("output of") for fault in faults):
            return
        for value in _tensors(output):
            if not bool(value.isfinite().all()):
                most = max((float(x.abs().max()) for x in _tensors(inputs) if x.numel()), default=0)
                text = f"output of {name}, {type(module).__name__} ({_bad(value)})"
                faults.append(f"{text}; its largest input {most:.3g}")
                return

    return look


def _bad(value: Tensor) -> str:
    return f"{int((~value.isfinite()).sum()):,} of {value.numel():,} values"


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an input or output."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree.detach()
    elif isinstance(tree, (dict, list, tuple)):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(each)
