"""The schedule of a run, which knows the number of processes: batch, learning rate, steps and
length scale together.

Source:
    Same numbers as detectron2@02b5c4e engine/defaults.py DefaultTrainer.auto_scale_workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..runtime.distributed import broadcast_object
from ..runtime.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """What SOLVER and TEST say of the length of a run, in iterations.

    Attributes:
        batch: Images per iteration, over all processes.
        steps: Iterations at which the learning rate drops.
        eval_period: 0 evaluates at the end alone.
        reference: Number of processes that the numbers are for; 0 for any.
    """

    batch: int
    lr: float
    iterations: int
    steps: tuple[int, ...]
    warmup: int
    checkpoint_period: int
    eval_period: int
    reference: int

    def for_processes(self, world_size: int) -> Schedule:
        """Return the schedule for this number of processes, each with as many images as before; a
        schedule without a reference is taken as it is.

        Raises:
            InputError: If the batch does not divide among them, or among those of the reference.
        """
        new, old = self, self.reference
        if old < 0 or (old and self.batch % old):
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {self.batch} is the batch of SOLVER.REFERENCE_WORLD_SIZE"
                f" {old} processes and does not divide among them. Leave the batch as the config"
                " has it (it is scaled to the processes of this run), or set"
                " SOLVER.REFERENCE_WORLD_SIZE 0 to take your numbers as they are."
            )
        if old and old != world_size:
            scale = world_size / old
            in_iterations = ("iterations", "warmup", "checkpoint_period", "eval_period")
            new = replace(
                self,
                batch=round(self.batch * scale),
                lr=self.lr * scale,
                steps=tuple(round(step / scale) for step in self.steps),
                reference=world_size,
                **{name: round(getattr(self, name) / scale) for name in in_iterations},
            )
        if new.batch % world_size or world_size > new.batch:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {new.batch} does not divide among {world_size} processes."
                f" Use a multiple of {world_size}, or set SOLVER.REFERENCE_WORLD_SIZE to the number"
                " of GPUs the schedule was written for."
            )
        return new

    def describe(self, written: Schedule, world_size: int) -> str:
        """Return this schedule in words, next to each number the one it was scaled from."""
        parts = []
        for name in (field.name for field in fields(self) if field.name != "reference"):
            old, new = (
                f"{v:g}" if isinstance(v, float) else str(v)
                for v in (getattr(written, name), getattr(self, name))
            )
            if getattr(self, name):
                parts.append(f"{name.replace('_', ' ')} {new if old == new else f'{old} -> {new}'}")
        origin = f"for {world_size} process{'es' * (world_size > 1)} with"
        origin += f" {self.batch // world_size} images each"
        if written.reference and written.reference != world_size:
            origin += f", scaled from {written.reference} processes"
        return f"{origin}: {', '.join(parts)}"


BEST_FILE = "best.pth"


@dataclass
class Best:
    """The best evaluation of a run: what TEST.KEEP_BEST and TEST.PATIENCE ask for.

    Attributes:
        metric: As in metrics.json: ``task/name``, or ``set/task/name`` of several test sets.
        patience: Evaluations in a row without a better one that end the run; 0 never does.
        value: Of the best evaluation, None before the first.
        iteration, seen: After which it was, and after which the last one was.
        waited: Evaluations since the best.
    """

    metric: str
    patience: int = 0
    value: float | None = None
    iteration: int = 0
    seen: int = 0
    waited: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the run ends here."""
        return 0 < self.patience <= self.waited

    def take(self, iteration: int, row: Mapping[str, float]) -> bool:
        """Return whether an evaluation, which process 0 has, is the best so far. Collective.

        Raises:
            InputError: If it has no such metric.
        """
        known = [name for name in row if name.rpartition("/")[0] == self.metric.rpartition("/")[0]]
        value, known = broadcast_object((row.get(self.metric), known))
        if value is None:
            names = ", ".join(known) or "nothing of that task"
            raise InputError(f"TEST.KEEP_BEST {self.metric!r} was not measured; there is {names}.")
        self.seen = iteration
        is_best = self.value is None or value > self.value
        self.waited = 0 if is_best else self.waited + 1
        if is_best:
            self.value, self.iteration = value, iteration
        return is_best

    def describe(self, iterations: int, test_sets: Sequence[str]) -> dict[str, Any]:
        """Return what results.json says of the choice, after so many iterations."""
        first, _, rest = self.metric.partition("/")
        chosen_on = first if len(test_sets) > 1 and "/" in rest else test_sets[0]
        same = {key: value for key, value in asdict(self).items() if key in _RECORDED}
        return {**same, "chosen_on": chosen_on, "stopped_at": iterations if self.is_over else None}


_RECORDED = ("metric", "patience", "value", "iteration")


def selection(
    settings: Mapping[str, Any], tasks: Sequence[str], test_sets: Sequence[str]
) -> Best | None:
    """Return what a config asks for, by full key; None for a fixed schedule.

    Raises:
        InputError: If nothing is evaluated during the run, or the metric is of another task or set.
    """
    metric, patience = settings.get("TEST.KEEP_BEST", ""), settings.get("TEST.PATIENCE", 0)
    if not metric and not patience:
        return None
    places = [task if len(test_sets) == 1 else f"{n}/{task}" for n in test_sets for task in tasks]
    if metric.rpartition("/")[0] not in places:
        legal = ", ".join(f"{place}/AP or another metric of it" for place in places) or "none"
        raise InputError(f"TEST.KEEP_BEST is {metric!r}, expected {legal}.")
    if settings["TEST.EVAL_PERIOD"] <= 0 or patience < 0:
        raise InputError(
            f"TEST.KEEP_BEST {metric!r} needs evaluations during the run: TEST.EVAL_PERIOD is"
            f" {settings['TEST.EVAL_PERIOD']} and TEST.PATIENCE {patience}. Set a period above 0,"
            " and a patience of 0 (to the end) or more."
        )
    return Best(metric, patience)
