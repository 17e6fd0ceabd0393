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
    """What SOLVER and TEST say of the length of a run.

    Attributes:
        batch: Images per iteration, over all processes.
        lr: Base learning rate.
        iterations: Length of the run.
        steps: Iterations at which the learning rate drops.
        warmup: Iterations of the warm-up.
        checkpoint_period, eval_period: In iterations; 0 evaluates at the end alone.
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
        if old < 0:
            raise InputError(
                f"SOLVER.REFERENCE_WORLD_SIZE is {old}, expected a number of processes, or 0 to"
                " take the schedule as it is."
            )
        if old and self.batch % old:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {self.batch} is the batch of SOLVER.REFERENCE_WORLD_SIZE"
                f" {old} processes together and does not divide among them; this run has"
                f" {world_size} and scales batch, learning rate and length by itself. Leave the"
                " batch as the config has it, or set SOLVER.REFERENCE_WORLD_SIZE 0 to take your"
                " numbers as they are."
            )
        if old and old != world_size:
            scale = world_size / old
            new = replace(
                self,
                batch=round(self.batch * scale),
                lr=self.lr * scale,
                iterations=round(self.iterations / scale),
                steps=tuple(round(step / scale) for step in self.steps),
                warmup=round(self.warmup / scale),
                checkpoint_period=round(self.checkpoint_period / scale),
                eval_period=round(self.eval_period / scale),
                reference=world_size,
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
        names = {"warmup": "warm-up", "checkpoint_period": "checkpoint every"}
        names |= {"eval_period": "evaluation every"}
        parts = []
        for field in (field.name for field in fields(self) if field.name != "reference"):
            old, new, name = getattr(written, field), getattr(self, field), names.get(field, field)
            old, new = (f"{v:g}" if isinstance(v, float) else v for v in (old, new))
            if new:
                parts.append(f"{name} {new}" if old == new else f"{name} {old} -> {new}")
        processes = (
            f"{world_size} process{'' if world_size == 1 else 'es'} with"
            f" {self.batch // world_size} images each"
        )
        if written.reference and written.reference != world_size:
            origin = f"scaled from {written.reference} processes to {processes}"
        else:
            count = "this number" if written.reference else "any number"
            origin = f"for {processes}, as written for {count} of processes"
        return f"{origin}: {', '.join(parts)}"
