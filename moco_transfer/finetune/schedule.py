"""The schedule of a run, which knows the number of processes: batch, learning rate, steps and
length scale together.

Source:
    Same numbers as detectron2@02b5c4e engine/defaults.py DefaultTrainer.auto_scale_workers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

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
